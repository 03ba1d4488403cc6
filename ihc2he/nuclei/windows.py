"""The nuclei of windows of a slide: as files, and each nucleus once over all windows.

Windows overlap, so that each nucleus is whole in the window that owns its centre. Because the centre that another
window finds may lie a little elsewhere, a window also keeps nuclei with their centre in a small rim around its core; of
two that share half of the smaller one's pixels, one is dropped.

Shape suffixes: h, w = height, width; n = nuclei of a window, or of all; m = pixels; e = pairs; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.files import complete
from ihc2he.images.areas import Area
from ihc2he.nuclei.counts import THRESHOLDS
from ihc2he.nuclei.decoders.base import Found
from ihc2he.nuclei.instances import foreground
from ihc2he.nuclei.outlines import Outlines
from ihc2he.nuclei.rings import ring_densities
from ihc2he.nuclei.shapes import axes
from ihc2he.nuclei.table import IHC_STAINS, NucleiTable, nuclei_table
from ihc2he.tiling.windows import Block, owned

RIM_UM = 2.0  # around the core, within which a centre may lie
RING_UM = 2.0  # width of the ring around a nucleus
SAME = 0.5  # share of the smaller nucleus from which two are the same
_FIELDS = ("ids_n", "centroids_n2", "boxes_n4", "areas_n", "types_n", "shares_n")
_OUTLINES = ("corners_e2", "starts_r", "nucleus_r", "is_hole_r")


@dataclass(frozen=True)
class WindowNuclei:
    """The nuclei that a window keeps.

    Attributes:
        table: in px of the slide at full resolution.
        inside_n: whether its centre is in the core of the window, not only in the rim around it.
        place_m: pixels of those nuclei that may meet others of a neighbouring window, as positions in the whole grid
            of windows.
        of_m: the nucleus of each, as a position in the table.
    """

    table: NucleiTable
    inside_n: NDArray[np.bool_]
    place_m: NDArray[np.int64]
    of_m: NDArray[np.int32]


def kept_nuclei(
    found: Found,
    block: Block,
    grid: tuple[int, int],
    scale: tuple[float, float],
    mpp: float,
    image: NDArray[np.uint8],
    white: Sequence[float],
    tissue: Area,
    agreement_n: NDArray[np.float32] | None = None,
    threshold: float = THRESHOLDS[0],
) -> WindowNuclei:
    """Return the nuclei that a window keeps, with everything that is measured of them.

    Args:
        found: all nuclei of the window.
        block: where the window lies in the grid of windows.
        grid: height and width of the grid, px.
        scale: by how much the slide at full resolution is wider and higher than the grid, 1 or more.
        mpp: um/px of the grid.
        image: of the window, hxwx3 uint8.
        white: white point of the slide.
        tissue: where the slide has tissue; nuclei with their centre elsewhere are dropped.
        agreement_n: share of the votes of an ensemble for each nucleus.
        threshold: mean DAB density from which a nucleus is positive.
    """
    nuclei, n = found.nuclei, len(found.centres_n2)
    corner = np.array([block.columns.start, block.rows.start])
    centres_n2 = found.centres_n2 + corner
    rim = round(RIM_UM / mpp)
    inside_n = owned(centres_n2, block.core_x, block.core_y)
    keep_n = owned(centres_n2, *((low - rim, high + rim) for low, high in (block.core_x, block.core_y)))
    keep_n &= tissue.at(centres_n2)
    inst_hw = np.append(0, np.where(keep_n, np.arange(1, n + 1), 0)).astype(np.int32)[nuclei.inst_hw]
    own_n = foreground(inst_hw).ids_n - 1  # some lie between the pixels of a coarser grid
    measured = nuclei_table(
        inst_hw, nuclei.types_n[own_n], nuclei.shares_n[own_n], mpp=mpp, image=image, stains=IHC_STAINS, white=white
    )
    ring_od = ring_densities(nuclei.inst_hw, n, max(1, round(RING_UM / mpp)), image, white)
    outlines = measured.outlines.moved((int(corner[0]), int(corner[1]))).scaled(*scale)
    outlines = replace(outlines, ids_n=np.arange(1, len(own_n) + 1))
    areas_n, centroids_n2 = outlines.moments()
    full_mpp = mpp / sqrt(scale[0] * scale[1])
    length_n, width_n = axes(outlines).T * full_mpp
    extra: dict[str, NDArray] = {
        "length_um": length_n,
        "width_um": width_n,
        **{f"ring_{name}_od": od_n[own_n] for name, od_n in ring_od.items()},
        "score": found.scores_n[own_n],
        **({} if agreement_n is None else {"agreement": agreement_n[own_n]}),
        "positive": (measured.stain_od["dab"] >= threshold).astype(np.int64),
    }
    table = replace(
        measured, ids_n=outlines.ids_n, centroids_n2=centroids_n2, boxes_n4=outlines.boxes(), areas_n=areas_n,
        outlines=outlines, mpp=full_mpp, extra=extra,
    )  # fmt: skip
    place_m, of_m = _shared_pixels(inst_hw, measured.boxes_n4 + np.tile(corner, 2), block, grid)
    return WindowNuclei(table, inside_n[own_n], place_m, of_m)


def _shared_pixels(
    inst_hw: NDArray[np.int32], boxes_n4: NDArray[np.int64], block: Block, grid: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the pixels of nuclei near another window's core, which that window's nuclei may share.

    A nucleus reaches at most as far beyond its core as the window does, whose borders are equally far from its core
    where another may follow.
    """
    near_n = np.zeros(len(boxes_n4), bool)
    for axis, (low, high), part in ((0, block.core_x, block.columns), (1, block.core_y, block.rows)):
        before, after = low - part.start, part.stop - high
        reach = max(before, after)
        near_n |= (boxes_n4[:, axis] < low + reach) & (before > 0)
        near_n |= (boxes_n4[:, axis + 2] > high - reach) & (after > 0)
    places_m, of_m, _ = foreground(inst_hw)
    near_m = near_n[of_m]
    rows_m, columns_m = np.divmod(places_m[near_m].astype(np.int64), inst_hw.shape[1])
    return (rows_m + block.rows.start) * grid[1] + columns_m + block.columns.start, of_m[near_m].astype(np.int32)


def write_window(path: Path, window: WindowNuclei) -> None:
    """Write the nuclei of a window, completely or not at all."""
    table = window.table
    arrays: dict[str, Any] = {name: getattr(table, name) for name in _FIELDS}
    arrays |= {name: getattr(table.outlines, name) for name in _OUTLINES}
    arrays |= {f"stain {name}": od_n for name, od_n in table.stain_od.items()}
    arrays |= {f"extra {name}": values_n for name, values_n in table.extra.items()}
    with complete(path) as temporary:
        np.savez(temporary, **arrays, mpp=table.mpp, inside_n=window.inside_n, place_m=window.place_m, of_m=window.of_m)


def read_window(path: Path) -> WindowNuclei:
    """Return the nuclei of a window.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        msg = f"{path}: the nuclei of a window, which cannot be read ({error}). Delete it and repeat the command."
        raise DataError(msg) from error
    own = {name: arrays[name] for name in _FIELDS}
    named = {
        kind: {key.removeprefix(f"{kind} "): values_n for key, values_n in arrays.items() if key.startswith(f"{kind} ")}
        for kind in ("stain", "extra")
    }
    outlines = Outlines(own["ids_n"], *(arrays[name] for name in _OUTLINES))
    table = NucleiTable(
        **own, outlines=outlines, stain_od=named["stain"], mpp=float(arrays["mpp"]), extra=named["extra"]
    )
    return WindowNuclei(table, arrays["inside_n"], arrays["place_m"], arrays["of_m"])


class Doubles:
    """Finds nuclei that several windows keep, while the windows are read one after another.

    Pixels that no later window reaches are looked at and forgotten, so in the order of a plan only those of about one
    row of windows are held, and of all before the pairs of nuclei that share some.

    Args:
        width: of the whole grid, px.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._inside: list[NDArray[np.bool_]] = []
        self._areas: list[NDArray[np.int32]] = []
        self._places: list[NDArray[np.int64]] = []
        self._of: list[NDArray[np.int32]] = []
        self._pairs: list[NDArray[np.int64]] = []
        self._shared: list[NDArray[np.int64]] = []
        self._n, self._top = 0, 0

    def add(self, window: WindowNuclei, top: int) -> None:
        """Take the nuclei of the next window.

        Args:
            window: its nuclei.
            top: row of the grid above which neither this window nor a later one has pixels.
        """
        if top > self._top:
            self._settle(top)
            self._top = top
        n = len(window.inside_n)
        self._inside.append(window.inside_n)
        self._areas.append(np.bincount(window.of_m, minlength=n).astype(np.int32))
        self._places.append(window.place_m)
        self._of.append(window.of_m + np.int32(self._n))
        self._n += n

    def kept(self) -> NDArray[np.bool_]:
        """Return which nuclei of all windows to keep, so that each is there once.

        Of two that are the same, the one whose centre its own window owns stays, of two such the larger, then the
        first.
        """
        self._settle(None)
        inside_n, areas_n = (np.concatenate([np.zeros(0, bool), *parts]) for parts in (self._inside, self._areas))
        pair_e, shared_e = _summed(self._pairs, self._shared)
        one_e, other_e = pair_e >> 32, pair_e & 0xFFFFFFFF
        same_e = shared_e >= SAME * np.minimum(areas_n[one_e], areas_n[other_e])
        rivals: dict[int, list[int]] = {}
        for one, other in zip(one_e[same_e].tolist(), other_e[same_e].tolist(), strict=True):
            rivals.setdefault(one, []).append(other)
            rivals.setdefault(other, []).append(one)
        keep_n = np.ones(len(inside_n), bool)
        for number in sorted(rivals, key=lambda k: (not inside_n[k], -areas_n[k], k)):
            if keep_n[number]:
                keep_n[rivals[number]] = False
        return keep_n

    def _settle(self, top: int | None) -> None:
        """Count what the pixels above a row share, to which no window is added any more; None: all pixels."""
        place_m, of_m = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (self._places, self._of))
        above_m = place_m < top * self.width if top is not None else np.ones(len(place_m), bool)
        pair_e, shared_e = _meetings(place_m[above_m], of_m[above_m])
        self._pairs.append(pair_e)
        self._shared.append(shared_e)
        self._places, self._of = [place_m[~above_m]], [of_m[~above_m]]


def _meetings(place_m: NDArray[np.int64], of_m: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of nuclei that share pixels, the lower number in the upper half, and how many they share."""
    order_m = np.lexsort((of_m, place_m))
    place_m, of_m = place_m[order_m], of_m[order_m].astype(np.int64)
    found: list[NDArray[np.int64]] = []
    for step in range(1, 4):  # four windows meet at a corner
        same_m = place_m[step:] == place_m[:-step]
        found.append(of_m[:-step][same_m] << 32 | of_m[step:][same_m])
    return np.unique(np.concatenate(found), return_counts=True)


def _summed(keys: Sequence[NDArray[np.int64]], counts: Sequence[NDArray[np.int64]]) -> tuple[NDArray, NDArray]:
    """Return each key once, and the sum of its counts."""
    key_e, of_e = np.unique(np.concatenate(keys), return_inverse=True)
    return key_e, np.bincount(of_e, np.concatenate(counts), len(key_e))
