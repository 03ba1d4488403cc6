"""Label maps of nuclei: reading and numbering."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images.decoding import read_whole

MAX_LABEL = 2**24 - 1  # the greatest that float32, in which OpenCV warps label maps, holds exactly


def read_labels(path: Path) -> NDArray[np.int32]:
    """Return the values of a single-channel PNG or TIFF file of whole numbers as HxW int32.

    Raises:
        DataError: where the file is missing, damaged, has several channels or pages, or values that are no labels.
    """
    data = read_whole(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        pixels: NDArray[Any] | None = tifffile.imread(path)
    else:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if data.startswith(b"\xff\xd8"):
        problem = "JPEG changes the values"
    elif pixels is None:
        problem = "the image does not decode"
    elif pixels.ndim != 2:
        problem = f"found an array of shape {pixels.shape}"
    elif not np.issubdtype(pixels.dtype, np.integer):
        problem = f"found {pixels.dtype} values"
    elif pixels.min() < 0 or pixels.max() > MAX_LABEL:
        problem = f"found values from {pixels.min()} to {pixels.max()}"
    else:
        return pixels.astype(np.int32)
    msg = f"{path}: {problem}; expected one channel of whole numbers from 0 to {MAX_LABEL}. Save it as a 16-bit PNG."
    raise DataError(msg)


def number_consecutively(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Return a map of the same shape whose labels are 1 to n in the order of the old ones; 0 stays 0.

    >>> number_consecutively(np.array([[0, 70000], [5, 5]])).tolist()
    [[0, 2], [1, 1]]
    """
    values, inverse = np.unique(labels, return_inverse=True)
    return (inverse.reshape(labels.shape) + int(values[0] != 0)).astype(np.int32)
