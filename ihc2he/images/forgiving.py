"""Slides of which some regions do not decode: these are glass, for looking at the slide as a whole."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images.source import ImageSource

_LEAST = 64  # px; of a larger region, the part that decodes is looked for
_MOST = 256  # parts that may be missing until only larger ones are looked at
_LARGE = 1024  # px; of these


class Forgiving(ImageSource):
    """A slide whose undecodable parts are white.

    Args:
        source: the slide.

    Attributes:
        lost: what did not decode so far: rows and columns, from and to, as shares of the height and width.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.name, self.shape, self.mpp = source.name, source.shape, source.mpp
        self.levels, self.by_region = source.levels, source.by_region
        self.lost: set[tuple[tuple[float, float], tuple[float, float]]] = set()

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a level in px."""
        return self.source.level_shape(level)

    def lost_map(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return a map with every pixel that what did not decode touches."""
        lost_hw = np.zeros((height, width), bool)
        for (top, bottom), (left, right) in self.lost:
            rows, columns = (
                slice(floor(low * side), ceil(high * side))
                for low, high, side in ((top, bottom, height), (left, right, width))
            )
            lost_hw[rows, columns] = True
        return lost_hw

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        try:
            return self.source.read(rows, columns, level)
        except DataError:
            height, width = rows.stop - rows.start, columns.stop - columns.start
            if max(height, width) <= (_LEAST if len(self.lost) < _MOST else _LARGE):
                down, across = self.level_shape(level)
                self.lost.add(((rows.start / down, rows.stop / down), (columns.start / across, columns.stop / across)))
                return np.full((height, width, 3), 255, np.uint8)
        if height >= width:
            middle = rows.start + height // 2
            halves = [self.read(part, columns, level) for part in (slice(rows.start, middle), slice(middle, rows.stop))]
            return np.concatenate(halves)
        middle = columns.start + width // 2
        parts = (slice(columns.start, middle), slice(middle, columns.stop))
        return np.concatenate([self.read(rows, part, level) for part in parts], 1)
