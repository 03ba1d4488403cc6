"""An image source from outside the package: images in NumPy files, with values of 0 to 1."""

import numpy as np

from ihc2he.errors import DataError
from ihc2he.images.source import ImageSource


class Halves(ImageSource):
    """An HxWx3 array of floats, of which a region is converted when it is asked for."""

    def __init__(self, path: str, mpp: float | None = None) -> None:
        try:
            self.values = np.load(path, mmap_mode="r")
        except ValueError as error:
            msg = f"{path}: no array of NumPy ({error}). Save it by numpy.save."
            raise DataError(msg) from error
        self.name, self.mpp, self.shape = path, mpp, self.values.shape[:2]

    def read(self, rows: slice, columns: slice, level: int = 0) -> np.ndarray:
        """Return a region, HxWx3 uint8 RGB."""
        return np.rint(self.values[rows, columns].astype(np.float32) * 255).astype(np.uint8)
