"""Nuclei over the area of a slide: maps of their density and positivity, and hot spots.

Shape suffixes: n = nuclei; h, w = height, width of a map; 2 = (x, y) in um.
"""

from __future__ import annotations

from math import ceil, pi, sqrt
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_BINS = 24  # bins over the diameter of a hot spot


class HotSpot(NamedTuple):
    """A round field with many positive nuclei.

    Attributes:
        x_um: of its centre.
        y_um: likewise.
        radius_um: of the field.
        nuclei: whose centres are in it.
        positive: how many of them are positive.
    """

    x_um: float
    y_um: float
    radius_um: float
    nuclei: int
    positive: int


def binned(points_n2: NDArray[np.floating], size_um: tuple[float, float], bin_um: float) -> NDArray[np.float32]:
    """Return how many points are in each square bin of an area.

    Args:
        points_n2: (x, y) in um.
        size_um: height and width of the area.
        bin_um: side of a bin.

    >>> binned(np.array([[5.0, 1.0], [9.0, 1.0], [11.0, 1.0]]), (10, 20), 10).tolist()
    [[2.0, 1.0]]
    """
    height, width = (max(1, ceil(side / bin_um)) for side in size_um)
    x_n, y_n = (points_n2 // bin_um).astype(np.int64).T
    cell_n = y_n.clip(0, height - 1) * width + x_n.clip(0, width - 1)
    return np.bincount(cell_n, minlength=height * width).reshape(height, width).astype(np.float32)


def hot_spots(
    points_n2: NDArray[np.floating],
    positive_n: NDArray[np.bool_],
    size_um: tuple[float, float],
    area_mm2: float = 1.0,
    most: int = 3,
) -> list[HotSpot]:
    """Return the round fields with most positive nuclei, the best first, which do not overlap.

    Their centres are found on a grid of a 24th of the diameter; their nuclei are counted exactly.

    Args:
        points_n2: centre of each nucleus, (x, y) in um.
        positive_n: whether it is positive.
        size_um: height and width of the slide.
        area_mm2: of a field.
        most: number of fields; fewer where no positive nucleus is left.

    >>> points = np.array([[100.0, 100.0], [120.0, 100.0], [5000.0, 900.0]])
    >>> [spot.positive for spot in hot_spots(points, np.ones(3, bool), (2000, 6000))]
    [2, 1]
    """
    radius = sqrt(area_mm2 / pi) * 1000
    step = 2 * radius / _BINS
    sums_hw = _summed(binned(points_n2[positive_n], size_um, step), radius / step)
    rows, columns = (np.arange(side)[:, None] for side in sums_hw.shape)
    spots: list[HotSpot] = []
    while len(spots) < most and (positive := sums_hw.max()) > 0:
        first_row, first_column = np.unravel_index(int(sums_hw.argmax()), sums_hw.shape)
        # Of equally good bins, the middle of the first and those near it.
        near_hw = (rows - first_row) ** 2 + (columns.T - first_column) ** 2 <= (radius / step) ** 2
        row, column = (float(at.mean()) for at in np.nonzero(near_hw & (sums_hw == positive)))
        x, y = (column + 0.5) * step, (row + 0.5) * step
        in_n = ((points_n2 - (x, y)) ** 2).sum(1) <= radius**2
        sums_hw[(rows - row) ** 2 + (columns.T - column) ** 2 < (2 * radius / step) ** 2] = 0
        if (in_n & positive_n).any():
            spots.append(HotSpot(x, y, radius, int(in_n.sum()), int((in_n & positive_n).sum())))
    return sorted(spots, key=lambda spot: -spot.positive)


def _summed(counts_hw: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Return for each bin the sum of the bins that are at most a radius away."""
    reach = int(radius)
    away = np.arange(-reach, reach + 1) ** 2
    disc = (away[:, None] + away <= radius**2).astype(np.float32)
    return np.rint(cv2.filter2D(counts_hw, cv2.CV_32F, disc, borderType=cv2.BORDER_CONSTANT))


def smoothed_ratio(part_hw: NDArray[np.float32], whole_hw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ratio of two maps after both were smoothed by a Gaussian of one bin; NaN where the second is 0.

    >>> smoothed_ratio(np.ones((1, 2), np.float32), np.full((1, 2), 2, np.float32)).tolist()
    [[0.5, 0.5]]
    """
    part_smooth_hw, whole_smooth_hw = (
        cv2.GaussianBlur(map_hw, (0, 0), 1.0, borderType=cv2.BORDER_CONSTANT) for map_hw in (part_hw, whole_hw)
    )
    ratio_hw = np.full(whole_hw.shape, np.nan, np.float32)
    np.divide(part_smooth_hw, whole_smooth_hw, out=ratio_hw, where=whole_hw > 0)
    return ratio_hw
