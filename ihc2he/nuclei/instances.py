"""Instance maps as sets of nuclei: their pixels, the joint areas of two maps, types by majority.

Shape suffixes: h, w = height, width; m = pixels of nuclei; n = nuclei of a map, in ascending order of their ids;
t, p = true and predicted nuclei; k = types; e = pairs of nuclei that overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_DENSE = 4  # a table may have this many cells per pixel before sorting is better


class Foreground(NamedTuple):
    """The pixels of all nuclei of a map, in raster order.

    Attributes:
        places_m: positions in the flattened map.
        of_m: the nucleus of each, as a position in `ids_n`.
        ids_n: the ids, ascending.
    """

    places_m: NDArray[np.intp]
    of_m: NDArray[np.intp]
    ids_n: NDArray[np.integer]


def foreground(inst_hw: NDArray[np.integer]) -> Foreground:
    """Return the pixels of all nuclei of a map.

    Args:
        inst_hw: HxW integers, 0 = background; ids need not be contiguous.

    Raises:
        ValueError: the array is not two-dimensional, not of integers, or has negative ids.

    >>> pixels = foreground(np.array([[0, 70], [5, 70]]))
    >>> pixels.places_m.tolist(), pixels.of_m.tolist(), pixels.ids_n.tolist()
    ([1, 2, 3], [1, 0, 1], [5, 70])
    """
    check_map(inst_hw)
    flat = inst_hw.ravel()
    places_m = np.flatnonzero(flat != 0)
    values_m = flat[places_m]
    if values_m.max(initial=0) > _DENSE * flat.size:
        ids_n, of_m = np.unique(values_m, return_inverse=True)
    else:
        present = np.bincount(values_m) > 0
        ids_n, of_m = np.flatnonzero(present), (np.cumsum(present) - 1)[values_m]
    return Foreground(places_m, of_m, ids_n)


def check_map(inst_hw: NDArray[np.integer]) -> None:
    """Refuse arrays that are not instance maps.

    Args:
        inst_hw: should be HxW integers, none below 0.

    Raises:
        ValueError: with what was found.

    >>> check_map(np.array([[0, 70], [5, 70]]))
    """
    if inst_hw.ndim != 2 or not np.issubdtype(inst_hw.dtype, np.integer):
        msg = f"An instance map is an HxW array of integers, found {inst_hw.dtype} of {inst_hw.shape}."
        raise ValueError(msg)
    if inst_hw.min(initial=0) < 0:
        msg = f"An instance map has 0 for background and positive ids, found {inst_hw.min()}."
        raise ValueError(msg)


def extent(positions_m: NDArray[np.intp], of_m: NDArray[np.intp], n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the smallest and the largest position of each of n nuclei, on one axis.

    Args:
        positions_m: row or column of each pixel.
        of_m: the nucleus of each pixel, from 0.
        n: number of nuclei.

    >>> extent(np.array([5, 6, 2]), np.array([0, 0, 1]), 2)
    (array([5, 2]), array([6, 2]))
    """
    low_n, high_n = np.full(n, np.iinfo(np.intp).max), np.full(n, -1)
    np.minimum.at(low_n, of_m, positions_m)
    np.maximum.at(high_n, of_m, positions_m)
    return low_n, high_n


def centroids(inst_hw: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the centre of mass of each nucleus, (N, 2) as (x, y), in ascending order of the ids.

    >>> centroids(np.array([[0, 7, 7], [0, 7, 7]])).tolist()
    [[1.5, 0.5]]
    """
    places_m, of_m, ids_n = foreground(inst_hw)
    areas_n = np.bincount(of_m, minlength=len(ids_n))
    places = (places_m % inst_hw.shape[1], places_m // inst_hw.shape[1])
    return np.stack([np.bincount(of_m, place_m, len(ids_n)) / areas_n for place_m in places], 1)


def means(map_hw: NDArray[np.float32], inst_hw: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the mean of a map over each nucleus, in ascending order of the ids.

    >>> means(np.array([[0.5, 1.0, 9.0]], np.float32), np.array([[4, 4, 0]], np.int32)).tolist()
    [0.75]
    """
    places_m, of_m, ids_n = foreground(inst_hw)
    areas_n = np.bincount(of_m, minlength=len(ids_n))
    return (np.bincount(of_m, map_hw.ravel()[places_m], len(ids_n)) / areas_n).astype(np.float32)


def without_holes(inst_hw: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return an instance map in which the holes of each nucleus belong to it; a gap between several stays.

    Args:
        inst_hw: instance map, 0 = background.

    >>> without_holes(np.array([[1, 1, 1, 0], [1, 0, 1, 2], [1, 1, 1, 2]], np.int32)).tolist()
    [[1, 1, 1, 0], [1, 1, 1, 2], [1, 1, 1, 2]]
    """
    n, hole_hw = cv2.connectedComponents((inst_hw == 0).view(np.uint8), connectivity=4)
    least_n, most_n = np.full(n, np.iinfo(np.int32).max, np.int32), np.zeros(n, np.int32)
    for near_hw, far_hw, near_inst_hw, far_inst_hw in (
        (hole_hw[:, 1:], hole_hw[:, :-1], inst_hw[:, 1:], inst_hw[:, :-1]),
        (hole_hw[1:], hole_hw[:-1], inst_hw[1:], inst_hw[:-1]),
    ):
        for of_hw, beside_hw in ((near_hw, far_inst_hw), (far_hw, near_inst_hw)):
            rim_hw = (of_hw > 0) & (beside_hw > 0)
            np.minimum.at(least_n, of_hw[rim_hw], beside_hw[rim_hw])
            np.maximum.at(most_n, of_hw[rim_hw], beside_hw[rim_hw])
    owner_n = np.where(least_n == most_n, most_n, 0)
    for border in (hole_hw[0], hole_hw[-1], hole_hw[:, 0], hole_hw[:, -1]):
        owner_n[border] = 0
    return inst_hw + owner_n[hole_hw]


@dataclass(frozen=True)
class Overlaps:
    """The nuclei of two maps of one tile, and the area that each pair of them shares.

    Attributes:
        true_ids_t: ids of the true nuclei, ascending.
        pred_ids_p: ids of the predicted ones, ascending.
        true_areas_t: areas in pixels.
        pred_areas_p: areas in pixels.
        true_e: for each pair that overlaps, the position of the true nucleus in `true_ids_t`, ascending.
        pred_e: the same in `pred_ids_p`.
        areas_e: their common area in pixels.
    """

    true_ids_t: NDArray[np.integer]
    pred_ids_p: NDArray[np.integer]
    true_areas_t: NDArray[np.int64]
    pred_areas_p: NDArray[np.int64]
    true_e: NDArray[np.int64]
    pred_e: NDArray[np.int64]
    areas_e: NDArray[np.int64]

    @cached_property
    def iou_e(self) -> NDArray[np.float64]:
        """Intersection over union of each pair that overlaps."""
        return self.areas_e / (self.true_areas_t[self.true_e] + self.pred_areas_p[self.pred_e] - self.areas_e)


def overlaps(true_hw: NDArray[np.integer], pred_hw: NDArray[np.integer]) -> Overlaps:
    """Return the areas of all nuclei of two maps and of all their intersections, by one joint histogram.

    Args:
        true_hw: instance map, 0 = background.
        pred_hw: instance map of the same shape.

    Raises:
        ValueError: the shapes differ, or an array is not an instance map.

    >>> pairs = overlaps(np.array([[1, 1, 1, 0]]), np.array([[0, 9, 9, 9]]))
    >>> pairs.areas_e.tolist(), pairs.iou_e.tolist()
    ([2], [0.5])
    """
    if true_hw.shape != pred_hw.shape:
        msg = f"Instance maps of one tile have one shape, found {true_hw.shape} and {pred_hw.shape}."
        raise ValueError(msg)
    true, pred = foreground(true_hw), foreground(pred_hw)
    pred_index = np.zeros(pred_hw.size, np.intp)
    pred_index[pred.places_m] = pred.of_m + 1
    width = len(pred.ids_n) + 1
    joint_m = true.of_m * width + pred_index[true.places_m]
    if len(true.ids_n) * width <= _DENSE * true_hw.size:
        table = np.bincount(joint_m)
        cells = np.flatnonzero(table)
        areas = table[cells]
    else:
        cells, areas = np.unique(joint_m, return_counts=True)
    both = cells % width > 0
    return Overlaps(
        true.ids_n,
        pred.ids_n,
        np.bincount(true.of_m, minlength=len(true.ids_n)),
        np.bincount(pred.of_m, minlength=len(pred.ids_n)),
        cells[both] // width,
        cells[both] % width - 1,
        areas[both],
    )


def instance_types(
    inst_hw: NDArray[np.integer], types_hw: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the type of each nucleus by majority of its pixels, and the share of its pixels that agree.

    As in HoVer-Net, type 0 (background, unknown) is used only if no pixel of the nucleus has another one. Ties go
    to the lower type.

    Args:
        inst_hw: instance map, 0 = background.
        types_hw: HxW integers, a type per pixel.

    Returns:
        Types and shares in (0, 1], one per nucleus in ascending order of the ids.

    Raises:
        ValueError: the shapes differ, or types are negative.

    >>> instance_types(np.array([[3, 3, 3, 0, 8]]), np.array([[0, 0, 2, 1, 1]]))
    (array([2, 1]), array([0.33333334, 1.        ], dtype=float32))
    """
    if inst_hw.shape != types_hw.shape or types_hw.min(initial=0) < 0:
        msg = f"Expected one type from 0 upwards per pixel: map {inst_hw.shape}, types {types_hw.shape}."
        raise ValueError(msg)
    places_m, of_m, ids_n = foreground(inst_hw)
    n, k = len(ids_n), int(types_hw.max(initial=0)) + 1
    votes_nk = np.bincount(of_m * k + types_hw.ravel()[places_m], minlength=n * k).reshape(n, k)
    ranked_nk = votes_nk.copy()
    ranked_nk[:, 0] = 0
    types_n = ranked_nk.argmax(1)
    shares_n = votes_nk[np.arange(n), types_n] / votes_nk.sum(1)
    return types_n, shares_n.astype(np.float32)
