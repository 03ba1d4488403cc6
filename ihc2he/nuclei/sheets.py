"""Pictures of slides: nuclei and hot spots on a part of a slide, and maps in colours.

Shape suffixes: h, w = height, width; c = colour; n = nuclei; e = corners; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.colours import colour_of
from ihc2he.nuclei.drawing import LINE_PX, legend, write
from ihc2he.nuclei.fields import HotSpot
from ihc2he.nuclei.table import NucleiTable

_SHIFT = 3  # binary digits of a pixel's fraction
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_MAP_PX = 1024  # longer side of the picture of a map


class Sheet:
    """A picture of a part of a slide, to draw on.

    Args:
        picture: hxwx3 uint8 RGB; changed in place.
        corner: x and y of its first corner in the slide, px.
        factor: px of the picture in a px of the slide.
    """

    def __init__(self, picture: NDArray[np.uint8], corner: tuple[float, float], factor: float) -> None:
        self.picture, self._corner, self._factor = np.ascontiguousarray(picture), np.array(corner), factor
        self._far = self._corner + np.array(picture.shape[1::-1]) / factor

    def add(self, table: NucleiTable) -> None:
        """Draw the outlines of nuclei, in px of the slide, in the colours of their types."""
        near_n2 = (table.boxes_n4[:, :2] < self._far) & (table.boxes_n4[:, 2:] > self._corner)
        in_n: NDArray[np.bool_] = near_n2[:, 0] & near_n2[:, 1]
        if not in_n.any():
            return
        outlines, types_n = table.outlines.only(in_n), table.types_n[in_n]
        # OpenCV counts from the centres of pixels.
        corners_e2 = (outlines.corners_e2 - self._corner) * self._factor - 0.5
        rings = np.split(np.rint(corners_e2 * (1 << _SHIFT)).astype(np.int32), outlines.starts_r[1:-1])
        type_r = types_n[outlines.nucleus_r]
        for kind in np.unique(type_r).tolist():
            own = [rings[ring] for ring in np.flatnonzero(type_r == kind)]
            cv2.polylines(self.picture, own, True, colour_of(kind), 1, cv2.LINE_8, _SHIFT)

    def mark(self, spots: Sequence[HotSpot], mpp: float) -> None:
        """Draw hot spots as numbered circles.

        Args:
            spots: in um.
            mpp: um/px of the slide.
        """
        for number, spot in enumerate(spots, 1):
            x, y = ((np.array([spot.x_um, spot.y_um]) / mpp - self._corner) * self._factor).tolist()
            radius = spot.radius_um / mpp * self._factor
            at, reach = (round(x * (1 << _SHIFT)), round(y * (1 << _SHIFT))), round(radius * (1 << _SHIFT))
            for colour, width in ((_WHITE, 4), (_BLACK, 2)):
                cv2.circle(self.picture, at, reach, colour, width, cv2.LINE_AA, _SHIFT)
            write(self.picture, str(number), round(x), round(y) - LINE_PX // 2)

    def finished(self, classes: Sequence[str], counts: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Return the picture with a legend below it.

        Args:
            classes: names of the types from 1.
            counts: nuclei of each type from 0; None: without numbers.
        """
        return np.concatenate([self.picture, legend(self.picture.shape[1], classes, counts=counts)])


def map_picture(map_hw: NDArray[np.float32], most: float, unit: str) -> NDArray[np.uint8]:
    """Return a map in colours from dark to bright, with its scale below; white where it is NaN.

    Args:
        map_hw: values from 0.
        most: value of the brightest colour.
        unit: of the values, for the scale.

    >>> map_picture(np.array([[0, 1]], np.float32), 1, "%").shape
    (534, 1024, 3)
    """
    factor = max(1, _MAP_PX // max(map_hw.shape))
    share_hw = np.nan_to_num(map_hw / most if most > 0 else map_hw * 0).clip(0, 1)
    picture = _coloured(share_hw)
    picture[np.isnan(map_hw)] = 255
    height, width = (side * factor for side in map_hw.shape)
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
    strip = np.full((LINE_PX, max(width, 300), 3), 255, np.uint8)
    strip[4:-4, 30:130] = _coloured(np.linspace(0, 1, 100, dtype=np.float32)[None])
    write(strip, "0", 12, 0)
    write(strip, f"{most:.4g} {unit}", 138, 0)
    picture = np.pad(picture, ((0, 0), (0, strip.shape[1] - width), (0, 0)), constant_values=255)
    return np.concatenate([picture, strip])


def _coloured(share_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    bgr = cv2.applyColorMap(np.rint(share_hw * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
