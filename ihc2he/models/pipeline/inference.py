"""From an IHC tile to nuclei: translate, segment, average over an ensemble, and assemble large tiles.

Shape suffixes: b = batch, c = colour, k = maps, h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ihc2he.models.handover import Handover, Job
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.pipeline.translators import Translator
from ihc2he.nuclei.decoders.base import find_and_vote
from ihc2he.stain.white import FULL, White
from ihc2he.tiling.augmentation import turned
from ihc2he.tiling.resampling import resampled_size, resized
from ihc2he.tiling.windows import cores, hann_weight, owned, window_starts


@dataclass(frozen=True)
class TileNuclei:
    """The nuclei of a tile, on its own grid.

    Attributes:
        inst_hw: ids 1..N, 0 = background.
        types_n: from 1, 0 = none known.
        shares_n: share of the pixels that are of that type.
        scores_n: how sure the segmenter is, in [0, 1].
        agreement_n: share of ensemble members and views that call its pixels nucleus; None if there is only one.
        centres_n2: (x, y) in px.
    """

    inst_hw: NDArray[np.int32]
    types_n: NDArray[np.int64]
    shares_n: NDArray[np.float32]
    scores_n: NDArray[np.float32]
    agreement_n: NDArray[np.float32] | None
    centres_n2: NDArray[np.float64]


class Maps(NamedTuple):
    """The maps of a batch of tiles of the same size, before nuclei are separated.

    Attributes:
        he_bchw: the H&E that was segmented, of the first member, on the tiles' grid, in [0, 1].
        maps_bkhw: mean over members and views, on the segmenter's grid.
        votes_bhw: share of members and views that call a pixel nucleus; None with a single one.
    """

    he_bchw: Tensor
    maps_bkhw: Tensor
    votes_bhw: Tensor | None


def translate(
    translator: Translator, x_bchw: Tensor, mpp: float, member: int = 0, states: Sequence[Any] = ()
) -> Tensor:
    """Return the H&E of tiles at the translator's pixel size, in [0, 1].

    Args:
        translator: from IHC to H&E.
        x_bchw: (N, 3, H, W) in [0, 1].
        mpp: pixel size of the tiles, um/px.
        member: of the translator.
        states: for each tile, what the translator has prepared from its whole image.
    """
    if translator.mpp is not None:
        height, width = resampled_size(x_bchw.shape[-2], x_bchw.shape[-1], mpp, translator.mpp)
        x_bchw = resized(x_bchw, height, width)
    if all(state is None for state in states):
        return translator(x_bchw, member).float()
    return translator(x_bchw, member, states).float()


@torch.no_grad()
def predict(
    translator: Translator,
    segmenters: Mapping[str, Segmenter],
    x_bchw: Tensor,
    mpp: float,
    views: Sequence[int] = (0,),
    states: Sequence[Any] = (),
) -> dict[str, Maps]:
    """Return the maps of each segmenter for tiles after their translation.

    A tile in another view is translated and segmented in that view, and its maps are turned back.

    Args:
        translator: from IHC to H&E; it runs once for all segmenters.
        segmenters: by name.
        x_bchw: (N, 3, H, W) in [0, 1].
        mpp: pixel size of the tiles, um/px.
        views: of `ihc2he.tiling.augmentation.VIEWS`; the first has to be 0, the tile as it is.
        states: for each tile, what the translator has prepared from its whole image.
    """
    height, width = x_bchw.shape[-2:]
    sums: dict[str, Tensor] = {}
    votes: dict[str, Tensor] = {}
    he_bchw = x_bchw
    for member in range(translator.members):
        for view in views:
            seen_bchw = translate(translator, turned(x_bchw, view), mpp, member, states)
            if member == 0 and view == 0:
                he_bchw = resized(seen_bchw, height, width)
            for name, segmenter in segmenters.items():
                size = resampled_size(height, width, mpp, segmenter.mpp)
                at_size_bchw = resized(seen_bchw, *(size[::-1] if view & 4 else size))
                for own in range(segmenter.members):
                    maps_bkhw = segmenter.turned_back(segmenter(at_size_bchw, own), view)
                    vote_bhw = segmenter.votes(maps_bkhw)
                    sums[name] = sums[name] + maps_bkhw if name in sums else maps_bkhw
                    if vote_bhw is not None:
                        votes[name] = votes[name] + vote_bhw if name in votes else vote_bhw
    result = {}
    for name, segmenter in segmenters.items():
        n = translator.members * len(views) * segmenter.members
        result[name] = Maps(he_bchw, sums[name] / n, votes[name] / n if n > 1 and name in votes else None)
    return result


# ------------------------------------------------------------------ large tiles


class Block(NamedTuple):
    """A part of a tile that is predicted at once.

    Attributes:
        rows: of the tile.
        columns: of the tile.
        core_y: rows whose nuclei this block keeps, from and to.
        core_x: likewise for columns.
    """

    rows: slice
    columns: slice
    core_y: tuple[int, int]
    core_x: tuple[int, int]


def divide(height: int, width: int, side: int, overlap: int) -> list[Block]:
    """Return the blocks that cover a tile; a single one if it is not larger than a block.

    Args:
        height: of the tile, px.
        width: of the tile, px.
        side: of a block, px.
        overlap: least overlap of blocks, px; must exceed the largest nucleus.

    >>> [(block.rows.start, block.core_y) for block in divide(100, 50, 64, 16)]
    [(0, (0, 50)), (36, (50, 100))]
    """

    def axis(length: int) -> Iterator[tuple[slice, tuple[int, int]]]:
        starts = window_starts(length, side, overlap)
        for start, core in zip(starts, cores(starts, side, length), strict=True):
            yield slice(start, min(start + side, length)), core

    return [Block(rows, cols, y, x) for rows, y in axis(height) for cols, x in axis(width)]


class Whole(NamedTuple):
    """Properties of a whole image that are needed before its blocks are predicted.

    Attributes:
        white: white point of the image.
        ink_hw: where ink covers it.
    """

    white: White
    ink_hw: NDArray[np.bool_]


class Part(NamedTuple):
    """The results of a block.

    Attributes:
        he: hxwx3 uint8, the H&E that was segmented.
        job: promises its nuclei, on the same grid, and with an ensemble their agreement.
    """

    he: NDArray[np.uint8]
    job: Job


def submit(
    handover: Handover[Any],
    segmenter: Segmenter,
    maps: Maps,
    whites: Sequence[White] = (),
    inks: Sequence[NDArray[np.bool_]] = (),
) -> list[Part]:
    """Return the parts of a batch; workers find their nuclei in the meantime.

    Args:
        handover: to the workers that find nuclei.
        segmenter: that made the maps.
        maps: of the batch.
        whites: for each tile, the white point of the H&E of its image; empty: 255.
        inks: for each tile, hxw, where ink covers it; empty: nowhere.
    """
    he_bhwc = (maps.he_bchw * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    maps_bkhw = segmenter.reduced(maps.maps_bkhw).cpu().numpy()
    votes = [None] * len(he_bhwc) if maps.votes_bhw is None else maps.votes_bhw.cpu().numpy()
    parts = []
    whites = whites or [FULL] * len(he_bhwc)
    inks = inks or [np.zeros(he.shape[:2], bool) for he in he_bhwc]
    for he, maps_khw, votes_hw, white, ink_hw in zip(he_bhwc, maps_bkhw, votes, whites, inks, strict=True):
        maps_khw = segmenter.corrected(maps_khw, white, ink_hw)  # noqa: PLW2901
        given = (segmenter.find, maps_khw, votes_hw, segmenter.mpp, he.shape[:2])
        nbytes = maps_khw.nbytes + 3 * he.nbytes  # with IHC, H&E and instances, which wait too
        parts.append(Part(he, handover.submit(find_and_vote, *given, nbytes=nbytes)))
    return parts


def assemble(
    shape: tuple[int, int], blocks: Sequence[Block], parts: Sequence[Part], ink_hw: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], TileNuclei]:
    """Wait for the results of all blocks, and return the H&E and the nuclei of the tile.

    The H&E is blended where blocks overlap. A nucleus seen by several blocks is kept by the one in whose core its
    centre lies. A nucleus whose centre is under ink is dropped.

    Args:
        shape: height and width of the tile, px.
        blocks: as `divide` gives them.
        parts: one for each block.
        ink_hw: where ink covers the tile; None: nowhere.
    """
    inst_hw = np.zeros(shape, np.int32)
    kept: list[list[NDArray]] = []
    total = 0
    for block, part in zip(blocks, parts, strict=True):
        found, agreement_n = part.job.result()
        place = np.s_[block.rows, block.columns]
        corner = (block.columns.start, block.rows.start)
        centres_n2 = found.centres_n2 + corner
        kept_n = owned(centres_n2, block.core_x, block.core_y)
        if ink_hw is not None and ink_hw.any():
            columns_n, rows_n = np.clip(np.rint(centres_n2).astype(np.intp), 0, np.array(shape[::-1]) - 1).T
            kept_n &= ~ink_hw[rows_n, columns_n]
        number_n = np.where(kept_n, np.arange(len(centres_n2)) + total + 1, 0)
        drawn_hw = np.concatenate([[0], number_n]).astype(np.int32)[found.nuclei.inst_hw]
        inst_hw[place] = np.where(inst_hw[place] > 0, inst_hw[place], drawn_hw)
        total += len(centres_n2)
        own = (found.nuclei.types_n, found.nuclei.shares_n, found.scores_n, agreement_n, centres_n2)
        kept.append([column for column in own if column is not None])
    # Neither those of another block's core nor those that lie between the pixels of a coarser grid.
    present = np.bincount(inst_hw.ravel(), minlength=total + 1)[1:] > 0
    ids = np.concatenate([[0], np.cumsum(present) * present]).astype(np.int32)
    types_n, shares_n, scores_n, *agreement, centres_n2 = (
        np.concatenate(column)[present] for column in zip(*kept, strict=True)
    )
    nuclei = TileNuclei(ids[inst_hw], types_n, shares_n, scores_n, agreement[0] if agreement else None, centres_n2)
    return _blended(shape, blocks, parts), nuclei


def _blended(shape: tuple[int, int], blocks: Sequence[Block], parts: Sequence[Part]) -> NDArray[np.uint8]:
    if len(parts) == 1:
        return parts[0].he
    image_hwc, weight_hw1 = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 1), np.float32)
    for block, part in zip(blocks, parts, strict=True):
        weight = hann_weight(part.he.shape[0])[:, None, None] * hann_weight(part.he.shape[1])[:, None]
        image_hwc[block.rows, block.columns] += weight * part.he
        weight_hw1[block.rows, block.columns] += weight
    return np.rint(image_hwc / weight_hw1).astype(np.uint8)
