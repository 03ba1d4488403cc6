"""Rings around nuclei, and the stain in them: of the cytoplasm, or of the tissue around.

Shape suffixes: h, w = height, width; c = colour; m = pixels; n = nuclei; s = stains.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.table import IHC_STAINS, Stains
from ihc2he.stain.deconvolution import separate
from ihc2he.stain.white import FULL, relative_to_white

_CROSS, _SQUARE = (cv2.getStructuringElement(kind, (3, 3)) for kind in (cv2.MORPH_CROSS, cv2.MORPH_RECT))


def rings(inst_hw: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Return a map of the rings around nuclei: the background up to some pixels away, each by the nearest nucleus.

    Where two nuclei are equally near, a pixel belongs to the higher id.

    Args:
        inst_hw: instance map, 0 = background; ids below 2^24.
        width: px.

    >>> rings(np.array([[0, 0, 0, 1, 0, 2]], np.int32), 2).tolist()
    [[0, 1, 1, 0, 2, 0]]
    """
    grown_hw = inst_hw.astype(np.float32)  # which OpenCV dilates, and which has all these ids exactly
    for step in range(width):  # cross and square in turn make an octagon
        wider_hw = cv2.dilate(grown_hw, _SQUARE if step % 2 else _CROSS)
        grown_hw = np.where(grown_hw > 0, grown_hw, wider_hw)
    return np.where(inst_hw > 0, 0, grown_hw).astype(np.int32)


def ring_densities(
    inst_hw: NDArray[np.int32],
    n: int,
    width: int,
    image: NDArray[np.uint8],
    white: Sequence[float] = FULL,
    stains: Stains = IHC_STAINS,
) -> dict[str, NDArray[np.float64]]:
    """Return the mean optical density of each stain in the ring around each nucleus, NaN where it has no pixel.

    Args:
        inst_hw: instance map with ids from 1 to N, 0 = background.
        n: number of nuclei.
        width: of the ring, px.
        image: HxWx3 uint8 RGB.
        white: white point of the image.
        stains: optical-density vectors by name.
    """
    ring_hw = rings(inst_hw, width)
    places_m = np.flatnonzero(ring_hw)
    of_m = ring_hw.ravel()[places_m]
    od_ms = separate(relative_to_white(image.reshape(-1, 1, 3)[places_m], white), tuple(stains.values()))[:, 0]
    areas_n = np.bincount(of_m, minlength=n + 1)[1:].astype(float)
    areas_n[areas_n == 0] = np.nan
    return {name: np.bincount(of_m, od_m, n + 1)[1:] / areas_n for name, od_m in zip(stains, od_ms.T, strict=True)}
