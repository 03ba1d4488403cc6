"""Smooth random fields."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[Any]  # float32; OpenCV's type stubs are not more precise


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> Map:
    """Return a Gaussian random field of zero mean and unit variance.

    Smooth fields are drawn on a coarse grid and enlarged, so the cost does not grow with `scale`.

    Args:
        shape: (height, width) in pixels.
        scale: correlation length in pixels, about half the width of a blob.
        rng: source of randomness.

    >>> smooth_noise((5, 7), 3.0, np.random.default_rng(0)).shape
    (5, 7)
    """
    cell = max(scale / 2.5, 1.0)
    sigma = scale / cell
    rows, cols = (int(side / cell) + 5 for side in shape)
    kernel = cv2.getGaussianKernel(2 * int(np.ceil(3 * sigma)) + 1, sigma)
    coarse_hw: Map = cv2.sepFilter2D(rng.standard_normal((rows, cols), np.float32), -1, kernel, kernel)
    coarse_hw /= np.float32((kernel**2).sum())  # the standard deviation of white noise after this kernel
    if cell == 1.0:
        return np.ascontiguousarray(coarse_hw[: shape[0], : shape[1]])
    fine_hw = cv2.resize(coarse_hw, (round(cols * cell), round(rows * cell)), interpolation=cv2.INTER_LINEAR)
    top, left = (int(v * cell) for v in rng.uniform(1, 2, 2))
    return np.ascontiguousarray(fine_hw[top : top + shape[0], left : left + shape[1]])
