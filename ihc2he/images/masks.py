"""Ink of pens, which hides tissue on a slide.

Shape suffixes: h, w = height, width; c = colour (3); n2 = points as (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.images.areas import Area
from ihc2he.images.source import ArraySource, ImageSource
from ihc2he.stain.deconvolution import optical_density
from ihc2he.stain.white import FULL, relative_to_white
from ihc2he.tiling.resampling import resample

_MPP = 1.0  # um/px for the search; finer images are shrunk to it
_STRONG = 0.2  # least mean optical density of coloured ink
_BLACK = 0.6  # and of black ink
_RADIUS = 5.0  # um; a disc of this radius fits into ink, but into few nuclei
_GREEN_RADIUS = 1.5  # um; no stain is green, so less of it is enough
_EDGE = 1.0  # um; width of a stroke's pale border


class Ink(Area):
    """Where ink covers an image of any size."""


def find_ink(image: ImageSource, white: Sequence[float] | None = None) -> Ink:
    """Return where ink of a black, blue, red or green pen covers an image.

    Green is a colour that no mixture of hematoxylin, eosin and DAB has. Blue, black and red also occur in nuclei and
    other small things, so they must cover a disc of 5 um radius. Brown never counts.

    Limits: strokes thinner than 10 um are found only if they are green, and pale or purple ink is not found. Pools
    of blood as red as ink count as ink. Folds of the tissue are not searched: on tiles they look like dense tissue.

    Args:
        image: of a known pixel size.
        white: its white point, see `ihc2he.stain.white.white_point`; None: it is estimated.

    Raises:
        ValueError: the pixel size is not known.
    """
    mpp = image.mpp
    if mpp is None:
        msg = f"{image.name}: the search for ink needs the pixel size."
        raise ValueError(msg)
    seen = image.overview(max(1, round(max(image.shape) * min(mpp / _MPP, 1))))
    if seen.shape[:2] == image.shape and mpp < _MPP:
        seen = resample(seen, mpp, _MPP)
    white = image.white if white is None else white
    found_hw = _ink(optical_density(relative_to_white(seen, white)), max(mpp, _MPP))
    return Ink(found_hw.view(bool), image.shape)


def ink_mask(image: NDArray[np.uint8], mpp: float, white: Sequence[float] = FULL) -> NDArray[np.bool_]:
    """Return where ink covers an image, HxW; see `find_ink`.

    Args:
        image: HxWx3 uint8 RGB.
        mpp: um/px.
        white: white point of the image, see `ihc2he.stain.white.white_point`.

    >>> image = np.full((64, 64, 3), 240, np.uint8)
    >>> image[:, 20:50] = (20, 110, 40)
    >>> ink_mask(image, 0.5)[32, [0, 35]].tolist()
    [False, True]
    """
    height, width = image.shape[:2]
    return find_ink(ArraySource(image, mpp), white).region(slice(0, height), slice(0, width))


def _ink(od_hwc: NDArray[np.float32], mpp: float) -> NDArray[np.uint8]:
    mean_hw = od_hwc.mean(-1)
    found_hw = np.zeros(mean_hw.shape, np.uint8)
    strong_hw = mean_hw > _STRONG
    if not strong_hw.any():
        return found_hw
    od_hwc = od_hwc / np.maximum(np.linalg.norm(od_hwc, axis=-1, keepdims=True), 1e-6)
    red_hw, green_hw, blue_hw = np.moveaxis(od_hwc, -1, 0)  # share of each channel in the absorption
    spread_hw = np.maximum(np.maximum(red_hw, green_hw), blue_hw) - np.minimum(np.minimum(red_hw, green_hw), blue_hw)
    inks = (  # green by the light it transmits, the others by what they absorb
        (strong_hw & (green_hw < np.minimum(red_hw, blue_hw) - 0.05), _GREEN_RADIUS),
        (strong_hw & (red_hw >= 0.6) & (blue_hw <= 0.42) & (green_hw < red_hw + 0.02), _RADIUS),
        (strong_hw & (red_hw < 0.25) & (blue_hw > 0.45), _RADIUS),
        ((mean_hw > _BLACK) & (spread_hw < 0.12), _RADIUS),
    )
    for coloured_hw, radius in inks:
        if coloured_hw.any():
            around = disc(radius / mpp)
            wide_hw = cv2.morphologyEx(coloured_hw.view(np.uint8), cv2.MORPH_OPEN, around)
            if wide_hw.any():  # with the pixels of its colour around it
                found_hw |= cv2.dilate(wide_hw, around) & coloured_hw.view(np.uint8)
    return cv2.dilate(found_hw, disc(_EDGE / mpp)) if found_hw.any() else found_hw  # type: ignore[return-value]


def disc(radius: float) -> NDArray[np.uint8]:
    """Return a disc of a radius in px, at least 1, for the morphology of masks."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)).astype(np.uint8)
