"""The white point of an image: the colour of its empty glass, from which optical densities count.

Scanners differ: glass is at 240 on one and at 216 on another, so densities that count from 255 make glass look stained.
Shape suffixes: h, w = height, width; c = colour (3).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

White = tuple[float, float, float]
FULL: White = (255.0, 255.0, 255.0)  # where an image shows no glass

_SIDE = 512  # px; larger images are shrunk to about this
_DARKEST = 190  # of the darkest channel of glass
_COLOURED = 0.06  # largest spread of the channels, as a share of the brightest
_ROUGH = 4.0  # grey levels, largest standard deviation in a window of 5 px; tissue has more
_LEAST = 0.01  # share of the image that has to look like glass
_SPREAD = 12  # grey levels below the bright end of what looks like glass


def white_point(image: NDArray[np.uint8]) -> White:
    """Return the colour of empty glass in an image, in [0, 255] per channel; `FULL` where too little looks like glass.

    Glass is bright, nearly grey and smooth. Of such pixels the brightest are taken, up to 12 grey levels below their
    90th percentile, and of these the median of each channel. So pale tissue, which is rougher or coloured, does not
    count, and nor do single bright specks.

    Args:
        image: HxWx3 uint8 RGB; a thumbnail of a large image will do.

    >>> image = np.full((64, 64, 3), 216, np.uint8)
    >>> image[:32] = (90, 60, 140)
    >>> white_point(image)
    (216.0, 216.0, 216.0)
    """
    shrink = (image.shape[0] * image.shape[1]) ** 0.5 / _SIDE
    if shrink > 1:
        size = (max(1, round(image.shape[1] / shrink)), max(1, round(image.shape[0] / shrink)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    brightest_hw, darkest_hw = image.max(-1).astype(np.float32), image.min(-1).astype(np.float32)
    grey_hw = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean_hw, square_hw = cv2.blur(grey_hw, (5, 5)), cv2.blur(grey_hw * grey_hw, (5, 5))
    smooth_hw = square_hw - mean_hw * mean_hw <= _ROUGH**2
    glass_hw = smooth_hw & (darkest_hw >= _DARKEST) & (brightest_hw - darkest_hw <= _COLOURED * brightest_hw)
    if glass_hw.mean() < _LEAST:
        return FULL
    glass_hw &= darkest_hw >= np.percentile(darkest_hw[glass_hw], 90) - _SPREAD
    red, green, blue = np.median(image[glass_hw], axis=0)
    return float(red), float(green), float(blue)


def relative_to_white(image: NDArray[np.uint8], white: Sequence[float], to: float = 255.0) -> NDArray[np.uint8]:
    """Return an image with its white point moved to 255, so that its glass has an optical density of 0.

    Args:
        image: HxWx3 uint8 RGB; may have no pixels.
        white: the image's white point, in (0, 255] per channel; with `FULL` (not known) the image is not changed.
        to: where the white point goes.

    >>> relative_to_white(np.full((1, 1, 3), 108, np.uint8), (216, 216, 255)).tolist()
    [[[128, 128, 108]]]
    """
    if tuple(white) == FULL or image.size == 0:  # of no pixels, OpenCV would make None
        return image
    scale_c1 = to / np.asarray(white, np.float64)[:, None]
    table_256c = np.minimum(np.floor(np.arange(256) * scale_c1 + 0.5), 255).astype(np.uint8).T
    return cv2.LUT(image, np.ascontiguousarray(table_256c).reshape(1, 256, 3))  # type: ignore[return-value]
