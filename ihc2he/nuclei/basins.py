"""A map divided among its maxima: each pixel belongs to the maximum above it, and shallow valleys do not divide.

Plain maxima split what is flat: a large nucleus, whose centre the network does not know exactly, has several. Here two
maxima are one if the pass between them is nearly as high as the lower one, whatever their distance.
Shape suffixes: h, w = height, width; m = pixels of the mask, in raster order; n = maxima; e = pairs of neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEIGHBOURS = ((0, 1), (1, -1), (1, 0), (1, 1))  # (rows, columns), each pair of neighbours once


class Basins(NamedTuple):
    """The parts of a mask.

    Attributes:
        places_m: positions of the pixels of the mask in the flattened map.
        of_m: the part of each, from 0.
        peaks_n: the highest value of each part.
    """

    places_m: NDArray[np.intp]
    of_m: NDArray[np.intp]
    peaks_n: NDArray[np.float32]


def basins(map_hw: NDArray[np.float32], mask_hw: NDArray[np.bool_], ratio: float, least: float = 0.0) -> Basins:
    """Return the parts into which valleys divide a mask; a part never covers two pieces of it.

    Args:
        map_hw: of at least 0.
        mask_hw: what is divided; its pieces touch by sides or corners.
        ratio: a valley divides two maxima if the highest pass between them is below this share of the lower one.
        least: a lower maximum than this is part of a higher one that it touches.

    >>> map_hw, mask_hw = np.array([[0.9, 0.7, 0.8, 0.3, 0.6, 0.1]], np.float32), np.array([[True] * 5 + [False]])
    >>> basins(map_hw, mask_hw, 0.85).of_m.tolist(), basins(map_hw, mask_hw, 0.99).of_m.tolist()
    ([0, 0, 0, 0, 1], [0, 0, 1, 1, 2])
    """
    places_m, summit_m, peaks_n = _ascents(map_hw, mask_hw)
    of_n = _united(*_passes(map_hw, places_m, summit_m), peaks_n, ratio, least)
    kept, of_n = np.unique(of_n, return_inverse=True)
    return Basins(places_m, of_n[summit_m], peaks_n[kept])


def _ascents(
    map_hw: NDArray[np.float32], mask_hw: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the pixels of a mask, the maximum that the steepest way up from each ends at, and the maxima's heights.

    Of equal neighbours the later one is higher, so that a plateau has one maximum for each of its ways up.
    """
    width = map_hw.shape[1] + 2
    heights = np.pad(np.where(mask_hw, map_hw, np.float32(-1)), 1, constant_values=-1).ravel()
    places_m = np.flatnonzero(mask_hw)
    padded_m = places_m + width + 1 + 2 * (places_m // map_hw.shape[1])
    highest_m, above_m = heights[padded_m], padded_m.copy()
    for dy, dx in _NEIGHBOURS:
        for step in (dy * width + dx, -dy * width - dx):
            there_m = heights[padded_m + step]
            up_m = (there_m > highest_m) | ((there_m == highest_m) & (padded_m + step > above_m))
            highest_m = np.where(up_m, there_m, highest_m)
            above_m = np.where(up_m, padded_m + step, above_m)
    position = np.zeros(heights.size, np.intp)
    position[padded_m] = np.arange(len(padded_m))
    way_m = position[above_m]
    while not np.array_equal(further_m := way_m[way_m], way_m):
        way_m = further_m
    tops, summit_m = np.unique(way_m, return_inverse=True)
    return places_m, summit_m, heights[padded_m[tops]]


def _passes(
    map_hw: NDArray[np.float32], places_m: NDArray[np.intp], summit_m: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return each pair of maxima whose pixels touch, and the highest pass between them, from high to low."""
    height, width = map_hw.shape
    part_hw = np.full(height * width, -1, np.intp)
    part_hw[places_m] = summit_m
    part_hw = part_hw.reshape(height, width)
    first, second, levels = [], [], []
    for dy, dx in _NEIGHBOURS:
        here = np.s_[: height - dy, max(0, -dx) : width - max(0, dx)]
        there = np.s_[dy:, max(0, dx) : width + min(0, dx)]
        a_hw, b_hw = part_hw[here], part_hw[there]
        meet_hw = (a_hw != b_hw) & (a_hw >= 0) & (b_hw >= 0)
        first.append(a_hw[meet_hw])
        second.append(b_hw[meet_hw])
        levels.append(np.minimum(map_hw[here][meet_hw], map_hw[there][meet_hw]))
    a_e, b_e, level_e = np.concatenate(first), np.concatenate(second), np.concatenate(levels)
    order = np.argsort(-level_e, kind="stable")
    a_e, b_e, level_e = np.minimum(a_e, b_e)[order], np.maximum(a_e, b_e)[order], level_e[order]
    n = int(summit_m.max(initial=0)) + 1
    highest = np.sort(np.unique(a_e * n + b_e, return_index=True)[1])
    return a_e[highest], b_e[highest], level_e[highest]


def _united(
    a_e: NDArray[np.intp],
    b_e: NDArray[np.intp],
    level_e: NDArray[np.float32],
    peaks_n: NDArray[np.float32],
    ratio: float,
    least: float,
) -> NDArray[np.intp]:
    """Return for each maximum the one that it belongs to; of two that are one, the higher."""
    above, peaks = list(range(len(peaks_n))), peaks_n.tolist()

    def top(i: int) -> int:
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    for a, b, level in zip(a_e.tolist(), b_e.tolist(), level_e.tolist(), strict=True):
        high, low = top(a), top(b)
        if peaks[high] < peaks[low]:
            high, low = low, high
        if level >= ratio * peaks[low] or peaks[low] < least:
            above[low] = high
    return np.array([top(i) for i in range(len(above))], np.intp)
