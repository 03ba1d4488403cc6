"""Windows of an image that stand for its tissue.

Shape suffixes: n = windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihc2he.images.source import ImageSource
from ihc2he.images.tissue import find_tissue
from ihc2he.tiling.resampling import resize


def tissue_windows(image: ImageSource, side: int, most: int) -> NDArray[np.uint8]:
    """Return windows with much tissue, from all over an image, at full resolution.

    Args:
        image: the image, of a known pixel size.
        side: px, of the windows; on an axis that is shorter the windows are as long as it.
        most: largest number of windows.

    Returns:
        BxHxWx3 uint8 RGB.

    Raises:
        DataError: the pixel size is not known, or the image cannot be read.
    """
    sides = [min(side, length) for length in image.shape]
    counts = [length // own for length, own in zip(image.shape, sides, strict=True)]
    share_n = resize(find_tissue(image).map_hw.astype(np.float32), counts[0], counts[1]).ravel()
    good_n = np.flatnonzero(share_n >= 0.5 * share_n.max())
    chosen_n = good_n[np.linspace(0, len(good_n) - 1, min(most, len(good_n))).round().astype(int)]
    rows_n, columns_n = np.divmod(chosen_n, counts[1])
    # The grid spans the whole image, the rest of the division in between.
    tops_n, lefts_n = (
        k_n * (length - own) // max(count - 1, 1)
        for k_n, length, own, count in zip((rows_n, columns_n), image.shape, sides, counts, strict=True)
    )
    return np.stack(
        [
            image.read(slice(top, top + sides[0]), slice(left, left + sides[1]))
            for top, left in zip(tops_n.tolist(), lefts_n.tolist(), strict=True)
        ]
    )
