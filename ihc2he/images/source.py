"""Images that are read by region, so that nobody has to hold a large one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


class ImageSource(ABC):
    """An image of any size.

    Attributes:
        name: of the image, for messages.
        shape: height and width in px, at full resolution.
        mpp: um/px at full resolution; None where it is not known.
        levels: by how much each level is smaller than full resolution, from 1.0 on.
    """

    name: str
    shape: tuple[int, int]
    mpp: float | None
    levels: tuple[float, ...] = (1.0,)

    @abstractmethod
    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region, HxWx3 uint8 RGB.

        Args:
            rows: from and to, in the pixels of the level; inside of the image.
            columns: likewise.
            level: index into `levels`.

        Raises:
            DataError: where the file cannot be read.
        """

    def thumbnail(self, most_px: int) -> NDArray[np.uint8]:
        """Return the whole image, its longer side at most so many px, HxWx3 uint8 RGB."""
        raise NotImplementedError
