"""The samples of an image file, their meaning by its tags, and the resulting colours.

Shape suffixes: s = samples of a pixel, h, w = height, width; n = colours of a palette, 3 = red, green, blue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Samples:
    """Samples as stored, and their meaning.

    Attributes:
        values_hws: unsigned integers of 8 or 16 bits, or another type in the file.
        bits: of a sample; white is 2**bits - 1.
        colours: how many of the samples of a pixel are its colour, from the first on: 1 = grey, 3 = RGB.
        inverted: 0 is white.
        palette_n3: colour of each value, uint8; None: values are intensities.
        alpha: which sample is the opacity; None: none, even if there are further samples.
        premultiplied: the colours have been multiplied by the opacity.
        orientation: how to rotate or mirror the stored image, 1 to 8 as in TIFF and EXIF.
        lossy: compression has changed the values.
    """

    values_hws: NDArray[Any]
    bits: int = 8
    colours: int = 3
    inverted: bool = False
    palette_n3: NDArray[np.uint8] | None = None
    alpha: int | None = None
    premultiplied: bool = False
    orientation: int = 1
    lossy: bool = False

    def labels(self) -> NDArray[Any]:
        """Return the values themselves as HxW, or HxWxS if a pixel has several; upright."""
        values = upright(self.values_hws, self.orientation)
        return values[..., 0] if values.shape[-1] == 1 else values

    def rgb8(self) -> NDArray[np.uint8]:
        """Return the image as HxWx3 uint8 RGB, upright, with transparency laid over white.

        Raises:
            ValueError: for values that are not unsigned integers of up to 16 bits.

        >>> Samples(np.full((1, 1, 1), 65535, np.uint16), bits=16, colours=1).rgb8().tolist()
        [[[255, 255, 255]]]
        >>> rgba = np.array([[[0, 0, 255, 255], [0, 0, 0, 0]]], np.uint8)
        >>> Samples(rgba, alpha=3).rgb8().tolist()
        [[[0, 0, 255], [255, 255, 255]]]
        >>> Samples(rgba).rgb8().tolist()
        [[[0, 0, 255], [0, 0, 0]]]
        """
        values = self.values_hws
        if values.dtype not in (np.uint8, np.uint16) or not 1 <= self.bits <= 16:
            msg = f"found {values.dtype} pixels, expected 8 or 16 bits per channel."
            raise ValueError(msg)
        if self.palette_n3 is not None:
            colour = self.palette_n3[np.minimum(values[..., 0], len(self.palette_n3) - 1)]
        else:
            colour = _to_8_bits(values[..., : self.colours], self.bits)
            colour = 255 - colour if self.inverted else colour
        if self.alpha is not None:
            opacity = _to_8_bits(values[..., self.alpha : self.alpha + 1], self.bits).astype(np.uint16)
            if self.premultiplied:
                colour = np.minimum(colour + (255 - opacity), 255).astype(np.uint8)
            else:
                colour = ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        if colour.shape[-1] == 1:
            colour = np.repeat(colour, 3, axis=2)
        return np.ascontiguousarray(upright(colour, self.orientation))


def _to_8_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return values from 0 to white, scaled to 0 to 255.

    >>> _to_8_bits(np.array([0, 1, 3], np.uint8), 2).tolist()
    [0, 85, 255]
    """
    if bits == 8:
        return values.astype(np.uint8, copy=False)
    white = (1 << bits) - 1
    return ((np.minimum(values, white).astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return a stored image in the orientation in which it is shown.

    Args:
        image: HxW or HxWxS.
        orientation: of TIFF and EXIF: the sides of the first stored row and column; 1 = top and
            left, 2 = top and right, 3 = bottom and right, 4 = bottom and left, 5 to 8 the same with rows and columns
            exchanged.

    >>> upright(np.array([[1, 2], [3, 4]]), 6).tolist()  # rotated by 90 degrees clockwise
    [[3, 1], [4, 2]]
    """
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
