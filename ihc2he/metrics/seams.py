"""Seams: whether an image that was made window by window shows where the windows meet.

Shape suffixes: h, w = height, width; c = colour; n = lines between neighbouring rows or columns; 2 = sum and number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BESIDE = 16  # px; steps so near to a border are those of the same tissue
_ROWS = 64  # that are looked at at once


class Seams:
    """Measures the steps from pixel to pixel across borders against those beside them, strip by strip.

    Args:
        rows: where windows meet: the first row of each but the first.
        columns: likewise.
        period: px; a network that halves its image makes steps that differ from line to line and repeat with what it
            halves to. Then only lines that are multiples of this away are compared, the next two on each side.

    >>> image = np.random.default_rng(0).normal(128, 5, (200, 200, 3))
    >>> image[:, 100:] += 10
    >>> seams = Seams([100], [100])
    >>> for top in range(0, 200, 64):
    ...     seams.add(image[top : top + 64])
    >>> round(seams.ratio, 1)
    1.4
    """

    def __init__(self, rows: Sequence[int], columns: Sequence[int], period: int = 1) -> None:
        self._borders = [np.asarray(sorted(lines), np.int64) for lines in (rows, columns)]
        self._away = [k * period for k in range(1, max(2, _BESIDE // period) + 1)]
        self._row_steps: list[NDArray[np.float64]] = []  # sum and number of steps, line by line
        self._column_steps: NDArray[np.float64] = np.zeros((2, 1))  # of each column, for all rows
        self._last: tuple[NDArray, NDArray[np.bool_]] | None = None

    def add(self, strip_hwc: NDArray, made_hw: NDArray[np.bool_] | None = None) -> None:
        """Add the next rows of the image.

        Args:
            strip_hwc: HxWxC of any kind of numbers.
            made_hw: pixels that windows have made; only steps between such count. None: all.
        """
        made_hw = np.ones(strip_hwc.shape[:2], bool) if made_hw is None else made_hw
        for top in range(0, len(strip_hwc), _ROWS):
            self._add(strip_hwc[top : top + _ROWS].astype(np.float32), made_hw[top : top + _ROWS])

    def _add(self, values_hwc: NDArray[np.float32], made_hw: NDArray[np.bool_]) -> None:
        self._column_steps = self._column_steps + _steps(values_hwc, made_hw, 1)
        if self._last is not None:
            values_hwc, made_hw = (
                np.concatenate([last, new]) for last, new in zip(self._last, (values_hwc, made_hw), strict=True)
            )
        self._row_steps.append(_steps(values_hwc, made_hw, 0))
        self._last = values_hwc[-1:], made_hw[-1:]

    @property
    def ratio(self) -> float:
        """Mean absolute step across borders over that beside them; 1: no seams, nan: no borders."""
        if self._last is None or not any(len(lines) for lines in self._borders):
            return math.nan
        across_2, beside_2 = np.zeros(2), np.zeros(2)
        for steps_2n, lines in zip(
            (np.concatenate(self._row_steps, 1), self._column_steps), self._borders, strict=True
        ):
            border_n = np.zeros(steps_2n.shape[1], bool)
            border_n[lines - 1] = True
            near = (lines[:, None] - 1 + np.concatenate([self._away, np.negative(self._away)])).ravel()
            beside_n = np.zeros(len(border_n), bool)
            beside_n[near[(near >= 0) & (near < len(border_n))]] = True
            across_2 += steps_2n[:, border_n].sum(1)
            beside_2 += steps_2n[:, beside_n & ~border_n].sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.divide(*across_2) / np.divide(*beside_2))


def _steps(values_hwc: NDArray[np.float32], made_hw: NDArray[np.bool_], axis: int) -> NDArray[np.float64]:
    """Return the sum of the absolute steps along an axis for each of its lines, and their number, (2, N)."""
    both_hw = made_hw[1:] & made_hw[:-1] if axis == 0 else made_hw[:, 1:] & made_hw[:, :-1]
    steps_hwc = np.abs(np.diff(values_hwc, axis=axis)) * both_hw[..., None]
    return np.stack([steps_hwc.sum((1 - axis, 2), dtype=np.float64), both_hw.sum(1 - axis) * values_hwc.shape[2]])
