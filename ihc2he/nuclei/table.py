"""Tables of nuclei: where each is, how large, of which type, and how strongly stained.

Shape suffixes: h, w = height, width; m = pixels of nuclei; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError
from ihc2he.files import write_csv
from ihc2he.nuclei.colours import name_of
from ihc2he.nuclei.instances import foreground
from ihc2he.nuclei.outlines import Outlines, outlines
from ihc2he.nuclei.outlines import joined as joined_outlines
from ihc2he.stain.deconvolution import DAB, EOSIN, HEMATOXYLIN, separate
from ihc2he.stain.white import FULL, relative_to_white

Stains = Mapping[str, tuple[float, float, float]]
HE_STAINS: Stains = MappingProxyType({"hematoxylin": HEMATOXYLIN, "eosin": EOSIN})
IHC_STAINS: Stains = MappingProxyType({"hematoxylin": HEMATOXYLIN, "dab": DAB})


@dataclass(frozen=True)
class NucleiTable:
    """The nuclei of a tile, one per row, in ascending order of their ids.

    Centroids are in px from the centre of the first pixel; outlines follow the sides of pixels, and so count from the
    corner of the first one.

    Attributes:
        ids_n: ids in the instance map.
        centroids_n2: centres of mass, float64.
        boxes_n4: left, top, right, bottom; right and bottom are exclusive.
        areas_n: px.
        outlines: their polygons, in the order of the rows.
        types_n: type, 0 = unknown.
        shares_n: share of the pixels that are of this type.
        stain_od: mean optical density of each stain, by its name.
        mpp: pixel size, um/px.
        extra: further measurements of each nucleus, by their name.
    """

    ids_n: NDArray[np.integer]
    centroids_n2: NDArray[np.float64]
    boxes_n4: NDArray[np.int64]
    areas_n: NDArray[np.int64]
    outlines: Outlines
    types_n: NDArray[np.integer]
    shares_n: NDArray[np.floating]
    stain_od: dict[str, NDArray[np.float64]]
    mpp: float
    extra: Mapping[str, NDArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids_n)


def nuclei_table(
    inst_hw: NDArray[np.integer],
    types_n: NDArray[np.integer] | None = None,
    shares_n: NDArray[np.floating] | None = None,
    *,
    mpp: float,
    image: NDArray[np.uint8] | None = None,
    stains: Stains = HE_STAINS,
    white: Sequence[float] = FULL,
    corner: tuple[int, int] = (0, 0),
) -> NucleiTable:
    """Return the table of an instance map.

    Args:
        inst_hw: instance map, 0 = background.
        types_n: type of each nucleus in ascending order of the ids; unknown where None.
        shares_n: share of the pixels that are of this type; 0 where None.
        mpp: pixel size, um/px.
        image: HxWx3 uint8 RGB to measure stains in.
        stains: two or three optical-density vectors by name, used where there is an image.
        white: white point of the image, from which densities count; see `ihc2he.stain.white.white_point`.
        corner: x and y of the map's first pixel in the image that coordinates count from, px.

    Raises:
        ConfigError: mpp is not positive.
        ValueError: a shape does not fit the map.

    >>> table = nuclei_table(np.array([[0, 4, 4], [0, 4, 4]]), mpp=0.25)
    >>> table.ids_n.tolist(), table.centroids_n2.tolist(), table.boxes_n4.tolist(), table.areas_n.tolist()
    ([4], [[1.5, 0.5]], [[1, 0, 3, 2]], [4])
    """
    if mpp <= 0:
        msg = f"mpp is a pixel size in um and must be positive, found {mpp}."
        raise ConfigError(msg)
    traced = outlines(inst_hw).moved(corner)
    n = len(traced.ids_n)
    types_n = np.zeros(n, np.int64) if types_n is None else types_n
    shares_n = np.zeros(n, np.float32) if shares_n is None else shares_n
    if len(types_n) != n or len(shares_n) != n or (image is not None and image.shape[:2] != inst_hw.shape):
        found = f"{len(types_n)} types, {len(shares_n)} shares, image {None if image is None else image.shape}"
        msg = f"A map {inst_hw.shape} of {n} nuclei does not fit {found}."
        raise ValueError(msg)
    areas_n, centroids_n2 = traced.moments()
    stain_od = {}
    if image is not None:
        places_m, of_m, _ = foreground(inst_hw)
        pixels_m1c = relative_to_white(image.reshape(-1, 1, 3)[places_m], white)
        od_ms = separate(pixels_m1c, tuple(stains.values()))[:, 0]
        stain_od = {name: _means(od_m, of_m, areas_n) for name, od_m in zip(stains, od_ms.T, strict=True)}
    return NucleiTable(
        traced.ids_n,
        centroids_n2,
        traced.boxes(),
        areas_n,
        traced,
        types_n,
        shares_n,
        stain_od,
        mpp,
    )


def joined(tables: Sequence[NucleiTable]) -> NucleiTable:
    """Return the nuclei of all strips of an image in one table.

    Args:
        tables: of the strips from top to bottom, with ids that ascend over all of them.
    """
    first = tables[0]
    if len(tables) == 1:
        return first

    def column(name: str) -> NDArray:
        return np.concatenate([getattr(table, name) for table in tables])

    return NucleiTable(
        column("ids_n"),
        column("centroids_n2"),
        column("boxes_n4"),
        column("areas_n"),
        joined_outlines([table.outlines for table in tables]),
        column("types_n"),
        column("shares_n"),
        {name: np.concatenate([table.stain_od[name] for table in tables]) for name in first.stain_od},
        first.mpp,
        {name: np.concatenate([table.extra[name] for table in tables]) for name in first.extra},
    )


def selected(table: NucleiTable, keep_n: NDArray[np.bool_]) -> NucleiTable:
    """Return the table of some of the nuclei.

    >>> selected(nuclei_table(np.array([[1, 2, 2]]), mpp=0.5), np.array([False, True])).areas_n.tolist()
    [2]
    """
    return NucleiTable(
        table.ids_n[keep_n],
        table.centroids_n2[keep_n],
        table.boxes_n4[keep_n],
        table.areas_n[keep_n],
        table.outlines.only(keep_n),
        table.types_n[keep_n],
        table.shares_n[keep_n],
        {name: od_n[keep_n] for name, od_n in table.stain_od.items()},
        table.mpp,
        {name: values_n[keep_n] for name, values_n in table.extra.items()},
    )


def _means(values_m: NDArray, of_m: NDArray[np.intp], areas_n: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.bincount(of_m, values_m, len(areas_n)) / areas_n


def measurements(table: NucleiTable) -> dict[str, NDArray]:
    """Return what was measured of each nucleus by name; names carry the unit.

    Args:
        table: of N nuclei.

    Returns:
        Arrays of N numbers.
    """
    x_n, y_n = table.centroids_n2.T
    return {
        "x_px": x_n,
        "y_px": y_n,
        "x_um": x_n * table.mpp,
        "y_um": y_n * table.mpp,
        "area_px2": table.areas_n,
        "area_um2": table.areas_n * table.mpp**2,
        "type_share": table.shares_n,
        **{f"{name}_od": od_n for name, od_n in table.stain_od.items()},
        **table.extra,
    }


def write_table(path: Path, table: NucleiTable, classes: Sequence[str]) -> None:
    """Write a CSV file with a row per nucleus: id, type, bounding box and `measurements`.

    Args:
        path: the file.
        table: the nuclei.
        classes: names of the types from 1 upwards.
    """
    columns: dict[str, list[Any]] = {
        "id": table.ids_n.tolist(),
        "type": [name_of(kind, classes) for kind in table.types_n.tolist()],
    }
    for name, side_n in zip(("left", "top", "right", "bottom"), table.boxes_n4.T, strict=True):
        columns[f"{name}_px"] = side_n.tolist()
    for name, values_n in measurements(table).items():
        columns[name] = [round(value, 4) for value in values_n.tolist()]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_csv(path, rows, columns)
