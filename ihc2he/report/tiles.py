"""Pages and a strip of tiles from the test of a pipeline: nuclei found, missed and invented by each method.

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
from ihc2he.files import write_csv
from ihc2he.images.writing import write_png
from ihc2he.nuclei.drawing import LINE_PX, draw_matches, draw_outlines, fitted, legend, write
from ihc2he.ranks import from_all_ranks
from ihc2he.report.strip import IMAGE, WIDTH_PX

if TYPE_CHECKING:
    from ihc2he.models.pipeline.evaluation import MethodResult, ScoredTile

CELL_PX = 360  # longer side of a picture
GAP_PX = 8
NEAR = 8  # tiles kept around the running median, of which the one closest to the final median is shown
STRIP = ("place", "name", "mean_f1", "method", "file", "f1", "matched", "missed", "invented")  # columns of its table
COLUMNS = ("IHC", "translated H&E", "nuclei by type, on the H&E", "keypoints, on the IHC")


class TilePages(Callback):
    """Writes a page for some tiles, evenly spaced over the test, and for the tiles with the lowest F1.

    The pictures of a strip follow: the tiles with the lowest, the middle and the highest mean F1 of all methods.

    Args:
        dirpath: pages go to `<dirpath>/test/` and `<dirpath>/worst/`, the strip to `<dirpath>/strip/`; they replace
            those of an earlier test.
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
        self._means: list[float] = []
        self._ranked: list[tuple[float, ScoredTile]] = []

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
            self._keep_ranked(tile)

    def _keep_spread(self, tile: ScoredTile) -> None:
        """Keep every k-th tile; k doubles when there are twice as many as needed."""
        if self._seen % self._stride == 0:
            self._spread.append(tile)
        self._seen += 1
        if len(self._spread) > 2 * self.n_first:
            self._spread = self._spread[::2]
            self._stride *= 2

    def _keep_ranked(self, tile: ScoredTile) -> None:
        """Keep the tile for the strip, and forget those that will not be in it."""
        values = [f1 for f1 in map(f1_of, tile.results.values()) if math.isfinite(f1)]
        if not values:
            return
        self._means.append(float(np.mean(values)))
        self._ranked.append((self._means[-1], tile))
        if len(self._ranked) > 2 * NEAR:
            ordered = _by_mean(self._ranked)
            self._ranked = [ordered[0], *_nearest(ordered[1:-1], self._means)[:NEAR], ordered[-1]]

    def _f1(self, tile: ScoredTile) -> float:
        return f1_of(tile.results[self.worst_by or list(tile.results)[-1]])

    def _worst_of(self, tiles: list[ScoredTile]) -> list[ScoredTile]:
        return sorted(tiles, key=lambda tile: (self._f1(tile), tile.name))[: self.n_worst]

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Gather the tiles of all ranks and draw the pages, on the first one."""
        parts = from_all_ranks((self._spread, self._worst, self._ranked, self._means))
        if trainer.is_global_zero:
            spreads, worsts, ranked, means = ([one for part in own for one in part] for own in zip(*parts, strict=True))
            spread = sorted(spreads, key=lambda tile: tile.name)
            chosen = np.linspace(0, len(spread) - 1, min(self.n_first, len(spread))).round().astype(int)
            self._write("test", [spread[i] for i in chosen])
            self._write("worst", self._worst_of(worsts))
            self._write_strip(_by_mean(ranked), means)
        self._reset()

    def _write_strip(self, ordered: list[tuple[float, ScoredTile]], means: list[float]) -> None:
        """Write the pictures of three tiles and `strip.csv`, their table."""
        folder = self.dirpath / "strip"
        for old in folder.glob("*"):
            old.unlink()
        if len(ordered) < 3:
            return
        chosen = {"worst": ordered[0], "middle": _nearest(ordered[1:-1], means)[0], "best": ordered[-1]}
        rows = []
        for place, (mean, tile) in chosen.items():
            pictures = {IMAGE: fitted(tile.image, WIDTH_PX, WIDTH_PX)[0]}
            pictures |= {method: _matches(tile, result, WIDTH_PX) for method, result in tile.results.items()}
            for number, (method, picture) in enumerate(pictures.items()):
                file = f"{place}_{number:02d}.png"
                write_png(folder / file, picture)
                own = [] if method == IMAGE else [f1_of(tile.results[method]), *_counts(tile.results[method])]
                values = dict(zip(("f1", "matched", "missed", "invented"), own, strict=False))
                rows.append(
                    {"place": place, "name": tile.name, "mean_f1": mean, "method": method, "file": file, **values}
                )
        write_csv(folder / "strip.csv", rows, STRIP)

    def _write(self, folder: str, tiles: list[ScoredTile]) -> None:
        for old in (self.dirpath / folder).glob("*.png"):
            old.unlink()
        for number, tile in enumerate(tiles, 1):
            plain = tile.name.replace("/", "_")
            write_png(self.dirpath / folder / f"{number:02d}_{plain}.png", page(tile))


def _by_mean(ranked: list[tuple[float, ScoredTile]]) -> list[tuple[float, ScoredTile]]:
    return sorted(ranked, key=lambda one: (one[0], one[1].name))


def _nearest(ranked: list[tuple[float, ScoredTile]], means: list[float]) -> list[tuple[float, ScoredTile]]:
    """Return tiles with their mean F1, the closest to the median of all first."""
    middle = float(np.median(means))
    return sorted(ranked, key=lambda one: (abs(one[0] - middle), one[1].name))


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
    ihc, _ = fitted(tile.image, CELL_PX, CELL_PX)
    he, _ = fitted(result.he, CELL_PX, CELL_PX)
    outlined = he.copy()
    draw_outlines(outlined, result.nuclei.inst_hw, result.nuclei.types_n)
    return [ihc, he, outlined, _matches(tile, result, CELL_PX)]


def _matches(tile: ScoredTile, result: MethodResult, side: int) -> NDArray[np.uint8]:
    """Return the IHC with what a method found, missed and invented; its longer side has this many px."""
    picture, factor = fitted(tile.image, side, side)
    keypoints_n2, score = tile.points_n3[:, :2], result.score
    draw_matches(
        picture,
        keypoints_n2[score.true_m],
        keypoints_n2[score.missed],
        result.nuclei.centres_n2[score.invented],
        factor,
    )
    return picture


def _row(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = _blank(len(pictures[0]), GAP_PX)
    return np.concatenate([gap, *(part for picture in pictures for part in (picture, gap))], axis=1)


def _blank(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, np.uint8)
