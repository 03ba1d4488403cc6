"""What turns IHC into H&E, by one interface: generators of a CycleGAN, and the baselines that learned nothing.

Shape suffixes: b = batch, c = colour, h, w = height, width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from ihc2he.build import build, refuse_foreign
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import load_bundle
from ihc2he.models.checkpoint import read_checkpoint
from ihc2he.stain.normalise import Method, Statistics, normalised, normaliser, pooled
from ihc2he.stain.recolour import recolour
from ihc2he.tiling.windows import predict_tiled

log = logging.getLogger(__name__)

_LEAST_SIDE = 16  # px, what the generators can translate
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


class Translator(nn.Module):
    """Turns IHC into H&E.

    Attributes:
        mpp: pixel size that it wants, um/px; None: any.
        members: networks of an ensemble; the caller averages what becomes of their images, never the images.
        needs_he: it is given the tile's aligned H&E in place of its IHC.
    """

    mpp: float | None = None
    members: int = 1
    needs_he: bool = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return the H&E of images by one member.

        Args:
            x_bchw: (N, 3, H, W) floats in [0, 1], any H and W.
            member: index below `members`.

        Returns:
            (N, 3, H, W) float32 in [0, 1].
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Log what has to be said once, at the end of a test or prediction."""


class Identity(Translator):
    """No translation: what the segmenter makes of IHC itself is the floor."""

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return the images."""
        return x_bchw


class Rendered(Identity):
    """The true H&E of simulated tissue, as if the translation were perfect: the ceiling."""

    needs_he = True


class Recolour(Translator):
    """Colour deconvolution into hematoxylin and DAB, drawn again as H&E: `ihc2he.stain.recolour`.

    Args:
        h_gain: hematoxylin of the H&E per hematoxylin of the IHC.
        dab_gain: hematoxylin of the H&E per DAB.
        eosin_level: eosin of tissue, in units of optical density.
        eosin_gain: eosin per residual.
    """

    def __init__(self, h_gain: float, dab_gain: float, eosin_level: float, eosin_gain: float) -> None:
        super().__init__()
        self.constants = {
            "h_gain": h_gain, "dab_gain": dab_gain, "eosin_level": eosin_level, "eosin_gain": eosin_gain,
        }  # fmt: skip

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return the recoloured images, differentiable."""
        return recolour(x_bchw, **self.constants)


# ------------------------------------------------------------------ classical normalisation


class _Normalised(Translator):
    """Brings the colours of each image to those of a target; where an image has no statistics it stays as it is."""

    method: Method

    def __init__(self, target: str | None, statistics: Statistics | None) -> None:
        super().__init__()
        if target is not None:
            statistics = pooled(self.method, _target_images(target))
        self.target = normaliser(self.method, statistics)
        self.seen = self.unchanged = 0

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return the normalised images."""
        images = (x_bchw * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        done = [normalised(self.method, self.target, image) for image in images]
        self.seen += len(done)
        self.unchanged += sum(image is None for image in done)
        made = np.stack([old if new is None else new for old, new in zip(images, done, strict=True)])
        return torch.from_numpy(made).to(x_bchw.device).permute(0, 3, 1, 2).float() / 255

    def finish(self) -> None:
        """Warn of the images that came back unchanged, and count from 0 again."""
        if self.unchanged:
            log.warning(
                "The translator %s left %d of %d images unchanged: too little tissue, or of one colour.",
                self.method, self.unchanged, self.seen,
            )  # fmt: skip
        self.seen = self.unchanged = 0


class Reinhard(_Normalised):
    """Means and standard deviations of the channels in CIE Lab (Reinhard et al., IEEE CG&A 2001), by torchstain.

    Args:
        target: an image of H&E, or a folder of them; null takes the two that follow.
        lab_mean: of the target.
        lab_std: of the target.
    """

    method = "reinhard"

    def __init__(self, target: str | None, lab_mean: Sequence[float], lab_std: Sequence[float]) -> None:
        super().__init__(target, (np.asarray(lab_mean), np.asarray(lab_std)))


class Macenko(_Normalised):
    """Stain vectors by singular values, and their strengths (Macenko et al., ISBI 2009), by torchstain.

    Args:
        target: an image of H&E, or a folder of them; null takes torchstain's published reference.
    """

    method = "macenko"

    def __init__(self, target: str | None = None) -> None:
        super().__init__(target, None)


def _target_images(target: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a file or folder, HxWx3 uint8 RGB.

    Raises:
        DataError: naming the path, where there are none or one cannot be read.
    """
    path = Path(target)
    paths = [path]
    if path.is_dir():
        paths = sorted(p for p in path.rglob("[!.]*") if p.suffix.lower() in _IMAGES)
    if not paths:
        msg = f"{path}: no image in this folder; expected H&E tiles as {', '.join(_IMAGES)} to take the colours from."
        raise DataError(msg)
    for file in track(paths, "Colours of the target", disable=len(paths) == 1):
        bgr = cv2.imread(str(file), cv2.IMREAD_COLOR) if file.is_file() else None
        if bgr is None:
            msg = f"{file}: no readable image. Expected an H&E image, or a folder of them, to take the colours from."
            raise DataError(msg)
        if cv2.imcount(str(file)) > 1:
            msg = f"{file}: holds several pages or frames, expected one image. Export it as a PNG in RGB."
            raise DataError(msg)
        raw = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.ndim == 3 and raw.shape[2] == 4 and raw[..., 3].min() < np.iinfo(raw.dtype).max:  # type: ignore[type-var]
            msg = f"{file}: has transparent pixels, whose colours mean nothing. Export it as RGB."
            raise DataError(msg)
        yield np.ascontiguousarray(bgr[..., ::-1])


# ------------------------------------------------------------------ learned translation


class CycleGan(Translator):
    """The IHC to H&E generator of a CycleGAN, or an ensemble of them.

    Args:
        weights: a bundle (folder or hub id), a checkpoint of a run, or a list of them, which have to agree in pixel
            size.
        mpp: um/px, where the weights do not say: those of a checkpoint.
        window: px, the largest sides that are translated at once.
        overlap: px, least overlap of windows, in which their images are blended.

    Raises:
        ConfigError: without weights or pixel size, or with weights that do not go together or translate otherwise.
        DataError: for weights that cannot be read.
    """

    def __init__(
        self, weights: str | Sequence[str] | None, mpp: float | None = None, window: int = 1024, overlap: int = 128
    ) -> None:
        super().__init__()
        if not weights:
            msg = (
                "model.translators.cyclegan.weights is not given. `python -m ihc2he.train experiment=cyclegan_bci` (or "
                "cyclegan_unpaired) writes the generator to RUN/bundles/g_ihc2he; pass that folder: "
                "model.translators.cyclegan.weights=PATH."
            )
            raise ConfigError(msg)
        sources = [weights] if isinstance(weights, str) else list(weights)
        loaded = [_of_run(source) if source.endswith(".ckpt") else _of_bundle(source) for source in sources]
        self.mpp = _common_mpp(dict(zip(sources, (one.mpp for one in loaded), strict=True)), mpp)
        self.members = len(loaded)
        self.networks = nn.ModuleList(one.network for one in loaded)
        self.networks.requires_grad_(False).to(memory_format=torch.channels_last)
        self.ranges = [one.value_range for one in loaded]
        self.window, self.overlap = window, overlap

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return the images that a generator makes."""
        low, high = self.ranges[member]

        def generate(window_bchw: Tensor) -> Tensor:
            return _padded(self.networks[member], window_bchw.contiguous(memory_format=torch.channels_last)).float()

        # One window of this size keeps a device busy; more at a time only cost memory.
        made_bchw = predict_tiled(generate, x_bchw * (high - low) + low, self.window, self.overlap, batch_size=1)
        return ((made_bchw - low) / (high - low)).clamp(0, 1)


class _Generator(NamedTuple):
    network: nn.Module
    mpp: float | None
    value_range: tuple[float, float]


def _of_bundle(source: str) -> _Generator:
    network, info = load_bundle(source)
    found = tuple(info.get(key) for key in ("role", "stain_in", "stain_out"))
    if found != ("translator", "IHC", "H&E"):
        msg = (
            f"{source}: this is the bundle of a {found[0]} from {found[1]} to {found[2]}; expected a translator from "
            "IHC to H&E, such as RUN/bundles/g_ihc2he of a CycleGAN."
        )
        raise ConfigError(msg)
    try:
        low, high = info["value_range"]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{source}: config.json has no value_range, such as [-1, 1]: the range of the network's images."
        raise DataError(msg) from error
    return _Generator(network, info.get("mpp"), (low, high))


def _of_run(path: str) -> _Generator:
    """Return the generator of a CycleGAN's checkpoint, the averaged one where the run kept an average."""
    content = read_checkpoint(path)
    hparams, state = content.get("hyper_parameters"), content["state_dict"]
    node = hparams.get("generator") if isinstance(hparams, Mapping) else None
    prefix = next((p for p in ("g_ema.g_ihc2he.", "g_ihc2he.") if any(key.startswith(p) for key in state)), None)
    if not isinstance(node, Mapping) or prefix is None:
        msg = f"{path}: holds no generator that can be built from it. Pass the bundle of its run: RUN/bundles/g_ihc2he."
        raise ConfigError(msg)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        refuse_foreign(node)
        network: Any = build(node, nn.Module)
        network.load_state_dict(own)
    except (ConfigError, RuntimeError) as error:
        msg = f"{path}: its generator cannot be built ({' '.join(str(error).split())[:200]}). Pass the run's bundle."
        raise DataError(msg) from error
    return _Generator(network.eval(), None, (-1.0, 1.0))


def _common_mpp(found: Mapping[str, float | None], said: float | None) -> float:
    """Return the pixel size of all weights.

    Args:
        found: what each of them says, by where it comes from.
        said: what the configuration says, for those that say nothing.

    Raises:
        ConfigError: where one is not known, or two differ.

    >>> _common_mpp({"a/bundles/g_ihc2he": 0.46, "b.ckpt": None}, 0.46)
    0.46
    """
    known = {source: mpp or said for source, mpp in found.items()}
    known |= {"model.translators.cyclegan.mpp": said} if said else {}
    for source, mpp in known.items():
        if mpp is None:
            msg = (
                f"{source}: does not say the pixel size it was trained at. Pass it in um/px, such as "
                "model.translators.cyclegan.mpp=0.46, or the bundle of its run: RUN/bundles/g_ihc2he."
            )
            raise ConfigError(msg)
    (first, mpp), *others = known.items()
    for source, other in others:
        if other != mpp:
            msg = f"model.translators.cyclegan: {first} has {mpp} um/px and {source} {other}; members have to agree."
            raise ConfigError(msg)
    return float(mpp)  # type: ignore[arg-type]


def _padded(network: nn.Module, x_bchw: Tensor) -> Tensor:
    """Return what a network makes of images, which are enlarged first where they are smaller than it takes."""
    h, w = x_bchw.shape[-2:]
    bottom, right = max(0, _LEAST_SIDE - h), max(0, _LEAST_SIDE - w)
    if not (bottom or right):
        return network(x_bchw)
    return network(F.pad(x_bchw, (0, right, 0, bottom), mode="replicate"))[..., :h, :w]
