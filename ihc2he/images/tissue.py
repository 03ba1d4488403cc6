"""Tissue on a slide: where computing is worth it.

Shape suffixes: h, w = height, width; c = colour (3).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images.areas import Area
from ihc2he.images.masks import disc, find_ink
from ihc2he.images.source import ArraySource, ImageSource
from ihc2he.stain.deconvolution import optical_density
from ihc2he.stain.white import FULL, White, relative_to_white, white_point
from ihc2he.tiling.resampling import resample, resized_labels

_MPP = 4.0  # um/px for the search; coarser for large slides
_SIDE = 4096  # px, of the longer side in the search
_SMOOTH = 6.0  # um; standard deviation of the window in which tissue has colour
_COLOUR = 0.012  # least spread of the optical densities of the channels in tissue
_GREY = 0.12  # least spread in an object, as a share of its optical density; dirt and edges of glass have less
_BLACK = 45  # of the brightest channel of a scanner's border
_FILL = 254  # of the darkest channel where nothing was scanned
_FILLED = 0.05  # share of an image that is looked at as unscanned
_NEAR = 12  # grey levels from the white point
_GLASS = 0.3  # share of the scanned part that has to be glass to be believed
_GLASS_PX = 2048  # longer side of the thumbnail in which glass is looked for
_PEN = 16.0  # um; least radius of the strokes of a pen
_CLOSE = 30.0  # um; radius of gaps that belong to tissue, such as fat cells
_OPEN = 4.0  # um; radius of what is too thin for tissue
_LEAST = 0.002  # mm2; smaller objects are dirt
_HOLE = 0.05  # mm2; smaller holes belong to the tissue
_LINE = (0, 160, 0)  # colour of the outline in a picture
_MARGIN = 10.0  # um; of tissue, so that no nucleus at its rim is lost


class Tissue(Area):
    """Where an image of any size shows tissue."""

    def picture(self, image: ImageSource, most_px: int = 2000) -> NDArray[np.uint8]:
        """Return the image with an outline of the tissue and all else darkened, HxWx3 uint8 RGB.

        Args:
            image: whose tissue it is.
            most_px: longer side of the picture.
        """
        picture = image.thumbnail(most_px).copy()
        inside_hw = resized_labels(self.map_hw.view(np.uint8), *picture.shape[:2]).astype(np.uint8)
        picture[inside_hw == 0] //= 2
        picture[cv2.morphologyEx(inside_hw, cv2.MORPH_GRADIENT, disc(1)) > 0] = _LINE
        return picture


def find_tissue(image: ImageSource) -> Tissue:
    """Return where an image shows tissue, stained with hematoxylin and DAB or eosin.

    Tissue differs from glass by its colour: what is grey at any brightness, such as grey glass, its edges, dirt, black
    borders and shadows, does not count, nor does ink. Gaps up to 60 um, such as fat cells, and small holes count.

    Args:
        image: of a known pixel size; its white point is used.

    Raises:
        DataError: the pixel size is not known, or the image cannot be read.
    """
    seen, mpp = _seen(image)
    return Tissue(_tissue(seen, mpp, _white(seen, image.white)), image.shape)


def find_pen(image: ImageSource) -> Area:
    """Return where strokes of a pen cover an image, as `find_tissue` leaves them out.

    Args:
        image: of a known pixel size; its white point is used.

    Raises:
        DataError: the pixel size is not known, or the image cannot be read.
    """
    seen, mpp = _seen(image)
    return Area(_pen(seen, mpp, _white(seen, image.white)), image.shape)


def glass_white(image: ImageSource) -> White:
    """Return the white point of an image whose unscanned parts may be whiter than its glass."""
    seen = image.thumbnail(_GLASS_PX)
    return _white(seen, white_point(seen))


def _seen(image: ImageSource) -> tuple[NDArray[np.uint8], float]:
    """Return an image as it is searched, and its um/px."""
    if image.mpp is None:
        msg = f"{image.name}: does not state its pixel size. Pass it as data.mpp, in um/px."
        raise DataError(msg)
    mpp = max(image.mpp, _MPP, image.mpp * max(image.shape) / _SIDE)
    seen = image.overview(max(1, round(max(image.shape) * image.mpp / mpp)))
    if seen.shape[:2] == image.shape:
        seen = resample(seen, image.mpp, mpp)
    return seen, image.mpp * max(image.shape) / max(seen.shape)


def _white(seen: NDArray[np.uint8], white: White) -> White:
    """Return the white point of glass where unscanned parts of a slide are whiter than it."""
    fill_hw = seen.min(-1) >= _FILL
    if min(white) < _FILL or fill_hw.mean() < _FILLED:
        return white
    rest = np.where(fill_hw[..., None], 0, seen).astype(np.uint8)
    glass = white_point(rest)
    near_hw = (np.abs(rest - np.array(glass)) <= _NEAR).all(-1)
    return glass if glass != FULL and near_hw.sum() > _GLASS * (~fill_hw).sum() else white


def _tissue(seen: NDArray[np.uint8], mpp: float, white: White) -> NDArray[np.bool_]:
    od_hwc = optical_density(relative_to_white(seen, white))
    spread_hw, mean_hw = (
        cv2.GaussianBlur(values_hw, (0, 0), _SMOOTH / mpp)
        for values_hw in (od_hwc.max(-1) - od_hwc.min(-1), od_hwc.mean(-1))
    )
    found_hw = (spread_hw > np.maximum(_COLOUR, _GREY * mean_hw)).astype(np.uint8)
    outside_hw = _border(seen, mpp) | _pen(seen, mpp, white)
    found_hw[outside_hw] = 0
    # Around the image the tissue goes on, or else a tile would lose its rim.
    around = round(_CLOSE / mpp)
    found_hw = cv2.copyMakeBorder(found_hw, around, around, around, around, cv2.BORDER_REPLICATE)
    found_hw = cv2.morphologyEx(found_hw, cv2.MORPH_OPEN, disc(_OPEN / mpp))
    found_hw = cv2.morphologyEx(found_hw, cv2.MORPH_CLOSE, disc(_CLOSE / mpp))
    found_hw = found_hw[around : len(found_hw) - around, around : found_hw.shape[1] - around]
    found_hw = _without_small(found_hw, _LEAST * 1e6 / mpp**2)
    found_hw = 1 - _without_small(1 - found_hw, _HOLE * 1e6 / mpp**2)
    return (cv2.dilate(found_hw, disc(_MARGIN / mpp)) > 0) & ~outside_hw


def _pen(seen: NDArray[np.uint8], mpp: float, white: White) -> NDArray[np.bool_]:
    """Return what is as wide as a pen's stroke and has the colour of ink; smaller things are nuclei and blood."""
    ink_hw = find_ink(ArraySource(seen, mpp), white).region(slice(None), slice(None)).astype(np.uint8)
    stroke_hw = cv2.morphologyEx(ink_hw, cv2.MORPH_OPEN, disc(_PEN / mpp))
    return cv2.dilate(stroke_hw, disc(2 * _SMOOTH / mpp)) > 0  # with the rim that smoothing colours


def _border(seen: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Return what is black and reaches the border of the image."""
    black_hw = cv2.morphologyEx((seen.max(-1) < _BLACK).astype(np.uint8), cv2.MORPH_OPEN, disc(_OPEN / mpp))
    if not black_hw.any():
        return black_hw.astype(bool)
    number_hw = cv2.connectedComponents(black_hw, connectivity=4)[1]
    rims = (number_hw[0], number_hw[-1], number_hw[:, 0], number_hw[:, -1])
    reaches = np.zeros(number_hw.max() + 1, bool)
    reaches[np.concatenate(rims)] = True
    reaches[0] = False
    return cv2.dilate(reaches[number_hw].astype(np.uint8), disc(_SMOOTH / mpp)) > 0


def _without_small(found_hw: NDArray[Any], least_px: float) -> NDArray[np.uint8]:
    """Return a map without objects that are small and do not reach the border of the image."""
    _, number_hw, boxes, _ = cv2.connectedComponentsWithStats(found_hw, connectivity=4)
    left, top, width, height, area = boxes.T
    inside = (left > 0) & (top > 0) & (left + width < found_hw.shape[1]) & (top + height < len(found_hw))
    kept = (area >= least_px) | ~inside
    kept[0] = False
    return kept[number_hw].astype(np.uint8)
