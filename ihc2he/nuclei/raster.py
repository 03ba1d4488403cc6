"""Polygons drawn into an instance map: the inverse of `ihc2he.nuclei.outlines`.

Shape suffixes: h, w = height, width; r = rings; e = their sides, or the corners that these start from; c = crossings of
a side with a line of pixel centres; s = spans of pixels between two crossings; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Rounding = Callable[[NDArray], NDArray]


def fill(
    shape: tuple[int, int], rings: Sequence[NDArray[np.number]], polygon_r: Sequence[int], number_p: Sequence[int]
) -> NDArray[np.int32]:
    """Return a map in which each pixel has the highest number of a polygon that its centre lies in or on.

    Args:
        shape: height and width.
        rings: (P, 2) corners each, in px from the corner of the first pixel; the last one leads to the first.
        polygon_r: the polygon of each ring; a point is inside a polygon where it is inside an odd number of its rings,
            so that its further rings are holes.
        number_p: the number of each polygon, from 1, not falling.

    >>> square = np.array([[1, 0], [3, 0], [3, 2], [1, 2]])
    >>> fill((2, 4), [square], [0], [5]).tolist()
    [[0, 5, 5, 0], [0, 5, 5, 0]]
    """
    if not rings:
        return np.zeros(shape, np.int32)
    size_r = [len(ring) for ring in rings]
    from_e2 = np.concatenate(rings).astype(np.float64) - 0.5  # pixel centres are whole numbers
    ends_r = np.cumsum(size_r)
    next_e = np.arange(1, len(from_e2) + 1)
    next_e[ends_r - 1] = ends_r - size_r
    sides = (from_e2, from_e2[next_e], np.repeat(polygon_r, size_r), np.asarray(number_p, np.int32))
    inst_hw = _filled(shape, *sides, np.ceil)
    if (from_e2[:, 1] % 1 == 0).any():
        # A row of centres through corners is looked at just below and just above, so that all on a side is inside.
        inst_hw = np.maximum(inst_hw, _filled(shape, *sides, _after))
    return inst_hw


def _after(values: NDArray) -> NDArray:
    """Return the next whole numbers above."""
    return np.floor(values) + 1


def _filled(
    shape: tuple[int, int],
    from_e2: NDArray[np.float64],
    to_e2: NDArray[np.float64],
    polygon_e: NDArray[np.integer],
    number_p: NDArray[np.int32],
    first_row: Rounding,
) -> NDArray[np.int32]:
    """Return the map where a side crosses the rows from `first_row` of its upper to before that of its lower end."""
    height, width = shape
    y_e2 = np.stack([from_e2[:, 1], to_e2[:, 1]], 1)
    top_e, bottom_e = (first_row(y_e).clip(0, height).astype(np.int64) for y_e in (y_e2.min(1), y_e2.max(1)))
    side_c = np.repeat(np.arange(len(top_e)), bottom_e - top_e)
    row_c = top_e[side_c] + _counted(bottom_e - top_e)
    (x_c, y_c), (dx_c, dy_c) = from_e2[side_c].T, (to_e2 - from_e2)[side_c].T
    x_c = x_c + (row_c - y_c) * (dx_c / dy_c)
    order = np.lexsort((x_c, polygon_e[side_c].astype(np.int64) * height + row_c))
    row_s, polygon_s = row_c[order[::2]], polygon_e[side_c[order[::2]]]
    left_s = np.ceil(x_c[order[::2]]).clip(0, width).astype(np.int64)
    right_s = (np.floor(x_c[order[1::2]]) + 1).clip(0, width).astype(np.int64)
    length_s = (right_s - left_s).clip(0)
    inst_hw = np.zeros(shape, np.int32)
    places = np.repeat(row_s * width + left_s, length_s) + _counted(length_s)
    inst_hw.reshape(-1)[places] = np.repeat(number_p[polygon_s], length_s)  # of one pixel the last polygon remains
    return inst_hw


def _counted(length_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, ... for each length, one after another."""
    return np.arange(length_s.sum()) - np.repeat(np.cumsum(length_s) - length_s, length_s)
