"""Slides of which some regions do not decode: these are glass, for looking at the slide as a whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images.source import ImageSource

_LEAST = 64  # px; of a larger region, the part that decodes is looked for
_MOST = 256  # parts that may be missing; with more the file is no slide


class Forgiving(ImageSource):
    """A slide whose undecodable parts are white.

    Args:
        source: the slide.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.name, self.shape, self.mpp = source.name, source.shape, source.mpp
        self.levels, self.by_region = source.levels, source.by_region
        self._missing = 0

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a level in px."""
        return self.source.level_shape(level)

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region.

        Raises:
            DataError: if more than a few parts of the slide do not decode.
        """
        try:
            return self.source.read(rows, columns, level)
        except DataError:
            height, width = rows.stop - rows.start, columns.stop - columns.start
            if max(height, width) <= _LEAST:
                self._missing += 1
                if self._missing > _MOST:
                    raise
                return np.full((height, width, 3), 255, np.uint8)
        if height >= width:
            middle = rows.start + height // 2
            halves = [self.read(part, columns, level) for part in (slice(rows.start, middle), slice(middle, rows.stop))]
            return np.concatenate(halves)
        middle = columns.start + width // 2
        parts = (slice(columns.start, middle), slice(middle, columns.stop))
        return np.concatenate([self.read(rows, part, level) for part in parts], 1)
