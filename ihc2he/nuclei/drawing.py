"""Drawing on tiles: nuclei in the colours of their types, matches and errors, texts and legends.

Shape suffixes: h, w = height, width; m = pixels of nuclei; n = nuclei or points; 2 = (x, y). Points are in px of the
tile, from the centre of its first pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.colours import INVENTED, MATCHED, MISSED, colour_of, name_of
from ihc2he.nuclei.instances import Foreground, foreground

LINE_PX = 22  # height of a line of text
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SHIFT = 4  # binary digits of a pixel's fraction
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def fitted(image: NDArray[np.uint8], least: int, most: int) -> tuple[NDArray[np.uint8], float]:
    """Return a copy of an image whose longer side is within limits, and the factor by which it was resized.

    Args:
        image: HxWx3 uint8 RGB.
        least: px of the longer side.
        most: px of the longer side.

    >>> picture, factor = fitted(np.zeros((100, 200, 3), np.uint8), 400, 4000)
    >>> picture.shape, factor
    ((200, 400, 3), 2.0)
    """
    factor = _fit(image.shape, least, most)
    height, width = (max(round(length * factor), 1) for length in image.shape[:2])
    return (image.copy() if factor == 1 else _resized(image, height, width, factor)), factor


def overlay(
    image: NDArray[np.uint8],
    inst_hw: NDArray[np.integer],
    types_n: NDArray[np.integer],
    classes: Sequence[str],
    sides: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return a tile with the rim of each nucleus in the colour of its type, and below it a legend with counts.

    Args:
        image: HxWx3, uint8 RGB.
        inst_hw: instance map, 0 = background.
        types_n: type of each nucleus in ascending order of the ids, 0 = unknown.
        classes: names of the types from 1 upwards.
        sides: least and most px of the longer side of the picture; None: as the image.

    Returns:
        The picture and below it the legend, uint8 RGB.

    Raises:
        ValueError: image, map and types do not fit together.
    """
    drawn = Overlay(image.shape[:2], sides)  # type: ignore[arg-type]
    drawn.add(0, image, inst_hw, foreground(inst_hw), types_n)
    return drawn.picture(classes, types_n)


class Overlay:
    """The picture that `overlay` returns, drawn strip by strip.

    Args:
        shape: height and width of the image, px.
        sides: least and most px of the longer side of the picture; None: as the image.
    """

    def __init__(self, shape: tuple[int, int], sides: tuple[int, int] | None = None) -> None:
        self._factor = 1.0 if sides is None else _fit(shape, *sides)
        self._height = shape[0]
        height, width = (max(round(length * self._factor), 1) for length in shape)
        self._picture = np.empty((height, width, 3), np.uint8)

    def add(
        self,
        top: int,
        image: NDArray[np.uint8],
        inst_hw: NDArray[np.integer],
        pixels: Foreground,
        types_n: NDArray[np.integer],
    ) -> None:
        """Draw a strip.

        Args:
            top: its first row in the image.
            image: hxWx3 uint8 RGB.
            inst_hw: its instance map, 0 = background.
            pixels: those of the map's nuclei.
            types_n: type of each nucleus in it in ascending order of the ids, 0 = unknown.

        Raises:
            ValueError: image, map and types do not fit together.
        """
        n = len(pixels.ids_n)
        if image.shape[:2] != inst_hw.shape or len(types_n) != n:
            msg = f"Image {image.shape}, map {inst_hw.shape} of {n} nuclei and {len(types_n)} types do not fit."
            raise ValueError(msg)
        end = top + len(image)
        rows = slice(round(top * self._factor), round(end * self._factor) if end < self._height else None)
        strip = self._picture[rows]
        if len(strip):
            strip[:] = _resized(image, len(strip), strip.shape[1], self._factor)
            _draw_rims(strip, inst_hw, pixels, types_n)

    def picture(self, classes: Sequence[str], types_n: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return the picture with its legend.

        Args:
            classes: names of the types from 1 upwards.
            types_n: of all nuclei, for their counts.
        """
        counts = np.bincount(types_n, minlength=len(classes) + 1).tolist()
        return np.concatenate([self._picture, legend(self._picture.shape[1], classes, counts=counts)])


def _fit(shape: tuple[int, ...], least: int, most: int) -> float:
    side = max(shape[:2])
    return min(max(side, least), most) / side


def _resized(image: NDArray[np.uint8], height: int, width: int, factor: float) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=kind)  # type: ignore[return-value]


def draw_outlines(picture: NDArray[np.uint8], inst_hw: NDArray[np.integer], types_n: NDArray[np.integer]) -> None:
    """Draw the outline of each nucleus in the colour of its type, just inside it, so touching nuclei stay separate.

    Args:
        picture: of the tile in any size; changed in place.
        inst_hw: instance map of the tile, 0 = background.
        types_n: type of each nucleus in ascending order of the ids, 0 = unknown.
    """
    _draw_rims(picture, inst_hw, foreground(inst_hw), types_n)


def _draw_rims(
    picture: NDArray[np.uint8], inst_hw: NDArray[np.integer], pixels: Foreground, types_n: NDArray[np.integer]
) -> None:
    """Like `draw_outlines`, with the pixels of the map."""
    palette = np.array([colour_of(kind) for kind in range(types_n.max(initial=0) + 1)], np.uint8)
    colours_n = palette[types_n]
    width = 2 if len(picture) >= 2 * len(inst_hw) else 1
    if picture.shape[:2] != inst_hw.shape:
        numbers_hw = np.zeros(inst_hw.shape, np.int32)
        numbers_hw.reshape(-1)[pixels.places_m] = pixels.of_m + 1
        rows, columns = (
            ((np.arange(size) + 0.5) * full / size).astype(np.intp)
            for size, full in zip(picture.shape, inst_hw.shape, strict=False)
        )
        inst_hw = numbers_hw[rows][:, columns]
        pixels = foreground(inst_hw)
        colours_n = colours_n[pixels.ids_n - 1]
    on_rim_m = _rims(inst_hw, width).ravel()[pixels.places_m]
    picture.reshape(-1, 3)[pixels.places_m[on_rim_m]] = colours_n[pixels.of_m[on_rim_m]]


def _rims(inst_hw: NDArray[np.integer], width: int) -> NDArray[np.bool_]:
    """Return which pixels have another id within this number of px, in their row or column."""
    rims_hw = np.zeros(inst_hw.shape, bool)
    for step in range(1, width + 1):
        down, right = inst_hw[step:] != inst_hw[:-step], inst_hw[:, step:] != inst_hw[:, :-step]
        rims_hw[step:] |= down
        rims_hw[:-step] |= down
        rims_hw[:, step:] |= right
        rims_hw[:, :-step] |= right
    return rims_hw


def draw_matches(
    picture: NDArray[np.uint8],
    matched_n2: NDArray[np.number],
    missed_n2: NDArray[np.number],
    invented_n2: NDArray[np.number],
    factor: float,
) -> None:
    """Draw a disc where a keypoint was found, a ring where it was missed, a cross where a nucleus was invented.

    Args:
        picture: changed in place.
        matched_n2: keypoints.
        missed_n2: keypoints.
        invented_n2: centres of nuclei.
        factor: of the picture's size to the tile's.
    """
    for draw, points_n2 in ((_disc, matched_n2), (_ring, missed_n2), (_cross, invented_n2)):
        for x, y in _at(points_n2, factor).tolist():
            draw(picture, x, y)


def write(picture: NDArray[np.uint8], text: str, x: int, top: int, bold: bool = False) -> int:
    """Write a line of text and return where it ends, in px; characters that the font lacks become question marks.

    Args:
        picture: changed in place.
        text: one line.
        x: where it begins, px.
        top: of the line, which is `LINE_PX` high.
        bold: thicker letters.
    """
    plain = text.encode("ascii", "replace").decode()
    thickness = 2 if bold else 1
    cv2.putText(picture, plain, (x, top + 15), _FONT, 0.45, _BLACK, thickness, cv2.LINE_AA)
    return x + cv2.getTextSize(plain, _FONT, 0.45, thickness)[0][0]


def legend(
    width: int, classes: Sequence[str], *, counts: Sequence[int] | None = None, marks: bool = False
) -> NDArray[np.uint8]:
    """Return a strip with the colours and names of types, with as many lines as needed.

    Args:
        width: px.
        classes: names of the types from 1 upwards.
        counts: nuclei of each type from 0 upwards, shown next to their names; unknown ones only if there are some.
        marks: also show the three marks of `draw_matches`.

    >>> legend(400, ["epithelium", "stroma"], counts=[0, 12, 3]).shape
    (22, 400, 3)
    """
    kinds = range(0 if counts is None or counts[0] else 1, len(classes) + 1)
    entries = [(_swatch(kind), name_of(kind, classes) + (f" {counts[kind]}" if counts else "")) for kind in kinds]
    if marks:
        entries += [(_disc, "matched"), (_ring, "missed"), (_cross, "invented")]
    strip = np.full((LINE_PX * max(len(entries), 1), width, 3), 255, np.uint8)
    x, top = 0, 0
    for draw, text in entries:
        if x and x + 40 + cv2.getTextSize(text, _FONT, 0.45, 1)[0][0] > width:
            x, top = 0, top + LINE_PX
        draw(strip, (x + 10) << _SHIFT, (top + LINE_PX // 2) << _SHIFT)
        x = write(strip, text, x + 20, top) + 16
    return strip[: top + LINE_PX]


def _at(points_n2: NDArray, factor: float) -> NDArray[np.int32]:
    """Return the positions of points of the tile in the picture, as fixed-point numbers for OpenCV."""
    return np.rint(((points_n2 + 0.5) * factor - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _swatch(kind: int) -> Callable[[NDArray[np.uint8], int, int], None]:
    def draw(picture: NDArray[np.uint8], x: int, y: int) -> None:
        half = 6 << _SHIFT
        cv2.rectangle(picture, (x - half, y - half), (x + half, y + half), colour_of(kind), -1, cv2.LINE_8, _SHIFT)

    return draw


def _disc(picture: NDArray[np.uint8], x: int, y: int) -> None:
    cv2.circle(picture, (x, y), 5 << _SHIFT, _WHITE, -1, cv2.LINE_AA, _SHIFT)
    cv2.circle(picture, (x, y), 4 << _SHIFT, MATCHED, -1, cv2.LINE_AA, _SHIFT)


def _ring(picture: NDArray[np.uint8], x: int, y: int) -> None:
    cv2.circle(picture, (x, y), 6 << _SHIFT, _WHITE, 4, cv2.LINE_AA, _SHIFT)
    cv2.circle(picture, (x, y), 6 << _SHIFT, MISSED, 2, cv2.LINE_AA, _SHIFT)


def _cross(picture: NDArray[np.uint8], x: int, y: int) -> None:
    arm = 5 << _SHIFT
    for colour, thickness in ((_WHITE, 4), (INVENTED, 2)):
        for sign in (1, -1):
            cv2.line(
                picture, (x - arm, y - sign * arm), (x + arm, y + sign * arm), colour, thickness, cv2.LINE_AA, _SHIFT
            )
