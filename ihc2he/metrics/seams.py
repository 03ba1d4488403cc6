"""Seams: whether an image that was made window by window shows where the windows meet.

Shape suffixes: h, w = height, width; c = colour; n = lines between neighbouring rows or columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BESIDE = 16  # px; steps so near to a border are those of the same tissue


class Seams:
    """Measures the steps from pixel to pixel across borders against those beside them, strip by strip.

    Args:
        rows: where windows meet: the first row of each but the first.
        columns: likewise.

    >>> image = np.random.default_rng(0).normal(128, 5, (200, 200, 3))
    >>> image[:, 100:] += 10
    >>> seams = Seams([100], [100])
    >>> for top in range(0, 200, 64):
    ...     seams.add(image[top : top + 64])
    >>> round(seams.ratio, 1)
    1.4
    """

    def __init__(self, rows: Sequence[int], columns: Sequence[int]) -> None:
        self._borders = [np.asarray(sorted(lines), np.int64) for lines in (rows, columns)]
        self._row_steps: list[NDArray[np.float64]] = []  # their sums, line by line
        self._column_steps: NDArray[np.float64] | float = 0.0
        self._last_1wc: NDArray | None = None
        self._rows = 0

    def add(self, strip_hwc: NDArray) -> None:
        """Add the next rows of the image, HxWxC of any kind of numbers."""
        values_hwc = strip_hwc.astype(np.float32)
        self._column_steps = self._column_steps + np.abs(np.diff(values_hwc, axis=1)).sum((0, 2), dtype=np.float64)
        self._rows += len(values_hwc)
        if self._last_1wc is not None:
            values_hwc = np.concatenate([self._last_1wc, values_hwc])
        self._row_steps.append(np.abs(np.diff(values_hwc, axis=0)).sum((1, 2), dtype=np.float64))
        self._last_1wc = values_hwc[-1:]

    @property
    def ratio(self) -> float:
        """Mean absolute step across borders over that beside them, up to 16 px away; 1: no seams, nan: no borders."""
        if self._last_1wc is None or not any(len(lines) for lines in self._borders):
            return math.nan
        rows_n, columns_n = np.concatenate(self._row_steps), np.asarray(self._column_steps)
        across, beside = np.zeros(2), np.zeros(2)  # sum and number of steps
        for sums_n, lines, length in (
            (rows_n, self._borders[0], self._last_1wc.shape[1]),
            (columns_n, self._borders[1], self._rows),
        ):
            border_n = np.zeros(len(sums_n), bool)
            border_n[lines - 1] = True
            beside_n = np.convolve(border_n, np.ones(2 * _BESIDE + 1), "full")[_BESIDE : _BESIDE + len(sums_n)] > 0.5
            across += sums_n[border_n].sum(), border_n.sum() * length
            beside_n &= ~border_n
            beside += sums_n[beside_n].sum(), beside_n.sum() * length
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.divide(*across) / np.divide(*beside))
