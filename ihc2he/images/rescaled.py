"""An image at another pixel size, read by region.

Shape suffixes: n = new rows or columns, t = old ones that each is made of; h, w = height, width, c = colour.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images.source import ImageSource
from ihc2he.tiling.resampling import resampled_size

_NEAR = 1.01  # a level that is this much coarser is as good as the pixel size that is asked for
_CUBIC = -0.75  # of the bicubic kernel, as in OpenCV


class Rescaled(ImageSource):
    """The same image at another pixel size.

    A region is read from the smallest level that is fine enough, and averaged over the area of each new pixel; where
    no level is fine enough, it is interpolated bicubically. A pixel has the same value whatever region it is read
    with. The whole of an image with one level is what `resample` makes of it, up to rounding.

    Args:
        source: of a known pixel size.
        mpp: um/px to read it with.

    Raises:
        DataError: if the pixel size of the source is not known.
    """

    def __init__(self, source: ImageSource, mpp: float) -> None:
        if source.mpp is None:
            msg = f"{source.name}: does not state its pixel size. Pass it as data.mpp, in um/px."
            raise DataError(msg)
        self.source, self.mpp, self.name, self.by_region = source, mpp, source.name, source.by_region
        self.shape = resampled_size(*source.shape, source.mpp, mpp)
        self._level = max(i for i, factor in enumerate(source.levels) if factor <= max(1, mpp / source.mpp * _NEAR))

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        old_height, old_width = self.source.level_shape(self._level)
        factor = self.source.levels[self._level]
        down, across = (old / new / factor for old, new in zip(self.source.shape, self.shape, strict=True))
        row_nt, row_weight_nt = _parts(rows, down, old_height)
        column_nt, column_weight_nt = _parts(columns, across, old_width)
        top, left = row_nt.min(initial=old_height), column_nt.min(initial=old_width)
        old_rows, old_columns = (
            slice(top, row_nt.max(initial=top - 1) + 1),
            slice(left, column_nt.max(initial=left - 1) + 1),
        )
        seen_hwc = self.source.read(old_rows, old_columns, self._level)
        if down == across == 1:
            return seen_hwc
        made_hwc = _weighted(seen_hwc, row_nt - top, row_weight_nt)
        made_whc = _weighted(cv2.transpose(made_hwc), column_nt - left, column_weight_nt)
        return cv2.transpose(np.rint(made_whc).clip(0, 255).astype(np.uint8))  # type: ignore[return-value]

    def thumbnail(self, most_px: int) -> NDArray[np.uint8]:
        """Return the whole image, its longer side at most this number of px, HxWx3 uint8 RGB."""
        return self.source.thumbnail(most_px) if most_px < max(self.shape) else self.whole()


def _parts(new: slice, scale: float, size: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return which old pixels each new one of an axis is made of, and with which weights.

    Args:
        new: from and to.
        scale: old pixels in a new one.
        size: number of old pixels; beyond them, the outermost one goes on.

    >>> _parts(slice(1, 2), 1.5, 3)
    (array([[1, 2, 2]]), array([[0.33333334, 0.6666667 , 0.        ]], dtype=float32))
    """
    at_n1 = np.arange(new.start, new.stop, dtype=np.float64)[:, None]
    if scale >= 1:
        first_n1, last_n1 = at_n1 * scale, (at_n1 + 1) * scale
        old_nt = np.floor(first_n1) + np.arange(int(scale) + 2 * (scale % 1 > 0))
        weight_nt = (np.minimum(last_n1, old_nt + 1) - np.maximum(first_n1, old_nt)).clip(0) / scale
    else:
        centre_n1 = (at_n1 + 0.5) * scale - 0.5
        old_nt = np.floor(centre_n1) + np.arange(-1, 3)
        away_nt = np.abs(old_nt - centre_n1)
        near_nt = ((_CUBIC + 2) * away_nt - (_CUBIC + 3)) * away_nt**2 + 1
        far_nt = ((_CUBIC * away_nt - 5 * _CUBIC) * away_nt + 8 * _CUBIC) * away_nt - 4 * _CUBIC
        weight_nt = np.where(away_nt <= 1, near_nt, far_nt)
    return old_nt.clip(0, size - 1).astype(np.intp), weight_nt.astype(np.float32)


def _weighted(old_hwc: NDArray, old_nt: NDArray[np.intp], weight_nt: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weighted sums of rows."""
    made = np.zeros((len(old_nt), *old_hwc.shape[1:]), np.float32)
    for old_n, weight_n in zip(old_nt.T, weight_nt.T, strict=True):
        made += np.multiply(old_hwc[old_n], weight_n[:, None, None], dtype=np.float32)
    return made
