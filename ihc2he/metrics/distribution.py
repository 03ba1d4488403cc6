"""FID and KID between the real and the generated images of one stain, with any feature network.

Values in papers cannot be compared with each other, because they depend on the number of images, their size and the
feature network. Therefore `Distribution` also returns the numbers of images.

Shape suffixes: b = batch, c = colour (3), h, w = height, width, n = images of a set, d = features.
"""

import hashlib
import logging
import shutil
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ihc2he.errors import ConfigError, Ihc2heError
from ihc2he.files import complete
from ihc2he.metrics.fidelity import Card, checked_images, full_float32

log = logging.getLogger(__name__)

_ALL = (
    Card("fid", "FID", False, "0 upwards", 1, "Heusel 2017; biased upwards below 2048 images, so state the number"),
    Card("kid", "KID", False, "about 0 upwards", 1, "Binkowski 2018, unscaled; mean over 100 subsets of at most 1000"),
)
CARDS: dict[str, Card] = {card.name: card for card in _ALL}

_SUBSETS = 100
_SUBSET_SIZE = 1000
_WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_TIMEOUT_S = 10


class FeaturesUnavailable(Ihc2heError):  # noqa: N818
    """The Inception network of FID and KID is not available on this machine."""


class Distribution(Metric):
    """FID and KID between the real and the generated images of one stain.

    The network is built on the first batch. It is not a submodule, so it is not in checkpoints and optimisers; it moves
    to the device of the images. All features are kept, 8 KB per image with Inception.

    Args:
        features: see `feature_network`.

    >>> metric = Distribution(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    >>> images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> metric.update(images, real=True)
    >>> metric.update(images, real=False)
    >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
    {'fid': 0.0, 'kid': -0.0, 'kid_std': 0.0, 'n_real': 8, 'n_fake': 8, 'kid_subset': 8}
    """

    full_state_update = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, features: str | nn.Module = "inception", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("real_features", [], dist_reduce_fx="cat")  # (N, D) float32
        self.add_state("fake_features", [], dist_reduce_fx="cat")
        self._spec = (features,)  # a module that is assigned directly would become a submodule

    @cached_property
    def _network(self) -> nn.Module:
        return feature_network(self._spec[0])

    def prepare(self) -> None:
        """Build the network now, if it is not there yet.

        Raises:
            FeaturesUnavailable, ConfigError: if it cannot be built, see `feature_network`.
        """
        _ = self._network

    def update(self, images_bchw: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            images_bchw: (N, 3, H, W) floats in [0, 1].
            real: whether these are real or generated images.

        Raises:
            FeaturesUnavailable, ConfigError: if the network cannot be built, see `feature_network`.
            ValueError: if the images have another shape or range.
        """
        images_bchw = checked_images("images_bchw", images_bchw)
        with torch.no_grad(), full_float32(images_bchw.device):
            features_bd = self._network.to(images_bchw.device)(images_bchw).float()
        (self.real_features if real else self.fake_features).append(features_bd)

    def compute(self) -> dict[str, Tensor]:
        """Return ``fid``, ``kid``, ``kid_std`` (over subsets), ``n_real``, ``n_fake`` and ``kid_subset``.

        With fewer than two images of either kind the first three are NaN, and a warning says so.
        """
        real_nd, fake_nd = (
            dim_zero_cat(features).cpu() if len(features) else torch.empty(0, 1)
            for features in (self.real_features, self.fake_features)
        )
        subset = min(_SUBSET_SIZE, len(real_nd), len(fake_nd))
        result = {"fid": torch.tensor(torch.nan), "kid": torch.tensor(torch.nan), "kid_std": torch.tensor(torch.nan)}
        if subset < 2:
            log.warning("FID and KID need two images, found %d real and %d fake: NaN.", len(real_nd), len(fake_nd))
        else:
            result["fid"] = frechet_distance(real_nd, fake_nd)
            result["kid"], result["kid_std"] = kernel_distance(real_nd, fake_nd, subset)
        sizes = {"n_real": len(real_nd), "n_fake": len(fake_nd), "kid_subset": subset}
        result |= {name: torch.tensor(size) for name, size in sizes.items()}
        return {name: value.to(self.device) for name, value in result.items()}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the features of all devices; a device without images adds no rows."""
        for name in ("real_features", "fake_features"):
            features = getattr(self, name)
            if isinstance(features, list) and not features:
                # Without these rows torchmetrics would send a vector, and gathering matrices would fail.
                setattr(self, name, [torch.empty(0, _width(self._network), device=self.device)])
        super().sync(*args, **kwargs)


def frechet_distance(real_nd: Tensor, fake_nd: Tensor) -> Tensor:
    """Return the float32 Frechet distance between the Gaussians fitted to two sets of features (Heusel 2017, eq. 6).

    The covariances are products A'A of centred features A, so the trace of the root of their product is the sum of the
    singular values of ``A_real A_fake'``: faster than the eigenvalues in torchmetrics, and never below zero.

    Args:
        real_nd: (N, D), at least two rows.
        fake_nd: (M, D), at least two rows.

    >>> x_nd = torch.eye(4)
    >>> frechet_distance(x_nd, x_nd + 0.5).item()
    1.0
    """
    means, roots = [], []
    for x_nd in (real_nd.double(), fake_nd.double()):
        means.append(x_nd.mean(0))
        root_nd = (x_nd - means[-1]) / (len(x_nd) - 1) ** 0.5
        roots.append(torch.linalg.qr(root_nd, mode="r").R if len(x_nd) > x_nd.shape[1] else root_nd)
    real_root, fake_root = roots
    shared = torch.linalg.svdvals(real_root @ fake_root.T).sum()
    distance = (means[0] - means[1]).square().sum() + real_root.square().sum() + fake_root.square().sum() - 2 * shared
    return distance.clamp(min=0).float()


def kernel_distance(real_nd: Tensor, fake_nd: Tensor, subset: int = _SUBSET_SIZE) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of KID over random subsets, the same ones every time.

    Args:
        real_nd: (N, D) features.
        fake_nd: (M, D) features.
        subset: rows of each that a subset has, at least 2; at most N and M.
    """
    subset = min(subset, len(real_nd), len(fake_nd))
    # If a subset is all of both sets, all subsets are equal.
    subsets = 1 if len(real_nd) == len(fake_nd) == subset else _SUBSETS
    generator = torch.Generator().manual_seed(0)

    def draw(x_nd: Tensor) -> Tensor:
        return x_nd[torch.randperm(len(x_nd), generator=generator)[:subset]]

    scores = torch.stack([_squared_mmd(draw(real_nd), draw(fake_nd)) for _ in range(subsets)])
    return scores.mean(), scores.std(unbiased=False)


def _squared_mmd(x_nd: Tensor, y_nd: Tensor) -> Tensor:
    """Return the unbiased squared maximum mean discrepancy of two sets of equal size (Binkowski 2018, eq. 4).

    The kernel is ``(x.y / D + 1)^3``.
    """
    n, d = x_nd.shape
    kernels = [(a_nd @ b_nd.T / d + 1) ** 3 for a_nd, b_nd in ((x_nd, x_nd), (y_nd, y_nd), (x_nd, y_nd))]
    within = [(kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1)) for kernel in kernels[:2]]
    return within[0] + within[1] - 2 * kernels[2].sum() / n**2


def feature_network(spec: str | nn.Module) -> nn.Module:
    """Return a network in evaluation mode that maps (N, 3, H, W) floats in [0, 1] to (N, D) features.

    Args:
        spec: ``inception`` for the network of the FID papers (torch-fidelity; 2048 features of images rounded to uint8
            and resized to 299 px as TensorFlow 1 did, without antialiasing), downloaded once to the folder of
            ``torch.hub``; or a module that does what is described above; a dry run on two images of 64 px checks this.

    Raises:
        FeaturesUnavailable: if torch-fidelity is not installed, or its weights cannot be found or downloaded.
        ConfigError: if the module does something else, or the name is unknown.
    """
    if isinstance(spec, str):
        if spec != "inception":
            msg = f"'{spec}' is not a feature network: use 'inception' or a torch.nn.Module."
            raise ConfigError(msg)
        return _Inception().eval()
    _width(spec.eval())
    return spec


def _width(network: nn.Module) -> int:
    """Return D, after a dry run that checks that the network maps (N, 3, H, W) to (N, D)."""
    parameter = next(network.parameters(), torch.empty(0))
    expected = "a feature network must map (N, 3, H, W) floats in [0, 1] to (N, D)"
    try:
        with torch.no_grad():
            features = network(torch.zeros(2, 3, 64, 64, device=parameter.device))
    except Exception as error:
        msg = f"{type(network).__name__} failed on two images of 64 px ({error}): {expected}."
        raise ConfigError(msg) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        msg = f"{type(network).__name__} returned {found} for two images: {expected}."
        raise ConfigError(msg)
    return features.shape[1]


class _Inception(nn.Module):
    """torch-fidelity's Inception, which takes uint8, as a network of `feature_network`."""

    def __init__(self) -> None:
        super().__init__()
        weights = _inception_weights()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.network((x_bchw * 255).round().byte())[0]


def _inception_weights() -> Path:
    """Return the verified file of weights; download it if it is missing."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError as error:
        msg = f"FID and KID need torch-fidelity: `pip install ihc2he[fid]`, {_OWN_NETWORK}."
        raise FeaturesUnavailable(msg) from error
    path = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rpartition("/")[2])
    if path.is_file():
        _verify(path)
    else:
        _download(URL_INCEPTION_V3, path)
    return path


_OWN_NETWORK = "or set model.features to your own network"


def _verify(path: Path) -> None:
    """Raise if the file is not the published one: torch-fidelity unpickles it, so it must be trusted."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _WEIGHTS_SHA256:
        msg = f"{path} is not the Inception of FID: sha256 {found}, expected {_WEIGHTS_SHA256}. Delete it, run again."
        raise FeaturesUnavailable(msg)


def _download(url: str, path: Path) -> None:
    """Download to a temporary name, verify, rename; give up after 10 s without a response."""
    from rich.progress import wrap_file

    try:
        with complete(path) as temporary:
            with urlopen(url, timeout=_TIMEOUT_S) as response, temporary.open("wb") as target:
                size = int(response.headers["Content-Length"] or 0)
                with wrap_file(response, size, description="Inception weights") as source:
                    shutil.copyfileobj(source, target)
            _verify(temporary)
    except (OSError, HTTPException) as error:
        msg = f"FID and KID need {path}, and downloading it failed ({error}): put {url} there by hand, {_OWN_NETWORK}."
        raise FeaturesUnavailable(msg) from error
