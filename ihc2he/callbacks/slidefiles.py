"""The files of a slide, made of the nuclei of its windows.

Nothing here imports torch, so that a process of its own can do it while the network continues.
Shape suffixes: h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.plans import WINDOWS, read_plan, read_result, read_tissue, regions_of, window_file, write_result
from ihc2he.errors import DataError
from ihc2he.files import exclusive, remove_parts
from ihc2he.images.areas import Area
from ihc2he.images.decoding import read_image
from ihc2he.images.pyramid import write_pyramid
from ihc2he.images.regions import Regions
from ihc2he.images.rescaled import Rescaled
from ihc2he.images.writing import write_maps, write_png
from ihc2he.metrics.seams import Seams
from ihc2he.nuclei.colours import name_of
from ihc2he.nuclei.columns import narrow, write_parquet, write_rows
from ihc2he.nuclei.counts import THRESHOLDS, counted
from ihc2he.nuclei.fields import HotSpot, binned, hot_spots, smoothed_ratio
from ihc2he.nuclei.geojson import geojson_stream, write_area
from ihc2he.nuclei.sheets import Sheet, map_picture
from ihc2he.nuclei.table import NucleiTable, measurements, selected
from ihc2he.nuclei.windows import Doubles, read_window
from ihc2he.tiling.windows import Block, mosaic

KINDS = ("geojson", "nuclei", "overlay", "maps", "he")
ALL = "all tissue"  # the region of everything
_OVERLAY_PX, _SPOT_PX = 2048, 1600  # longer sides of pictures
_BOX = ("left_px", "top_px", "right_px", "bottom_px")
_PERIOD = 4  # px; what generators halve to shows in the steps at each fourth line
_BIN_UM = 50.0  # side of the bins of maps
_STRIP_PX = 512  # rows of the map of tissue that are looked at together, for memory

Columns = dict[str, NDArray]


@dataclass(frozen=True)
class Options:
    """What is written of a slide.

    Attributes:
        thresholds: mean DAB densities of weak, moderate and strong nuclei.
        hot_spot_mm2: area of a hot spot.
        hot_spots: how many to look for.
        table: `parquet` or `csv`.
        write: which of `KINDS`.
        classes: names of the types from 1.
    """

    thresholds: Sequence[float] = THRESHOLDS
    hot_spot_mm2: float = 1.0
    hot_spots: int = 3
    table: str = "parquet"
    write: Sequence[str] = KINDS
    classes: Sequence[str] = ()


def assemble(folder: Path, options: Options) -> dict[str, Any]:
    """Write the files of a slide, its summary last, and delete those of its windows; once, whoever asks again.

    Windows that are not there have failed; then those of the others are kept, for a run that tries again. Another
    process that is at the same slide is waited for.

    Args:
        folder: of the slide.
        options: what to write.

    Returns:
        The summary.

    Raises:
        DataError: the slide was changed meanwhile, none of its windows is there, or a file of its folder is damaged.
    """
    with exclusive(folder / ".lock"):
        finished = read_result(folder)
        if finished is None or finished["windows_failed"]:
            remove_parts(folder)
            finished = _Assembly(folder, options).run()
        if not finished["windows_failed"]:
            shutil.rmtree(folder / WINDOWS, ignore_errors=True)
        return finished


class _Assembly:
    """The assembly of one slide."""

    def __init__(self, folder: Path, options: Options) -> None:
        plan = read_plan(folder)
        if plan is None:
            msg = f"{folder}: has no plan of a slide that can be read. Delete the folder and repeat the command."
            raise DataError(msg)
        self.folder, self.plan, self.options = folder, plan, options
        self.name = Path(plan.name).name
        self.files: list[str] = []

    def run(self) -> dict[str, Any]:
        """Write everything."""
        plan, options = self.plan, self.options
        self.windows = [number for number in plan.windows if window_file(self.folder, number).is_file()]
        failed = sorted({*plan.windows} - {*self.windows})
        if plan.windows and not self.windows:
            msg = f"{plan.source}: none of its {len(plan.windows)} windows with tissue could be read."
            raise DataError(msg)
        source = plan.open(forgiving=True)
        tissue = read_tissue(self.folder, plan)
        columns = self._columns()
        size_um = (plan.shape[0] * plan.mpp, plan.shape[1] * plan.mpp)
        points_n2 = np.stack([columns["x_um"], columns["y_um"]], 1)
        positive_n = columns["positive"] > 0
        spots = hot_spots(points_n2, positive_n, size_um, options.hot_spot_mm2, options.hot_spots)
        self._write_tissue(tissue)
        if "nuclei" in options.write:
            self._write_nuclei(columns)
        self._write_outlines(source, columns["type"], spots)
        if "maps" in options.write:
            self._write_maps(points_n2, positive_n, tissue, size_um)
        seams = None
        if "he" in options.write and any((self.folder / WINDOWS).glob("*.png")):
            seams = self._write_he(source)
        types_n, dab_n = columns["type"], columns["dab_od"]
        counts = {ALL: counted(types_n, dab_n, options.classes, options.thresholds)}
        areas = {ALL: tissue.share * size_um[0] * size_um[1] / 1e6}
        regions = regions_of(self.folder)
        if regions is not None:
            of_n = regions.index(np.stack([columns["x_px"], columns["y_px"]], 1)) if len(types_n) else types_n
            areas_k = self._areas(regions, tissue)
            for k, region in enumerate(regions.included):
                name = " ".join(filter(None, [str(k + 1), region.name, region.kind]))
                in_n = of_n == k
                counts[name] = counted(types_n[in_n], dab_n[in_n], options.classes, options.thresholds)
                areas[name] = areas_k[k]
        result = {
            "name": plan.name,
            "stain": plan.stain,
            "case": plan.case,
            "source": plan.source,
            "mpp": plan.mpp,
            "shape": list(plan.shape),
            "grid_mpp": plan.grid_mpp,
            "white": list(plan.white),
            "windows": len(plan.windows),
            "windows_failed": failed,
            "nuclei": len(types_n),
            "area_mm2": areas,
            "counts": {
                region: {kind: own._asdict() for kind, own in found.items()} for region, found in counts.items()
            },
            "hot_spots": [spot._asdict() for spot in spots],
            "seams": seams,
            "files": self.files,
        }
        write_result(self.folder, result)
        return result

    def _path(self, name: str) -> Path:
        self.files.append(name)
        return self.folder / name

    def _columns(self) -> Columns:
        """Return the table of all nuclei without their outlines, each nucleus once, and note which a window keeps."""
        parts: list[Columns] = []
        doubles = Doubles(self.plan.grid[1])
        tops = [self.plan.blocks[number].rows.start for number in self.windows]
        for number, top in zip(self.windows, np.minimum.accumulate(tops[::-1])[::-1], strict=True):
            window = read_window(window_file(self.folder, number))
            table = window.table
            box = dict(zip(_BOX, table.boxes_n4.T.astype(np.int32), strict=True))
            parts.append({"type": table.types_n.astype(np.int16), **box, **narrow(measurements(table))})
            doubles.add(window, int(top))
        keep_n = doubles.kept()
        if not parts:
            parts = [{"type": np.zeros(0, int), **dict.fromkeys(("x_um", "y_um", "dab_od", "positive"), np.zeros(0))}]
        sizes = np.cumsum([0, *(len(part["type"]) for part in parts)])
        self.kept = [keep_n[start:stop] for start, stop in pairwise(sizes)]
        columns = {name: np.concatenate([part.pop(name) for part in parts])[keep_n] for name in [*parts[0]]}
        return {"id": np.arange(1, len(columns["type"]) + 1, dtype=np.int32), **columns}

    def _tables(self) -> Iterator[NucleiTable]:
        """Yield the nuclei of each window with their outlines, with ids over all windows."""
        first = 1
        for number, keep_n in zip(self.windows, self.kept, strict=False):
            table = selected(read_window(window_file(self.folder, number)).table, keep_n)
            ids_n = np.arange(first, first + len(table))
            yield replace(table, ids_n=ids_n)
            first += len(table)

    def _write_nuclei(self, columns: Columns) -> None:
        names = [name_of(kind, self.options.classes) for kind in range(len(self.options.classes) + 1)]
        if self.options.table == "parquet":
            write_parquet(self._path("nuclei.parquet"), columns, names)
        else:
            write_rows(self._path("nuclei.csv"), columns, names)

    def _write_outlines(self, source: Rescaled, types_n: NDArray, spots: Sequence[HotSpot]) -> None:
        """Write what has outlines: GeoJSON, overlay and hot spots, in one pass over the windows."""
        plan, options = self.plan, self.options
        sheets: dict[str, Sheet] = {}
        if "overlay" in options.write:
            whole = source.thumbnail(_OVERLAY_PX)
            sheets["overlay.png"] = Sheet(whole, (0, 0), max(whole.shape) / max(plan.shape))
            sheets |= {f"hot_spot_{k}.png": self._close_up(source, spot) for k, spot in enumerate(spots, 1)}
        if "geojson" in options.write:
            with geojson_stream(self._path(f"{self.name}.geojson.gz"), options.classes) as add:
                self._draw(sheets, add)
        elif sheets:
            self._draw(sheets)
        if sheets:
            sheets["overlay.png"].mark(spots, plan.mpp)
            counts = np.bincount(types_n, minlength=len(options.classes) + 1).tolist()
            for name, sheet in sheets.items():
                picture = sheet.finished(options.classes, counts if name == "overlay.png" else None)
                write_png(self._path(name), picture)

    def _draw(self, sheets: Mapping[str, Sheet], add: Any = None) -> None:
        for table in self._tables():
            if add is not None:
                add(table)
            for sheet in sheets.values():
                sheet.add(table)

    def _close_up(self, source: Rescaled, spot: HotSpot) -> Sheet:
        """Return the square around a hot spot, at most `_SPOT_PX` wide, read at the pixel size that this needs."""
        close = Rescaled(source.source, max(self.plan.grid_mpp, 2 * spot.radius_um / _SPOT_PX))
        factors = [side / whole for side, whole in zip(close.shape, self.plan.shape, strict=True)]
        rows, columns = (
            slice(*(min(max(round((at + reach) / self.plan.mpp * factor), 0), side) for reach in (-radius, radius)))
            for at, radius, factor, side in zip(
                (spot.y_um, spot.x_um), [spot.radius_um] * 2, factors, close.shape, strict=True
            )
        )
        corner = columns.start / factors[1], rows.start / factors[0]
        return Sheet(close.read(rows, columns).copy(), corner, factors[1])

    def _areas(self, regions: Regions, tissue: Area) -> list[float]:
        """Return the area of each region in mm2, without what lies under a pen."""
        if not regions.included:
            return []
        shape, mm2 = self.plan.shape, self.plan.mpp**2 / 1e6
        hidden_hw = regions.mask(shape).map_hw & ~tissue.map_hw
        down, across = (whole / side for whole, side in zip(shape, hidden_hw.shape, strict=True))
        y_m, x_m = np.nonzero(hidden_hw)
        of_m = regions.index(np.stack([(x_m + 0.5) * across, (y_m + 0.5) * down], 1) - 0.5)
        hidden_k = np.bincount(of_m + 1, minlength=len(regions.included) + 1)[1:] * down * across
        return [max(0.0, float(area - under)) * mm2 for area, under in zip(regions.areas(shape), hidden_k, strict=True)]

    def _write_tissue(self, tissue: Area) -> None:
        self.files.append("tissue.png")
        write_area(self._path("tissue.geojson"), Area(tissue.map_hw, self.plan.shape), "Tissue")

    def _write_maps(
        self, points_n2: NDArray, positive_n: NDArray[np.bool_], tissue: Area, size_um: tuple[float, float]
    ) -> None:
        """Write the density of nuclei and the share of positive ones as pictures, and both as numbers."""
        all_hw = binned(points_n2, size_um, _BIN_UM)
        positive_hw = binned(points_n2[positive_n], size_um, _BIN_UM)
        mm2_hw = np.zeros_like(all_hw)
        step_y, step_x = (side / n for side, n in zip(size_um, tissue.map_hw.shape, strict=True))
        for top in range(0, len(tissue.map_hw), _STRIP_PX):
            y_m, x_m = np.nonzero(tissue.map_hw[top : top + _STRIP_PX])
            in_tissue = np.stack([(x_m + 0.5) * step_x, (y_m + top + 0.5) * step_y], 1)
            mm2_hw += binned(in_tissue, size_um, _BIN_UM)
        mm2_hw *= np.float32(step_x * step_y / 1e6)
        density_hw = smoothed_ratio(all_hw, mm2_hw)
        percent_hw = 100 * smoothed_ratio(positive_hw, all_hw)
        most = float(np.nanpercentile(density_hw, 99)) if np.isfinite(density_hw).any() else 0.0
        write_png(self._path("density.png"), map_picture(density_hw, most, "nuclei/mm2"))
        write_png(self._path("positivity.png"), map_picture(percent_hw, 100, "% positive"))
        write_maps(self._path("maps.ome.tif"), {"nuclei per mm2": density_hw, "percent positive": percent_hw}, _BIN_UM)

    def _write_he(self, source: Rescaled) -> float | None:
        """Write the H&E; return how much its windows show, None if they do not meet.

        That is `ihc2he.metrics.seams` over the same of the IHC, so that tissue which ends at a border is no seam.
        """
        plan = self.plan
        blocks = mosaic(*plan.grid, plan.core)
        rows, columns = (
            sorted({core[0] for core in cores} - {0}) for cores in zip(*(b[2:] for b in blocks), strict=True)
        )
        seams = [Seams(rows, columns, _PERIOD) for _ in range(2)]
        write_pyramid(self._path("he.ome.tif"), plan.grid, plan.grid_mpp, self._strips(blocks, source, *seams))
        ratio = seams[0].ratio / (seams[1].ratio or nan)
        return ratio if isfinite(ratio) else None

    def _strips(
        self, blocks: Sequence[Block], source: Rescaled, seams: Seams, before: Seams
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the H&E, a row of windows at a time, and measure it and the IHC; glass where there are no windows."""
        plan, glass = self.plan, np.array(self.plan.white, np.uint8)
        for (top, bottom), row in groupby(enumerate(blocks), lambda entry: entry[1].core_y):
            he_hwc = np.broadcast_to(glass, (bottom - top, plan.grid[1], 3)).copy()
            ihc_hwc, made_hw = he_hwc.copy(), np.zeros(he_hwc.shape[:2], bool)
            for number, _ in row:
                path = window_file(self.folder, number).with_suffix(".png")
                if path.is_file():
                    (first, end), columns = plan.blocks[number].core_y, slice(*plan.blocks[number].core_x)
                    place = slice(first - top, end - top), columns
                    he_hwc[place], ihc_hwc[place] = read_image(path), source.read(slice(first, end), columns)
                    made_hw[place] = True
            seams.add(he_hwc, made_hw)
            before.add(ihc_hwc, made_hw)
            yield he_hwc
