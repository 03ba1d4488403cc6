"""From the blocks of an image to its nuclei: results leave as strips, from top to bottom, as soon as they are final.

Shape suffixes: c = colour, h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.images.masks import Ink
from ihc2he.models.pipeline.inference import Part
from ihc2he.tiling.windows import Block, hann_weight, owned


@dataclass(frozen=True)
class TileNuclei:
    """The nuclei of an image, or of a strip of it.

    Attributes:
        inst_hw: ids from 1, 0 = background; in a strip they count on from those above.
        types_n: from 1, 0 = none known.
        shares_n: share of the pixels that are of that type.
        scores_n: how sure the segmenter is, in [0, 1].
        agreement_n: share of ensemble members and views that call its pixels nucleus; None if there is only one.
        centres_n2: (x, y) in px of the image.
    """

    inst_hw: NDArray[np.int32]
    types_n: NDArray[np.int64]
    shares_n: NDArray[np.float32]
    scores_n: NDArray[np.float32]
    agreement_n: NDArray[np.float32] | None
    centres_n2: NDArray[np.float64]


class Strip(NamedTuple):
    """What is final after a row of blocks.

    Attributes:
        top: first row of the image that is in it.
        he: hxWx3 uint8, the H&E of the final rows, blended where blocks overlap; None if it was not asked for.
        inst_hw: ids in the final rows.
        nuclei: those that this row of blocks has found. Their map may reach below the final rows, because the next row
            of blocks overlaps this one.
    """

    top: int
    he: NDArray[np.uint8] | None
    inst_hw: NDArray[np.int32]
    nuclei: TileNuclei


class Assembly:
    """Puts the blocks of an image together.

    A nucleus seen by several blocks is kept by the one in whose core its centre lies. A nucleus whose centre is under
    ink is dropped.

    Args:
        shape: height and width of the image, px.
        blocks: as `divide` gives them.
        ink: where ink covers the image; None: nowhere.
        blend: whether the H&E is needed.
        exact: whether the H&E of a block is that of the whole image in its core, so that nothing has to be blended.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        blocks: Sequence[Block],
        ink: Ink | None = None,
        blend: bool = True,
        exact: bool = False,
    ) -> None:
        self._shape, self._blocks, self._ink, self._blend, self._exact = shape, blocks, ink, blend, exact
        self._row: list[tuple[Block, Part]] = []
        self._added = 0  # blocks
        self._count = 0  # nuclei
        # What the last row of blocks has left in rows that the next one overlaps.
        self._inst_hw = np.zeros((0, shape[1]), np.int32)
        self._image_hwc = np.zeros((0, shape[1], 3), np.float32)
        self._weight_hw1 = np.zeros((0, shape[1], 1), np.float32)

    def add(self, part: Part) -> Strip | None:
        """Add the next block; wait for its row's results and return them where it is the last of its row."""
        block = self._blocks[self._added]
        self._row.append((block, part))
        self._added += 1
        following = self._blocks[self._added] if self._added < len(self._blocks) else None
        if following is not None and following.rows == block.rows:
            return None
        row, self._row = self._row, []
        final = (self._shape[0] if following is None else following.rows.start) - block.rows.start
        he = self._blended(row, final) if self._blend else None
        inst_hw, nuclei = self._drawn(row)
        self._inst_hw = inst_hw[final:]
        return Strip(block.rows.start, he, inst_hw[:final], nuclei)

    def _drawn(self, row: Sequence[tuple[Block, Part]]) -> tuple[NDArray[np.int32], TileNuclei]:
        """Return the map of a row of blocks, and those of its nuclei that were not there before."""
        rows = row[0][0].rows
        before_hw = np.zeros((rows.stop - rows.start, self._shape[1]), np.int32)
        before_hw[: len(self._inst_hw)] = self._inst_hw
        own_hw = np.zeros_like(before_hw)
        kept: list[list[NDArray]] = []
        total = 0
        for block, part in row:
            found, agreement_n = part.job.result()
            place = np.s_[:, block.columns]
            centres_n2 = found.centres_n2 + np.array([block.columns.start, block.rows.start])
            kept_n = owned(centres_n2, block.core_x, block.core_y)
            if self._ink is not None:
                kept_n &= ~self._ink.at(centres_n2)
            number_n = np.where(kept_n, np.arange(len(centres_n2)) + total + 1, 0)
            drawn_hw = np.concatenate([[0], number_n]).astype(np.int32)[found.nuclei.inst_hw]
            own_hw[place] = np.where((before_hw[place] > 0) | (own_hw[place] > 0), own_hw[place], drawn_hw)
            total += len(centres_n2)
            own = (found.nuclei.types_n, found.nuclei.shares_n, found.scores_n, agreement_n, centres_n2)
            kept.append([column for column in own if column is not None])
        # Neither those of another block's core nor those that lie between the pixels of a coarser grid.
        present = np.bincount(own_hw.ravel(), minlength=total + 1)[1:] > 0
        ids = np.concatenate([[0], (np.cumsum(present) + self._count) * present]).astype(np.int32)
        self._count += int(present.sum())
        own_hw = ids[own_hw]
        types_n, shares_n, scores_n, *agreement, centres_n2 = (
            np.concatenate(column)[present] for column in zip(*kept, strict=True)
        )
        agreement_n = agreement[0] if agreement else None
        nuclei = TileNuclei(own_hw, types_n, shares_n, scores_n, agreement_n, centres_n2)
        return (np.maximum(before_hw, own_hw) if before_hw.any() else own_hw), nuclei

    def _blended(self, row: Sequence[tuple[Block, Part]], final: int) -> NDArray[np.uint8]:
        if len(self._blocks) == 1:
            return row[0][1].he
        rows = row[0][0].rows
        image_hwc = np.zeros((rows.stop - rows.start, self._shape[1], 3), np.float32)
        weight_hw1 = np.zeros((*image_hwc.shape[:2], 1), np.float32)
        image_hwc[: len(self._image_hwc)], weight_hw1[: len(self._weight_hw1)] = self._image_hwc, self._weight_hw1
        for block, part in row:
            own_hw1 = self._weight(block)
            image_hwc[:, block.columns] += own_hw1 * part.he
            weight_hw1[:, block.columns] += own_hw1
        self._image_hwc, self._weight_hw1 = image_hwc[final:].copy(), weight_hw1[final:].copy()
        return np.rint(image_hwc[:final] / weight_hw1[:final]).astype(np.uint8)

    def _weight(self, block: Block) -> NDArray[np.float32]:
        """Return the weight of each pixel of a block, hxwx1: above 0 everywhere, or 1 in its core."""
        axes = []
        for seen, core in ((block.rows, block.core_y), (block.columns, block.core_x)):
            at_n = np.arange(seen.start, seen.stop)
            inside_n = ((at_n >= core[0]) & (at_n < core[1])).astype(np.float32)
            axes.append(inside_n if self._exact else hann_weight(len(at_n)))
        return axes[0][:, None, None] * axes[1][:, None]


def joined(strips: Sequence[Strip]) -> tuple[NDArray[np.uint8], TileNuclei]:
    """Return the H&E and the nuclei of a whole image.

    Args:
        strips: all of its strips, from top to bottom, with H&E.
    """
    images = [strip.he for strip in strips if strip.he is not None]
    if len(strips) == 1:
        return images[0], strips[0].nuclei
    inst_hw = np.concatenate([strip.inst_hw for strip in strips])
    each = [strip.nuclei for strip in strips]
    columns = {
        name: np.concatenate([getattr(nuclei, name) for nuclei in each])
        for name in ("types_n", "shares_n", "scores_n", "agreement_n", "centres_n2")
        if getattr(each[0], name) is not None
    }
    return np.concatenate(images), replace(each[0], inst_hw=inst_hw, **columns)


def assemble(
    shape: tuple[int, int], blocks: Sequence[Block], parts: Sequence[Part], ink: Ink | None = None
) -> tuple[NDArray[np.uint8], TileNuclei]:
    """Wait for the results of all blocks, and return the H&E and the nuclei of the image.

    Args:
        shape: height and width of the image, px.
        blocks: as `divide` gives them.
        parts: one for each block.
        ink: where ink covers the image; None: nowhere.
    """
    assembly = Assembly(shape, blocks, ink)
    return joined([strip for part in parts if (strip := assembly.add(part)) is not None])
