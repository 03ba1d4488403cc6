"""What finds nuclei on H&E, by one interface: a HoVer-Net of any origin, and the detector that learned nothing.

A segmenter turns images into maps, which may be averaged over views and networks, and maps into nuclei. The second
step is a plain function of `ihc2he.models.pipeline.finding`, so that worker processes can do it.
Shape suffixes: b = batch, c = colour, k = maps, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ihc2he.build import refuse_foreign
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import load_bundle
from ihc2he.models.checkpoint import read_checkpoint
from ihc2he.models.pipeline.finding import Found, find_in_density, find_on_hover_maps
from ihc2he.models.segmentation.hovernet.module import HV_CHANNELS, HoverNetSegmenter, joined
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.segmentation.hovernet.weights import load_reference
from ihc2he.tiling.windows import predict_tiled

PANNUKE = ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]  # types of the published checkpoints


class Segmenter(nn.Module):
    """Finds nuclei on H&E.

    Attributes:
        mpp: pixel size that it wants, um/px.
        classes: names of the types from 1; empty: it does not type.
        members: networks of an ensemble, whose maps the caller averages.
        hv_channels: maps that are vectors and turn with the image; None: there are none.
        find: from maps (K, H, W), as `reduced` leaves them, and um/px to nuclei; can be sent to another process.
    """

    mpp: float
    classes: Sequence[str] = ()
    members = 1
    hv_channels: tuple[int, int] | None = None
    find: Callable[[NDArray[np.float32], float], Found]

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return the maps of images in [0, 1] by one member, (N, K, H, W)."""
        raise NotImplementedError

    def votes(self, maps_bkhw: Tensor) -> Tensor | None:
        """Return which pixels the maps call nucleus, (N, H, W) of 0 and 1; None where maps alone do not say."""
        return None

    def reduced(self, maps_bkhw: Tensor) -> Tensor:
        """Return what `find` needs of averaged maps, which leaves the device and travels to another process."""
        return maps_bkhw


class Classical(Segmenter):
    """The detector of `ihc2he.nuclei.classical`: no learning, no types.

    Args:
        mpp: pixel size at which it looks, um/px; it was tuned at 0.5.
    """

    find = staticmethod(find_in_density)

    def __init__(self, mpp: float = 0.5) -> None:
        super().__init__()
        if not 0.01 <= mpp <= 100:
            msg = f"model.segmenters.classical.mpp={mpp}: expected um/px from 0.01 to 100."
            raise ConfigError(msg)
        self.mpp = mpp

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return the optical density of red, (N, 1, H, W)."""
        return -x_bchw[:, :1].float().clamp_min(1 / 255).log10()


class Hovernet(Segmenter):
    """One HoVer-Net, or several whose maps are averaged.

    Args:
        weights: a model bundle (folder or hub id), a checkpoint of a run, the authors' checkpoint for
            PanNuke (`hovernet_fast_pannuke_type_tf2pytorch.tar`), or a list of them, which have to agree in pixel
            size and types.
        mpp: pixel size, um/px, where the weights do not say: those of a run's checkpoint.
        window: px, the largest sides that are predicted at once.
        overlap: px, least overlap of windows, in which their maps are blended.

    Raises:
        ConfigError: without weights, or where those of a list do not go together.
        DataError: weights that cannot be read.
    """

    hv_channels = HV_CHANNELS

    def __init__(
        self, weights: str | Sequence[str] | None, mpp: float | None = None, window: int = 512, overlap: int = 64
    ) -> None:
        super().__init__()
        if not weights:
            msg = (
                "model.segmenters.hovernet.weights: no weights given. `python -m ihc2he.train experiment="
                "hovernet_pannuke` makes them (or experiment=hovernet_nuclei); then pass "
                "model.segmenters.hovernet.weights=RUN/bundles/segmenter, or use model.use.segmenters=[classical]."
            )
            raise ConfigError(msg)
        sources = [weights] if isinstance(weights, str) else list(weights)
        loaded = [_checked(source, _load(source), mpp) for source in sources]
        first = loaded[0]
        for source, other in zip(sources, loaded, strict=True):
            if other[1:] != first[1:]:
                msg = (
                    f"model.segmenters.hovernet.weights: {sources[0]} ({first.mpp} um/px, {first.classes}) and "
                    f"{source} ({other.mpp} um/px, {other.classes}) cannot be averaged: they differ in pixel size, "
                    "types or keep_unmarked."
                )
                raise ConfigError(msg)
        self.mpp, self.classes = float(first.mpp), first.classes  # type: ignore[arg-type]  # checked
        self.find = partial(find_on_hover_maps, keep_unmarked=first.keep_unmarked)
        self.networks = nn.ModuleList([entry.network for entry in loaded])
        self.networks.to(memory_format=torch.channels_last)
        self.members = len(loaded)
        self.window = window
        self.overlap = overlap

    def forward(self, x_bchw: Tensor, member: int = 0) -> Tensor:
        """Return probability of nucleus, HV maps and probabilities of types, float32."""
        network: Any = self.networks[member]

        def maps(window_bchw: Tensor) -> Tensor:
            return joined(network(window_bchw.contiguous(memory_format=torch.channels_last)))

        h, w = x_bchw.shape[-2:]
        least = network.encoder.stride  # the smallest sides that the network takes
        x_bchw = F.pad(x_bchw, (0, max(0, least - w), 0, max(0, least - h)), mode="replicate")
        return predict_tiled(maps, x_bchw, self.window, self.overlap, network.margin)[..., :h, :w]

    def votes(self, maps_bkhw: Tensor) -> Tensor:
        """Return the pixels whose probability of nucleus is at least one half."""
        return (maps_bkhw[:, 0] >= 0.5).float()

    def reduced(self, maps_bkhw: Tensor) -> Tensor:
        """Return the maps with the likeliest type in place of the probabilities of all."""
        if maps_bkhw.shape[1] == 3:
            return maps_bkhw
        # On the CPU `max` takes a fifth of the time of `argmax`.
        return torch.cat([maps_bkhw[:, :3], maps_bkhw[:, 3:].max(1, keepdim=True).indices.float()], 1)


class _Loaded(NamedTuple):
    network: HoverNet
    mpp: float | None
    classes: list[str]
    keep_unmarked: bool = True


def _load(source: str) -> _Loaded:
    """Return the HoVer-Net of a bundle, of a run's checkpoint, or of a published one."""
    if source.endswith((".tar", ".pth")):
        return _published(source)
    if source.endswith(".ckpt"):
        return _of_run(source)
    network, info = load_bundle(source)
    if not isinstance(network, HoverNet):
        msg = f"{source}: expected the bundle of a segmenter, found '{info.get('role')}' ({type(network).__name__})."
        raise ConfigError(msg)
    if not isinstance(info.get("classes"), list):
        msg = f"{source}: config.json has no list of classes, the names of the types; [] where there are none."
        raise DataError(msg)
    return _Loaded(network, info.get("mpp"), info["classes"], info.get("keep_unmarked", True))


def _of_run(path: str) -> _Loaded:
    content = read_checkpoint(path)
    hparams, state = content.get("hyper_parameters"), content["state_dict"]
    if not isinstance(hparams, Mapping) or "encoder" not in hparams:
        msg = f"{path}: holds no description of a HoVer-Net. Pass the bundle of a segmenter: RUN/bundles/segmenter."
        raise ConfigError(msg)
    try:
        refuse_foreign(hparams["encoder"])
        module = HoverNetSegmenter(**{**hparams, "ensemble": (), "weights": None})
        module.load_state_dict(state)
    except (ConfigError, TypeError, RuntimeError) as error:
        msg = f"{path}: its HoVer-Net cannot be built ({' '.join(str(error).split())[:200]}). Pass the run's bundle."
        raise DataError(msg) from error
    return _Loaded(module.network.eval(), None, module.classes, hparams["keep_unmarked"])


def _published(path: str) -> _Loaded:
    """Return the network of the official checkpoint for PanNuke, in the form that keeps the size."""
    encoder: Mapping[str, Any] = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet"}
    network = HoverNet(encoder, len(PANNUKE))
    load_reference(network, path)
    return _Loaded(network.eval(), 0.25, PANNUKE)


def _checked(source: str, loaded: _Loaded, said: float | None) -> _Loaded:
    """Return what was loaded with its pixel size, which the configuration may say where the weights do not."""
    mpp = loaded.mpp or said
    if mpp is None:
        msg = (
            f"{source}: does not say its pixel size. Pass model.segmenters.hovernet.mpp in um/px, or its run's bundle."
        )
        raise ConfigError(msg)
    if said not in (None, mpp):
        msg = f"model.segmenters.hovernet.mpp={said}: {source} was trained at {mpp} um/px. Leave the setting out."
        raise ConfigError(msg)
    return loaded._replace(mpp=mpp)
