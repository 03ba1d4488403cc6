"""Translators from IHC to H&E with one interface: trained networks, and baselines that are not trained.

Shape suffixes: b = batch, c = colour, h, w = height, width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images
from ihc2he.images.source import ArraySource, ImageSource
from ihc2he.models.pipeline.method import Role
from ihc2he.models.pipeline.sampling import tissue_windows
from ihc2he.models.pixels import pixels
from ihc2he.models.translation.loading import common_mpp, load_generator
from ihc2he.models.translation.moments import Moments, fixed, normalising, recorded
from ihc2he.stain.normalise import LIGHT, Method, Statistics, pooled, statistics, target_statistics, with_statistics
from ihc2he.stain.recolour import recolour
from ihc2he.stain.white import FULL, White, relative_to_white
from ihc2he.tiling.resampling import resampled_size, resized
from ihc2he.tiling.windows import predict_local, predict_tiled

log = logging.getLogger(__name__)

_LEAST_SIDE = 16  # px, what the generators can translate
STATISTICS = ("image", "tile")
_SAMPLES = 16  # windows for the statistics of an image
_SAMPLE_PX = 256  # px, their sides at the pixel size of the generator
_THUMBNAIL_PX = 4096  # px, longer side of what they are taken of for a larger one


class Translator(nn.Module):
    """Translates IHC to H&E.

    Attributes:
        mpp: pixel size that it needs, um/px; None: any.
        members: networks of an ensemble; the caller averages what becomes of their images, never the images.
        needs_he: it gets the tile's aligned H&E instead of its IHC.
        role: in a comparison: a "translation" is compared with "none" and "ceiling".
        reach: px at its pixel size, how far a pixel of its H&E sees; blocks of an image overlap by twice that, and each
            keeps its core. None: not known, or everything; blocks are blended where they overlap.
        stride: likewise, by multiples of which an image may be shifted without changing its H&E; blocks begin there.
        files: arguments that name files; their content is in the weights and in `facts`.
    """

    mpp: float | None = None
    members: int = 1
    needs_he: bool = False
    role: Role = "translation"
    reach: int | None = None
    stride: int = 1
    files: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()

    def prepare(self, image: ImageSource) -> Any:
        """Return what `forward` needs from a whole image, once, before its blocks are translated; None: nothing."""
        return None

    def prepare_divided(self, image: ImageSource) -> Any:
        """Like `prepare`, for an image that is translated in several blocks."""
        return self.prepare(image)

    def white_of(self, image: ImageSource) -> White:
        """Return the white point of the translated H&E of an image."""
        return FULL

    def facts(self) -> dict[str, Any]:
        """Return what results depend on besides arguments and weights, as plain values."""
        return {"mpp": self.mpp, "members": self.members}

    def of_member(self, member: int, states: Sequence[Any]) -> tuple[Translator, int, Sequence[Any]]:
        """Return the translator that a member belongs to, its number there, and the states for it."""
        return self, member, states

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the H&E of images, or of blocks of them, by one member.

        Args:
            x_bchw: (N, 3, H, W) floats in [0, 1], any H and W.
            member: index below `members`.
            states: what `prepare` returned for each image; empty: nothing was prepared, and each is a whole image.

        Returns:
            (N, 3, H, W) float32 in [0, 1].
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Log a summary at the end of a test or prediction."""


def is_exact(translator: Translator, mpp: float) -> bool:
    """Return whether blocks of images of this pixel size can be translated like the whole, if they overlap enough."""
    return translator.reach is not None and translator.mpp in (None, mpp)


class Identity(Translator):
    """No translation: the segmenter gets the IHC itself, for comparison."""

    role: Role = "none"

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the images."""
        return x_bchw

    def white_of(self, image: ImageSource) -> White:
        """Return the white point of the image."""
        return image.white


class Rendered(Identity):
    """The true H&E of simulated tissue, as if the translation were perfect: the upper limit."""

    needs_he = True
    role: Role = "ceiling"


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

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the recoloured images, differentiable; a state is the white point of an image."""
        if states:
            scale_bc11 = 255 / torch.tensor(states, device=x_bchw.device)[:, :, None, None]
            x_bchw = (x_bchw * scale_bc11).clamp(0, 1)
        return recolour(x_bchw, **self.constants)

    def prepare(self, image: ImageSource) -> White:
        """Return the white point of the image."""
        return image.white


# ------------------------------------------------------------------ classical normalisation


class _Normalised(Translator):
    """Adapts the colours of each image to a target; an image without statistics stays unchanged.

    The statistics are those of the whole image, or of a thumbnail of a large one, so that all blocks are treated the
    same.
    """

    method: Method
    files = ("target", "lab_mean", "lab_std")

    def __init__(self, target: str | None, given: Statistics | None) -> None:
        super().__init__()
        found = given if target is None else pooled(self.method, _target_images(target))
        self.target = target_statistics(self.method, found)
        self.seen = self.unchanged = 0

    def facts(self) -> dict[str, Any]:
        """Return the statistics of the target too."""
        return super().facts() | {"target": [np.round(values, 6).tolist() for values in self.target]}

    def prepare(self, image: ImageSource) -> tuple[Statistics | None, White]:
        """Return the statistics of the image, or None if they are meaningless, and its white point."""
        pixels = image.overview(_THUMBNAIL_PX)
        own = statistics(self.method, self._lit(pixels, image.white))
        self.seen += 1
        self.unchanged += own is None
        return own, image.white

    def _lit(self, image: NDArray[np.uint8], white: White) -> NDArray[np.uint8]:
        """Return an image with its glass at the value the method expects; Reinhard's does not use optical densities."""
        return relative_to_white(image, white, LIGHT) if self.method == "macenko" else image

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the normalised images."""
        images = pixels(x_bchw)
        states = states or [self.prepare(ArraySource(image)) for image in images]
        made = np.stack(
            [
                image if own is None else with_statistics(self.method, self.target, own, self._lit(image, white))
                for image, (own, white) in zip(images, states, strict=True)
            ]
        )
        return torch.from_numpy(made).to(x_bchw.device).permute(0, 3, 1, 2).float() / 255

    def finish(self) -> None:
        """Warn about the images that stayed unchanged, and reset the counters."""
        if self.unchanged:
            log.warning(
                "The translator %s left %d of %d images unchanged: too little tissue, or of one colour.",
                self.method, self.unchanged, self.seen,
            )  # fmt: skip
        self.seen = self.unchanged = 0


class Reinhard(_Normalised):
    """Means and standard deviations of the channels in CIE Lab (Reinhard et al., IEEE CG&A 2001), by torchstain.

    Args:
        target: an image of H&E, or a folder of them; null: the next two are used.
        lab_mean: of the target.
        lab_std: of the target.
    """

    method = "reinhard"

    def __init__(self, target: str | None, lab_mean: Sequence[float], lab_std: Sequence[float]) -> None:
        super().__init__(target, (np.asarray(lab_mean), np.asarray(lab_std)))


class Macenko(_Normalised):
    """Stain vectors by singular values, and their strengths (Macenko et al., ISBI 2009), by torchstain.

    Args:
        target: an image of H&E, or a folder of them; null: torchstain's published reference.
    """

    method = "macenko"

    def __init__(self, target: str | None = None) -> None:
        super().__init__(target, None)


def _target_images(target: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a file or folder, HxWx3 uint8 RGB.

    Raises:
        DataError: with the path, if there are none or one cannot be read.
    """
    path = Path(target)
    paths = [path / name for name in find_images(path)] if path.is_dir() else [path]
    if not paths:
        msg = f"{path}: no image in this folder; expected H&E tiles as PNG, JPEG or TIFF to take the colours from."
        raise DataError(msg)
    for file in track(paths, "Colours of the target", disable=len(paths) == 1):
        try:
            image = read_image(file)
        except DataError as error:
            msg = f"{file}: no readable image to take the colours of H&E from. {error}"
            raise DataError(msg) from error
        yield image


# ------------------------------------------------------------------ learned translation


class LearnedTranslator(Translator):
    """A trained network from IHC to H&E, such as the generator of a CycleGAN or of CUT, or an ensemble of them.

    Args:
        weights: a bundle (folder or hub id), a checkpoint of a run, or a list of them, which must have the same pixel
            size.
        mpp: um/px, if the weights do not contain it, such as those of a checkpoint.
        window: px, the largest sides that are translated at once.
        overlap: px, least overlap of windows, in which their images are blended. A network with a `halo`, such as
            `LocalUNet`, sees only so far: its windows overlap by twice that instead, and give exactly the whole.
        statistics: of instance normalisation where an image is translated in several blocks: `image`: one for all
            blocks, from windows with tissue all over the image, so that blocks fit together; `tile`: of each window.
        name: under which the configuration has it, for messages.

    Raises:
        ConfigError: without weights or pixel size, with weights that do not fit together or have another direction, for
            a window that is too small for a halo, or for unknown statistics.
        DataError: for weights that cannot be read.

    Attributes:
        stains: from what to what the network translates.
    """

    files = ("weights",)
    stains: tuple[str, str] = ("IHC", "H&E")

    def __init__(
        self,
        weights: str | Sequence[str] | None,
        mpp: float | None = None,
        window: int = 1024,
        overlap: int = 128,
        name: str = "cyclegan",
        statistics: str = "image",
    ) -> None:
        super().__init__()
        key = f"model.translators.{name}"
        if statistics not in STATISTICS:
            msg = f"{key}.statistics={statistics}: expected image or tile.{did_you_mean(statistics, STATISTICS)}"
            raise ConfigError(msg)
        if not weights:
            msg = (
                f"{key}.weights is not given. `python -m ihc2he.train experiment={name}_bci` (or {name}_unpaired) "
                f"writes the generator to RUN/bundles/g_ihc2he; pass that folder: {key}.weights=PATH."
            )
            raise ConfigError(msg)
        sources = [weights] if isinstance(weights, str) else list(weights)
        loaded = [load_generator(source, *self.stains) for source in sources]
        self.mpp = common_mpp(dict(zip(sources, (one.mpp for one in loaded), strict=True)), mpp, key)
        self.members = len(loaded)
        self.networks = nn.ModuleList(one.network for one in loaded)
        self.networks.requires_grad_(False).to(memory_format=torch.channels_last)
        self.ranges = [one.value_range for one in loaded]
        self.window, self.overlap, self.statistics = window, overlap, statistics
        halos, strides = zip(*(_reach(network) for network in self.networks), strict=True)
        self.reach = None if None in halos else max(halos)
        self.stride = math.lcm(*strides)
        for source, network in zip(sources, self.networks, strict=True):
            halo, stride = _reach(network)
            if halo is not None and window < (least := 2 * -(-halo // stride) * stride + stride):
                msg = f"{key}.window={window}: {source} sees {halo} px around each pixel; expected {least} or more."
                raise ConfigError(msg)

    @torch.no_grad()
    def prepare_divided(self, image: ImageSource) -> list[list[Moments]] | None:
        """Return the statistics of each member's instance normalisations, or None if there are none."""
        if self.statistics == "tile" or not any(normalising(network) for network in self.networks):
            return None
        assert self.mpp is not None
        assert image.mpp is not None
        windows = tissue_windows(image, round(_SAMPLE_PX * self.mpp / image.mpp), _SAMPLES)
        x_bchw = torch.from_numpy(windows).permute(0, 3, 1, 2).to(next(self.parameters()).device).float() / 255
        height, width = resampled_size(x_bchw.shape[-2], x_bchw.shape[-1], image.mpp, self.mpp)
        x_bchw = resized(x_bchw, height, width)
        states = []
        for network, (low, high) in zip(self.networks, self.ranges, strict=True):
            with recorded(network) as moments:
                _padded(network, (x_bchw * (high - low) + low).contiguous(memory_format=torch.channels_last))
            states.append(moments)
        return states

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the images of a generator; a state has the statistics of an image, or None."""
        if all(state is None for state in states):
            return self._generated(x_bchw, member)
        made = []
        for x_1chw, state in zip(x_bchw.split(1), states, strict=True):
            with nullcontext() if state is None else fixed(self.networks[member], state[member]):
                made.append(self._generated(x_1chw, member))
        return torch.cat(made)

    def _generated(self, x_bchw: Tensor, member: int) -> Tensor:
        low, high = self.ranges[member]

        def generate(window_bchw: Tensor) -> Tensor:
            return _padded(self.networks[member], window_bchw.contiguous(memory_format=torch.channels_last)).float()

        x_bchw = x_bchw * (high - low) + low
        halo, stride = _reach(self.networks[member])
        # One window of this size keeps a device busy; more at a time only cost memory.
        if halo is None:
            made_bchw = predict_tiled(generate, x_bchw, self.window, self.overlap, batch_size=1)
        else:
            made_bchw = predict_local(generate, x_bchw, self.window, halo, stride)
        return ((made_bchw - low) / (high - low)).clamp(0, 1)


def _reach(network: nn.Module) -> tuple[int | None, int]:
    """Return how far a pixel of a network sees, px, and by multiples of what windows may shift; None: everything."""
    known: Any = network
    return getattr(known, "halo", None), getattr(known, "stride", 1)


def _padded(network: nn.Module, x_bchw: Tensor) -> Tensor:
    """Return the output of a network for images; images that are too small for it are enlarged first."""
    h, w = x_bchw.shape[-2:]
    least = max(_LEAST_SIDE, 2 * _reach(network)[1])
    bottom, right = max(0, least - h), max(0, least - w)
    if not (bottom or right):
        return network(x_bchw)
    return network(F.pad(x_bchw, (0, right, 0, bottom), mode="replicate"))[..., :h, :w]
