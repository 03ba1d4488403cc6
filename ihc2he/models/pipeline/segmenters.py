"""Segmenters of H&E with one interface: any trained segmenter, and the classical detector, which is not trained.

A segmenter turns images into maps, which may be averaged over views and networks, and maps into nuclei. The second
step can be sent to worker processes.
Shape suffixes: b = batch, c = colour, k = maps, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ihc2he.errors import ConfigError
from ihc2he.models.folding import folded
from ihc2he.models.pipeline.finding import find_in_density
from ihc2he.models.segmentation.loading import Loaded, changed_decoder, load_segmenter
from ihc2he.nuclei.decoders.base import Decoder, Found
from ihc2he.stain.white import White
from ihc2he.tiling.augmentation import turned_back
from ihc2he.tiling.resampling import resized_labels
from ihc2he.tiling.windows import Block, predict_tiled


class Segmenter(nn.Module):
    """Finds nuclei on H&E.

    Attributes:
        mpp: pixel size that it needs, um/px; None: any.
        classes: names of the types from 1; empty: it gives no types.
        members: networks of an ensemble, whose maps the caller averages.
        averaged: whether its maps may be averaged over views and over the members of a translator.
        reads_images: whether it looks at images; if not, it is used without translation only.
        files: arguments that name files; their content is in the weights and in `facts`.
        decoder: of its maps; None: it has none.
        node: that builds the decoder.
        find: from maps (K, H, W), as `reduced` leaves them, and um/px to nuclei; can be sent to another process.
    """

    mpp: float | None
    classes: Sequence[str] = ()
    members = 1
    averaged = True
    reads_images = True
    files: tuple[str, ...] = ()
    decoder: Decoder | None = None
    node: Mapping[str, Any] | None = None
    find: Callable[[NDArray[np.float32], float], Found]

    def fold(self) -> None:
        """Make it faster where that can be; its weights are then no longer those of its files."""

    def prepare(self, name: str, colours: Callable[[], Tensor] | None) -> Any:
        """Return what `forward` needs of a whole image, once, before its blocks are segmented; None: nothing.

        Args:
            name: of the image.
            colours: returns pixels that stand for the whole image after translation, (1, 3, M, 1) in [0, 1]; None: the
                image has only one block.

        Raises:
            DataError: if there is nothing for this image.
        """
        return None

    def of_block(self, state: Any, block: Block) -> Any:
        """Return what `forward` needs for a block, of what `prepare` has returned for its image."""
        return state

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the maps of images in [0, 1] by one member, (N, K, H, W).

        Args:
            x_bchw: the images, or blocks of them.
            member: index below `members`.
            states: what `of_block` has returned for each; empty: nothing was prepared.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return what results depend on besides arguments and weights, as plain values."""
        known = {"mpp": self.mpp, "classes": list(self.classes), "members": self.members}
        return known if self.decoder is None else known | {"decoder": self.node}

    def turned_back(self, maps_bkhw: Tensor, view: int) -> Tensor:
        """Return the maps of images in another view, turned back to the original images."""
        return turned_back(maps_bkhw, view, None) if self.decoder is None else self.decoder.turned_back(maps_bkhw, view)

    def votes(self, maps_bkhw: Tensor) -> Tensor | None:
        """Return which pixels the maps call nucleus, (N, H, W) of 0 and 1; None if the maps alone do not show it."""
        return None if self.decoder is None else self.decoder.votes(maps_bkhw)

    def reduced(self, maps_bkhw: Tensor) -> Tensor:
        """Return the part of averaged maps that `find` needs and that is sent to another process."""
        return maps_bkhw if self.decoder is None else self.decoder.reduced(maps_bkhw)

    def corrected(self, maps_khw: NDArray[np.float32], white: White, ink_hw: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the reduced maps of a tile, adapted to its whole image.

        Args:
            maps_khw: as `reduced` returns them.
            white: white point of the H&E.
            ink_hw: where ink covers the tile; nuclei there are dropped later.
        """
        return maps_khw


class Classical(Segmenter):
    """The detector of `ihc2he.nuclei.classical`: not trained, no types.

    Args:
        mpp: pixel size that it works at, um/px; it was tuned at 0.5.
    """

    find = staticmethod(find_in_density)

    def __init__(self, mpp: float = 0.5) -> None:
        super().__init__()
        if not 0.01 <= mpp <= 100:
            msg = f"model.segmenters.classical.mpp={mpp}: expected um/px from 0.01 to 100."
            raise ConfigError(msg)
        self.mpp = mpp

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the optical density of red, (N, 1, H, W)."""
        return -x_bchw[:, :1].float().clamp_min(1 / 255).log10()

    def corrected(self, maps_khw: NDArray[np.float32], white: White, ink_hw: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return densities counted from the white point, and NaN under ink, so that ink does not affect thresholds."""
        od_khw = np.maximum(maps_khw + np.float32(np.log10(white[0] / 255)), 0)
        od_khw[:, resized_labels(ink_hw.view(np.uint8), *od_khw.shape[1:]) > 0] = np.nan
        return od_khw


class Learned(Segmenter):
    """One trained segmenter, or several whose maps are averaged.

    Args:
        weights: a model bundle (folder, hub id or `builtin`), a checkpoint of a run, the authors' checkpoint of
            HoVer-Net for PanNuke (`hovernet_fast_pannuke_type_tf2pytorch.tar`), or a list of them, which must have
            the same pixel size, types and decoder.
        mpp: pixel size, um/px, if the weights do not contain it.
        window: px, the largest sides that are predicted at once.
        overlap: px, least overlap of windows, in which their maps are blended.
        decoder: settings of the decoder that replace those of the weights; null = as the weights have it.
        name: under which the configuration has it, for messages.

    Raises:
        ConfigError: without weights, or if those of a list do not fit together.
        DataError: weights that cannot be read.
    """

    files = ("weights",)
    decoder: Decoder
    node: dict[str, Any]

    def __init__(
        self,
        weights: str | Sequence[str] | None,
        mpp: float | None = None,
        window: int = 512,
        overlap: int = 64,
        decoder: Mapping[str, Any] | None = None,
        name: str = "hovernet",
    ) -> None:
        super().__init__()
        key = f"model.segmenters.{name}"
        if not weights:
            msg = (
                f"{key}.weights: no weights given. `python -m ihc2he.train experiment={name}_pannuke` makes them; then "
                f"pass {key}.weights=RUN/bundles/segmenter. Or use model.use.segmenters=[centres], "
                "which has weights, or [classical]."
            )
            raise ConfigError(msg)
        sources = [weights] if isinstance(weights, str) else list(weights)
        settings = {name: value for name, value in (decoder or {}).items() if value is not None}
        loaded = [_checked(key, source, load_segmenter(source, settings), mpp) for source in sources]
        first = loaded[0]
        for source, other in zip(sources, loaded, strict=True):
            if other[1:4] != first[1:4]:
                msg = (
                    f"{key}.weights: {sources[0]} ({first.mpp} um/px, {first.classes}) and "
                    f"{source} ({other.mpp} um/px, {other.classes}) cannot be averaged: they differ in pixel size, "
                    "types or decoder."
                )
                raise ConfigError(msg)
        self.mpp, self.classes = float(first.mpp), first.classes  # type: ignore[arg-type]  # checked
        self.source, self.decoder, self.node = sources[0], first.decoder, first.node
        self.find = self.decoder.find
        self.networks = nn.ModuleList([entry.network for entry in loaded])
        self.networks.to(memory_format=torch.channels_last)
        self.members = len(loaded)
        self.window = window
        self.overlap = overlap

    def fold(self) -> None:
        """Replace the networks by faster ones, also in what `with_settings` returned."""
        network: Any
        for member, network in enumerate(self.networks):
            self.networks[member] = folded(network).to(memory_format=torch.channels_last)

    def with_settings(self, settings: Mapping[str, Any]) -> Learned:
        """Return this segmenter with other settings of its decoder; it shares the networks.

        Raises:
            ConfigError: if the decoder has no such settings.
        """
        other = copy(self)
        other.decoder, other.node = changed_decoder(self.source, self.decoder, self.node, settings)
        other.find = other.decoder.find
        return other

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the joined maps, float32."""
        network: Any = self.networks[member]

        def maps(window_bchw: Tensor) -> Tensor:
            return self.decoder.join(network(window_bchw.contiguous(memory_format=torch.channels_last)))

        h, w = x_bchw.shape[-2:]
        least = network.stride  # the smallest sides that the network accepts
        x_bchw = F.pad(x_bchw, (0, max(0, least - w), 0, max(0, least - h)), mode="replicate")
        return predict_tiled(maps, x_bchw, self.window, self.overlap, network.margin)[..., :h, :w]


def _checked(key: str, source: str, loaded: Loaded, said: float | None) -> Loaded:
    """Return what was loaded with its pixel size, from the weights or from the configuration."""
    mpp = loaded.mpp or said
    if mpp is None:
        msg = f"{source}: does not say its pixel size. Pass {key}.mpp in um/px, or its run's bundle."
        raise ConfigError(msg)
    if said not in (None, mpp):
        msg = f"{key}.mpp={said}: {source} was trained at {mpp} um/px. Leave the setting out."
        raise ConfigError(msg)
    return loaded._replace(mpp=mpp)
