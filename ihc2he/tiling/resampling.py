"""From one pixel size to another: images, instance maps and points. Sizes follow from um/px alone.

Shape suffixes: b = batch, c = channel, h, w = height, width; n2 = points as (x, y).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def resampled_size(height: int, width: int, mpp: float, target_mpp: float) -> tuple[int, int]:
    """Return the height and width in px that an image has at another pixel size; at least 1.

    >>> resampled_size(200, 300, 0.5, 0.25)
    (400, 600)
    """
    return max(1, round(height * mpp / target_mpp)), max(1, round(width * mpp / target_mpp))


def resized(x_bchw: Tensor, height: int, width: int) -> Tensor:
    """Return images at another size: bicubic, smoothed before it shrinks, and within [0, 1].

    Args:
        x_bchw: (N, C, H, W) in [0, 1].
        height: px.
        width: px.

    >>> import torch
    >>> resized(torch.ones(1, 3, 8, 8), 4, 16).shape
    torch.Size([1, 3, 4, 16])
    """
    import torch.nn.functional as F

    if x_bchw.shape[-2:] == (height, width):
        return x_bchw
    return F.interpolate(x_bchw.float(), (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def resized_labels(labels_hw: NDArray[np.integer], height: int, width: int) -> NDArray[np.integer]:
    """Return a label map at another size: each pixel takes the label at its centre, so that areas keep their ratio.

    >>> resized_labels(np.array([[1, 1, 1, 2, 2, 2]]), 1, 2).tolist()
    [[1, 2]]
    >>> resized_labels(np.array([[1, 2]]), 2, 4).tolist()
    [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    if labels_hw.shape == (height, width):
        return labels_hw
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip((height, width), labels_hw.shape, strict=True)
    )
    return labels_hw[rows[:, None], columns]


def moved_points(points_n2: NDArray, from_shape: tuple[int, int], to_shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return points of an image in the pixels of the same image at another size; a pixel's centre is its index.

    Args:
        points_n2: (x, y) in px.
        from_shape: height and width of the image they are in.
        to_shape: height and width of the other.

    >>> moved_points(np.array([[0.5, 0.5]]), (4, 4), (2, 2)).tolist()
    [[0.0, 0.0]]
    """
    scale_2 = np.array(to_shape[::-1]) / np.array(from_shape[::-1])
    return (points_n2 + 0.5) * scale_2 - 0.5
