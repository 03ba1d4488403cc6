"""Resampling of images, instance maps and points to another pixel size. Sizes depend only on um/px.

Shape suffixes: b = batch, c = channel, h, w = height, width; n2 = points as (x, y).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def resampled_size(height: int, width: int, mpp: float, target_mpp: float) -> tuple[int, int]:
    """Return the height and width in px of an image at another pixel size; at least 1.

    >>> resampled_size(200, 300, 0.5, 0.25)
    (400, 600)
    """
    return max(1, round(height * mpp / target_mpp)), max(1, round(width * mpp / target_mpp))


def resized(x_bchw: Tensor, height: int, width: int) -> Tensor:
    """Return images at another size: bicubic, smoothed before shrinking, and within [0, 1].

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
    """Return a label map at another size: each pixel gets the label at its centre, so that areas keep their ratio.

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
        to_shape: height and width of the same image at the other size.

    >>> moved_points(np.array([[0.5, 0.5]]), (4, 4), (2, 2)).tolist()
    [[0.0, 0.0]]
    """
    scale_2 = np.array(to_shape[::-1]) / np.array(from_shape[::-1])
    return (points_n2 + 0.5) * scale_2 - 0.5


MPP_RANGE = (0.01, 100.0)  # um/px; 0.05 is the finest objective, and at 100 a nucleus is a tenth of a pixel


PIXEL_SIZE = f"um/px from {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}"


def is_pixel_size(mpp: float) -> bool:
    """Return whether a number may be um/px of a microscope's image; others are typing errors or wrong units.

    >>> is_pixel_size(0.25), is_pixel_size(0), is_pixel_size(2.5e-7), is_pixel_size(float("nan"))
    (True, False, False, False)
    """
    return MPP_RANGE[0] <= mpp <= MPP_RANGE[1]


def resize(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return an image at another size.

    An axis that gets smaller is averaged over the area of each new pixel, to avoid aliasing. An axis that gets larger
    is interpolated with a bicubic spline.

    >>> resize(np.array([[[0] * 3, [100] * 3]], np.uint8), 1, 1).tolist()
    [[[50, 50, 50]]]
    """
    shrunk = (min(height, image.shape[0]), min(width, image.shape[1]))
    if shrunk != image.shape[:2]:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if (height, width) != shrunk:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def resample(image: NDArray[Any], mpp: float, target_mpp: float) -> NDArray[Any]:
    """Return an image resampled from one pixel size to another, both in um/px.

    >>> resample(np.zeros((200, 100, 3), np.uint8), mpp=0.25, target_mpp=0.5).shape
    (100, 50, 3)
    """
    height, width = (max(1, round(side * mpp / target_mpp)) for side in image.shape[:2])
    return resize(image, height, width)
