"""Label maps of nuclei: reading and numbering."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images.decoding import read_samples

MAX_LABEL = 2**24 - 1  # the largest label that is exact in float32, which OpenCV uses to warp label maps


def read_labels(path: Path) -> NDArray[np.int32]:
    """Return the values of a single-channel PNG or TIFF file of whole numbers as HxW int32.

    They are the stored values, not colours: few bits are not scaled, white may be 0, and with a palette they are the
    positions in it. The orientation in the file is followed.

    Raises:
        DataError: if the file is missing, damaged, has several channels or pages, or values that are not labels.
    """
    samples = read_samples(path, raw=True)
    pixels = samples.labels()
    if samples.lossy:
        problem = "JPEG changes the values"
    elif pixels.ndim != 2:
        problem = f"found an array of shape {pixels.shape}"
    elif not np.issubdtype(pixels.dtype, np.integer):
        problem = f"found {pixels.dtype} values"
    elif pixels.min() < 0 or pixels.max() > MAX_LABEL:
        problem = f"found values from {pixels.min()} to {pixels.max()}"
    else:
        return np.ascontiguousarray(pixels, np.int32)
    msg = f"{path}: {problem}; expected one channel of whole numbers from 0 to {MAX_LABEL}. Save it as a 16-bit PNG."
    raise DataError(msg)


def number_consecutively(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Return a map of the same shape whose labels are 1 to n in the order of the old ones; 0 stays 0.

    >>> number_consecutively(np.array([[0, 70000], [5, 5]])).tolist()
    [[0, 2], [1, 1]]
    """
    values, inverse = np.unique(labels, return_inverse=True)
    return (inverse.reshape(labels.shape) + int(values[0] != 0)).astype(np.int32)
