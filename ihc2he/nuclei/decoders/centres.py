"""Learned centres and foreground: a heat map that is 1 at the centre of each nucleus, and the foreground around it.

Shape suffixes: b = batch, k = maps (foreground, centres, then background and types), h, w = height, width; n = nuclei;
2 = (x, y).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.basins import basins
from ihc2he.nuclei.decoders.base import Decoder, Found, likeliest, require_share, typed
from ihc2he.nuclei.instances import centroids, without_holes
from ihc2he.nuclei.postprocess import components

if TYPE_CHECKING:
    from torch import Tensor

SIGMA_UM = 1.0  # of the Gaussian that a centre is
SMOOTHING_UM = 0.4  # sigma of the blur before maxima of the heat map are searched
RATIO = 0.85  # two maxima are one nucleus if the heat between them nowhere falls below this share of the lower one
LARGE_UM2, LARGE_SHARE = 10.0, 0.5  # a large nucleus needs this share of the heat: its centre is less certain
MIN_AREA_UM2 = 1.0  # of a piece of the foreground
TYPES = 2  # the first map of types


class CentresDecoder(Decoder):
    """Probability of nucleus, heat of the centres, and with types the probability of background and of each.

    A network gives `mask` and `centre` (a logit each) and, with types, `types` (logits). Valleys of the heat divide the
    foreground into nuclei (`ihc2he.nuclei.basins`); the score of each is its highest heat. A part without heat is not a
    nucleus, and a hole of a nucleus belongs to it.

    Args:
        threshold: least probability of the foreground.
        least_heat: of a nucleus; half of it is enough from 10 um2 on.

    Raises:
        ConfigError: for a value that is not between 0 and 1.
    """

    def __init__(self, threshold: float = 0.5, least_heat: float = 0.4) -> None:
        require_share("threshold", threshold)
        require_share("least_heat", least_heat)
        self.threshold = threshold
        self.least_heat = least_heat

    def channels(self, n_types: int) -> dict[str, int]:
        return {"mask": 1, "centre": 1} | ({"types": n_types + 1} if n_types else {})

    def targets(self, inst_hw: NDArray[np.int32], mpp: float) -> dict[str, NDArray[np.float32]]:
        return {"centre": heat(inst_hw, mpp)}

    def join(self, raw: Mapping[str, Tensor]) -> Tensor:
        import torch

        parts = [raw["mask"].float().sigmoid(), raw["centre"].float().sigmoid()]
        if "types" in raw:
            parts.append(raw["types"].float().softmax(1))
        return torch.cat(parts, 1)

    def turned_back(self, maps_bkhw: Tensor, view: int) -> Tensor:
        from ihc2he.tiling.augmentation import turned_back

        return turned_back(maps_bkhw, view, None)

    def votes(self, maps_bkhw: Tensor) -> Tensor:
        return (maps_bkhw[:, 0] >= self.threshold).float()

    def reduced(self, maps_bkhw: Tensor) -> Tensor:
        return likeliest(maps_bkhw, TYPES)

    def find(self, maps_khw: NDArray[np.float32], mpp: float) -> Found:
        blobs_hw, _ = components((maps_khw[0] >= self.threshold).view(np.uint8), math.ceil(MIN_AREA_UM2 / mpp**2))
        heat_hw = np.ascontiguousarray(maps_khw[1], np.float32)
        heat_hw = np.asarray(cv2.GaussianBlur(heat_hw, (0, 0), SMOOTHING_UM / mpp), np.float32)
        places_m, of_m, peaks_n = basins(heat_hw, blobs_hw > 0, RATIO, self.least_heat)
        large_n = np.bincount(of_m, minlength=len(peaks_n)) * mpp**2 >= LARGE_UM2
        kept_n = peaks_n >= self.least_heat * np.where(large_n, LARGE_SHARE, 1)
        inst_hw = np.zeros(blobs_hw.shape, np.int32)
        inst_hw.ravel()[places_m] = (np.cumsum(kept_n) * kept_n)[of_m]
        inst_hw = without_holes(inst_hw)
        return Found(typed(inst_hw, maps_khw, TYPES), centroids(inst_hw), peaks_n[kept_n].clip(0, 1))


def heat(inst_hw: NDArray[np.integer], mpp: float) -> NDArray[np.float32]:
    """Return the heat map of nuclei: a Gaussian around each centre of mass, the largest value where they overlap.

    Args:
        inst_hw: instance map, 0 = background.
        mpp: um/px.

    Returns:
        HxW in [0, 1]; 1 at the pixel of each centre.

    >>> [[round(float(value), 2) for value in row] for row in heat(np.array([[0, 6, 6, 6, 0]]), mpp=1.0)]
    [[0.14, 0.61, 1.0, 0.61, 0.14]]
    """
    x_n, y_n = np.rint(centroids(inst_hw)).astype(int).T
    if not len(x_n):
        return np.zeros(inst_hw.shape, np.float32)
    elsewhere_hw = np.ones(inst_hw.shape, np.uint8)
    elsewhere_hw[y_n, x_n] = 0
    distance_hw = cv2.distanceTransform(elsewhere_hw, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.exp(-0.5 * (distance_hw * np.float32(mpp / SIGMA_UM)) ** 2)
