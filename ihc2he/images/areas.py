"""Parts of an image of any size, kept as a map of low resolution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Area:
    """A part of an image.

    Args:
        map_hw: where the part is, at any lower resolution.
        shape: height and width of the image, px.
    """

    def __init__(self, map_hw: NDArray[np.bool_], shape: tuple[int, int]) -> None:
        self.map_hw = map_hw
        self.shape = shape
        # For each row and column of the image, the one of the map.
        self._rows, self._columns = (
            np.arange(size) * small // size for size, small in zip(shape, map_hw.shape, strict=True)
        )

    @property
    def share(self) -> float:
        """Share of the image that is in it."""
        return self.covers(slice(None), slice(None))

    def covers(self, rows: slice, columns: slice) -> float:
        """Return the share of a region that is in it."""
        height, width = (np.bincount(of) for of in (self._rows[rows], self._columns[columns]))
        inside = self.map_hw[: len(height), : len(width)]
        return float(height @ inside @ width) / (height.sum() * width.sum())

    def region(self, rows: slice, columns: slice) -> NDArray[np.bool_]:
        """Return which pixels of a region are in it."""
        return self.map_hw[self._rows[rows][:, None], self._columns[columns]]

    def box(self, rows: slice, columns: slice) -> tuple[slice, slice] | None:
        """Return the smallest part of a region that has all of it there; None: the region has none.

        >>> Area(np.array([[False, True, False]]), (2, 6)).box(slice(0, 2), slice(1, 6))
        (slice(0, 2, None), slice(2, 4, None))
        """
        own = self._rows[rows], self._columns[columns]
        inside = self.map_hw[own[0][0] : own[0][-1] + 1, own[1][0] : own[1][-1] + 1]
        if not inside.any():
            return None
        parts = []
        for part, of, held_k in ((rows, own[0], inside.any(1)), (columns, own[1], inside.any(0))):
            held = np.flatnonzero(np.asarray(held_k)[of - of[0]])
            parts.append(slice(part.start + int(held[0]), part.start + int(held[-1]) + 1))
        return parts[0], parts[1]

    def at(self, points_n2: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return which points are in it; (x, y) in px of the image."""
        x_n, y_n = np.rint(points_n2).astype(np.intp).T
        rows_n, columns_n = (np.clip(at, 0, len(of) - 1) for at, of in ((y_n, self._rows), (x_n, self._columns)))
        return self.map_hw[self._rows[rows_n], self._columns[columns_n]]
