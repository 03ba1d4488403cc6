"""Pages of tiles from the test of a pipeline: translations, and nuclei found, missed and invented by each method.

Shape suffixes: n = nuclei or points; 3 = (x, y, class).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.images.writing import write_png
from ihc2he.nuclei.drawing import LINE_PX, draw_matches, draw_outlines, fitted, legend, write
from ihc2he.ranks import from_all_ranks

if TYPE_CHECKING:
    from ihc2he.models.pipeline.evaluation import MethodResult, ScoredTile

CELL_PX = 360  # longer side of a picture
GAP_PX = 8
COLUMNS = ("IHC", "translated H&E", "nuclei by type, on the H&E", "keypoints, on the IHC")


class TilePages(Callback):
    """Writes a page for some tiles, evenly spaced over the test, and for the tiles with the lowest F1.

    Args:
        dirpath: pages go to `<dirpath>/test/` and `<dirpath>/worst/`, and replace those of an earlier test.
        n_first: number of tiles, evenly spaced over the test.
        n_worst: number of tiles with the lowest F1; ties are ordered by name; tiles without nuclei do not count.
        worst_by: the method whose F1 is used; None = the last one.
    """

    def __init__(self, dirpath: str, n_first: int = 6, n_worst: int = 10, worst_by: str | None = None) -> None:
        self.dirpath = Path(dirpath)
        self.n_first, self.n_worst = n_first, n_worst
        self.worst_by = worst_by
        self._reset()

    def _reset(self) -> None:
        self._seen, self._stride = 0, 1
        self._spread: list[ScoredTile] = []
        self._worst: list[ScoredTile] = []

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Reset after an earlier test.

        Raises:
            ConfigError: if `worst_by` is not a method of the module.
        """
        if self.worst_by is not None and self.worst_by not in pl_module.methods:
            hint = did_you_mean(self.worst_by, pl_module.methods)
            msg = f"callbacks.pages.worst_by: there is no method '{self.worst_by}'.{hint}"
            raise ConfigError(msg)
        self._reset()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep the tiles that may get a page."""
        for tile in outputs["scored"]:
            self._keep_spread(tile)
            if math.isfinite(self._f1(tile)):
                self._worst = self._worst_of([*self._worst, tile])

    def _keep_spread(self, tile: ScoredTile) -> None:
        """Keep every k-th tile; k doubles when there are twice as many as needed."""
        if self._seen % self._stride == 0:
            self._spread.append(tile)
        self._seen += 1
        if len(self._spread) > 2 * self.n_first:
            self._spread = self._spread[::2]
            self._stride *= 2

    def _f1(self, tile: ScoredTile) -> float:
        return f1_of(tile.results[self.worst_by or list(tile.results)[-1]])

    def _worst_of(self, tiles: list[ScoredTile]) -> list[ScoredTile]:
        return sorted(tiles, key=lambda tile: (self._f1(tile), tile.name))[: self.n_worst]

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Gather the tiles of all ranks and draw the pages, on the first one."""
        parts = from_all_ranks((self._spread, self._worst))
        if trainer.is_global_zero:
            spread = sorted((tile for tiles, _ in parts for tile in tiles), key=lambda tile: tile.name)
            chosen = np.linspace(0, len(spread) - 1, min(self.n_first, len(spread))).round().astype(int)
            self._write("test", [spread[i] for i in chosen], pl_module)
            self._write("worst", self._worst_of([tile for _, tiles in parts for tile in tiles]), pl_module)
        self._reset()

    def _write(self, folder: str, tiles: list[ScoredTile], pl_module: Any) -> None:
        for old in (self.dirpath / folder).glob("*.png"):
            old.unlink()
        for number, tile in enumerate(tiles, 1):
            plain = tile.name.replace("/", "_")
            write_png(self.dirpath / folder / f"{number:02d}_{plain}.png", page(tile))


def f1_of(result: MethodResult) -> float:
    """Return the F1 of a method on a tile; NaN if there is no keypoint and no nucleus."""
    matched, missed, invented = _counts(result)
    both = 2 * matched + missed + invented
    return 2 * matched / both if both else math.nan


def _counts(result: MethodResult) -> tuple[int, int, int]:
    return len(result.score.true_m), len(result.score.missed), len(result.score.invented)


def page(tile: ScoredTile) -> NDArray[np.uint8]:
    """Return the page of a tile, HxWx3 uint8 RGB: for each method a title, a row of pictures and a legend.

    Args:
        tile: with the results of the methods.
    """
    height, width = tile.image.shape[:2]
    side = fitted(tile.image, CELL_PX, CELL_PX)[0].shape[1]
    page_px = GAP_PX + len(COLUMNS) * (side + GAP_PX)
    head = _blank(2 * LINE_PX, page_px)
    facts = f"{tile.name}   {width} x {height} px, {tile.mpp:g} um/px, {len(tile.points_n3)} keypoints"
    write(head, facts, GAP_PX, 0, bold=True)
    for i, title in enumerate(COLUMNS):
        write(head, title, GAP_PX + i * (side + GAP_PX), LINE_PX)
    parts = [head]
    for method, result in tile.results.items():
        heading = _blank(LINE_PX, page_px)
        matched, missed, invented = _counts(result)
        end = write(heading, method, GAP_PX, 0, bold=True)
        write(heading, f"F1 {f1_of(result):.3f}   {matched} matched, {missed} missed, {invented} invented", end + 16, 0)
        counts = np.bincount(result.nuclei.types_n, minlength=len(tile.classes) + 1).tolist()
        parts += [heading, _row(_pictures(tile, result)), legend(page_px, tile.classes, counts=counts, marks=True)]
    return np.concatenate(parts)


def _pictures(tile: ScoredTile, result: MethodResult) -> list[NDArray[np.uint8]]:
    """Return the pictures of `COLUMNS`, all of one size."""
    ihc, factor = fitted(tile.image, CELL_PX, CELL_PX)
    he, _ = fitted(result.he, CELL_PX, CELL_PX)
    outlined, found = he.copy(), ihc.copy()
    nuclei, score = result.nuclei, result.score
    draw_outlines(outlined, nuclei.inst_hw, nuclei.types_n)
    keypoints_n2 = tile.points_n3[:, :2]
    draw_matches(
        found, keypoints_n2[score.true_m], keypoints_n2[score.missed], nuclei.centres_n2[score.invented], factor
    )
    return [ihc, he, outlined, found]


def _row(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = _blank(len(pictures[0]), GAP_PX)
    return np.concatenate([gap, *(part for picture in pictures for part in (picture, gap))], axis=1)


def _blank(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, np.uint8)
