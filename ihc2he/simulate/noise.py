"""Smooth random fields."""

import cv2
import numpy as np
from numpy.typing import NDArray


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a Gaussian random field of zero mean and unit variance.

    Drawn on a grid as coarse as the field is smooth, then enlarged: the cost does not grow with `scale`.

    Args:
        shape: (height, width) in pixels.
        scale: correlation length in pixels, about half the width of a blob.
        rng: source of randomness.

    >>> smooth_noise((5, 7), 3.0, np.random.default_rng(0)).shape
    (5, 7)
    """
    cell = max(scale / 1.5, 1.0)
    sigma = scale / cell
    rows, cols = (int(side / cell) + 5 for side in shape)
    coarse_hw = cv2.GaussianBlur(rng.standard_normal((rows, cols), np.float32), (0, 0), max(sigma, 0.3))
    # White noise blurred by a Gaussian keeps the fraction 1 / (4 pi sigma^2) of its variance.
    coarse_hw *= np.float32(np.sqrt(4 * np.pi) * max(sigma, 0.3))
    if cell == 1.0:
        return np.ascontiguousarray(coarse_hw[: shape[0], : shape[1]])
    fine_hw = cv2.resize(coarse_hw, (round(cols * cell), round(rows * cell)), interpolation=cv2.INTER_CUBIC)
    top, left = (int(v * cell) for v in rng.uniform(1, 2, 2))
    return np.ascontiguousarray(fine_hw[top : top + shape[0], left : left + shape[1]])
