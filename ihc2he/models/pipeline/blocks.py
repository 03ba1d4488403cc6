"""Images that are predicted block by block, and what is known of a whole image meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ihc2he.errors import ConfigError
from ihc2he.images.masks import Ink, find_ink
from ihc2he.images.source import ArraySource, ImageSource
from ihc2he.models.handover import Job
from ihc2he.models.pipeline.assembly import Assembly, Strip
from ihc2he.models.pipeline.inference import Part, translate
from ihc2he.models.pipeline.sampling import tissue_windows
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.pipeline.translators import Translator, is_exact
from ihc2he.stain.white import White
from ihc2he.tiling.windows import Block

_OVERVIEW_PX = 1024  # longer side of a large image that is looked at as a whole
_SAMPLE_PX = 256  # px, sides of the windows that stand for a translated image
_SAMPLES = 16  # their number


class OpenImage:
    """An image of which blocks are under way.

    Args:
        tile: the image as the data gives it: `name`, `mpp` and `image`, or `open`, which returns its source.
        divide: from height, width and um/px to the blocks of an image.
        translators: by name.
        white: white point of the image; None: it is estimated.
        segmenters: those of each translator, by name; None: none prepares anything.

    Attributes:
        source: the IHC.
        inputs: what each translator starts from: the IHC, or the true H&E.
        states: what each translator has prepared from its whole input.
        prepared: what each segmenter has prepared, by the names of translator and segmenter.
        whites: white point of the H&E of each translator.
        strips: what methods have made so far, for whoever needs the whole.
        failed: whether a part of the file could not be read, so that the rest is void.

    Raises:
        ConfigError: for a translator that needs aligned H&E where there is none.
        DataError: if the image cannot be read.
    """

    def __init__(
        self,
        tile: Mapping[str, Any],
        divide: Callable[[int, int, float], Sequence[Block]],
        translators: Mapping[str, Translator],
        white: White | None,
        segmenters: Mapping[str, Mapping[str, Segmenter]] | None = None,
    ) -> None:
        self.tile = tile
        self.mpp = float(tile["mpp"])
        opened = tile.get("open")
        self.source: ImageSource = opened() if opened else ArraySource(tile["image"], self.mpp, tile["name"])
        self.inputs = {
            name: ArraySource(_he(tile, name), self.mpp, tile["name"]) if own.needs_he else self.source
            for name, own in translators.items()
        }
        if white is not None:
            for source in (self.source, *self.inputs.values()):
                source.white = white
        height, width = self.source.shape
        self.blocks = divide(height, width, self.mpp)
        self.ink: Ink = find_ink(self.source)
        self.states = {
            name: (own.prepare if len(self.blocks) == 1 else own.prepare_divided)(self.inputs[name])
            for name, own in translators.items()
        }
        self.prepared = prepared(
            tile["name"], self.inputs, self.mpp, translators, self.states, segmenters or {}, self.blocks
        )
        self._exact = {name for name, own in translators.items() if is_exact(own, self.mpp)}
        self.whites = {name: own.white_of(self.inputs[name]) for name, own in translators.items()}
        self.strips: list[dict[str, Strip]] = []
        self.failed = False
        self._assemblies: dict[str, Assembly] = {}
        self._row: list[tuple[Block, NDArray[np.uint8]]] = []  # no pieces: a cycle would keep the image in memory

    def add(self, piece: Piece, blend: bool = True) -> dict[str, Strip]:
        """Add the next block with its results; return what each method has made, if a row of blocks is complete.

        Args:
            piece: its jobs are waited for.
            blend: whether the H&E is needed.
        """
        if self._row and self._row[0][0].rows != piece.block.rows:
            self._row = []
        self._row.append((piece.block, piece.pixels))
        strips = {}
        for method, part in piece.parts.items():
            if method not in self._assemblies:
                exact = method.partition("+")[0] in self._exact
                self._assemblies[method] = Assembly(self.source.shape, self.blocks, self.ink, blend, exact)
            strip = self._assemblies[method].add(part)
            if strip is not None:
                strips[method] = strip
        return strips

    def rows(self) -> NDArray[np.uint8]:
        """Return the IHC of the last complete row of blocks, hxWx3."""
        rows = self._row[0][0].rows
        if isinstance(self.source, ArraySource):
            return self.source.image[rows]
        made = np.empty((rows.stop - rows.start, self.source.shape[1], 3), np.uint8)
        for block, pixels in self._row:
            made[:, block.columns] = pixels
        return made


def _he(tile: Mapping[str, Any], translator: str) -> NDArray[np.uint8]:
    """Return the true H&E of a tile."""
    if tile.get("he") is None:
        msg = (
            f"{tile['name']}: has no aligned H&E, which the translator '{translator}' needs; only simulated tissue "
            "has. Leave it out of model.use.translators."
        )
        raise ConfigError(msg)
    return tile["he"]


def prepared(
    name: str,
    inputs: Mapping[str, ImageSource],
    mpp: float,
    translators: Mapping[str, Translator],
    states: Mapping[str, Any],
    segmenters: Mapping[str, Mapping[str, Segmenter]],
    blocks: Sequence[Block],
) -> dict[tuple[str, str], Any]:
    """Return what each segmenter needs of a whole image, by the names of translator and segmenter.

    Args:
        name: of the image.
        inputs: what each translator starts from.
        mpp: um/px of the blocks.
        translators: by name.
        states: what each has prepared.
        segmenters: those of each translator, by name.
        blocks: of the image.
    """
    found: dict[tuple[str, str], Any] = {}
    for translator, own in segmenters.items():
        image = inputs[translator]
        whole = partial(colours, translators[translator], image, mpp, states[translator]) if len(blocks) > 1 else None
        found |= {(translator, segmenter): one.prepare(name, whole) for segmenter, one in own.items()}
    return found


@torch.no_grad()
def colours(translator: Translator, image: ImageSource, mpp: float, state: Any) -> Tensor:
    """Return pixels that stand for an image after translation, (1, 3, M, 1) in [0, 1].

    Args:
        translator: a translation is looked at in windows with tissue from all over the image; the image itself as a
            whole, reduced if it is large.
        image: what it starts from.
        mpp: um/px of its blocks.
        state: what the translator has prepared of the whole image.
    """
    if translator.role == "translation":
        source_mpp = image.mpp or mpp
        windows = tissue_windows(image, round(_SAMPLE_PX * mpp / source_mpp), _SAMPLES)
    else:
        source_mpp, windows = mpp, image.thumbnail(_OVERVIEW_PX)[None]
    device = next(translator.parameters(), torch.empty(0)).device
    x_bchw = torch.from_numpy(windows).to(device).permute(0, 3, 1, 2).float() / 255
    made_bchw = translate(translator, x_bchw, source_mpp, 0, [state] * len(windows))
    return made_bchw.transpose(0, 1).reshape(1, 3, -1, 1)


@dataclass(frozen=True)
class Piece:
    """A block of an image, and the results that are promised for it.

    Attributes:
        image: that it is a part of.
        number: which of its blocks.
        pixels: the IHC, hxwx3 uint8.
        parts: by method.
    """

    image: OpenImage
    number: int
    pixels: NDArray[np.uint8]
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def block(self) -> Block:
        """Where it lies."""
        return self.image.blocks[self.number]

    @property
    def is_last(self) -> bool:
        """Whether the image is complete with it."""
        return self.number + 1 == len(self.image.blocks)

    def jobs(self) -> list[Job]:
        """Return what has to be done before the results are there."""
        return [part.job for part in self.parts.values()]

    def prepared_of(self, translator: str, segmenters: Mapping[str, Segmenter]) -> dict[str, Any]:
        """Return what segmenters have prepared for this block, by name."""
        prepared = self.image.prepared
        return {name: own.of_block(prepared[translator, name], self.block) for name, own in segmenters.items()}

    def input_of(self, translator: str) -> NDArray[np.uint8]:
        """Return what a translator starts from, hxwx3 uint8."""
        source = self.image.inputs[translator]
        return self.pixels if source is self.image.source else source.read(self.block.rows, self.block.columns)


def pieces_of(image: OpenImage, number: int | None = None, pixels: NDArray[np.uint8] | None = None) -> list[Piece]:
    """Return the blocks of an image.

    Args:
        image: the image.
        number: only this block; None: all.
        pixels: its IHC; None: it is read from the image.
    """
    numbers = range(len(image.blocks)) if number is None else [number]
    return [
        Piece(image, k, image.source.read(image.blocks[k].rows, image.blocks[k].columns) if pixels is None else pixels)
        for k in numbers
    ]


def alike(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """Yield blocks that a network can take together: of one size and pixel size.

    Args:
        pieces: the blocks; those of an image stay in their order.
        most: largest number of blocks at a time.
    """
    groups: dict[tuple[Any, ...], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.pixels.shape, piece.image.mpp), []).append(piece)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]
