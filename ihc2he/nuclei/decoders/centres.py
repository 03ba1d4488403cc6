"""Learned centres and foreground: a heat map that is 1 at the centre of each nucleus, and a watershed from there.

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
from scipy.spatial import cKDTree

from ihc2he.nuclei.decoders.base import Decoder, Found, likeliest, typed
from ihc2he.nuclei.instances import centroids
from ihc2he.nuclei.postprocess import components, flooded

if TYPE_CHECKING:
    from torch import Tensor

SIGMA_UM = 1.0  # of the Gaussian that a centre is
SMOOTHING_UM = 0.4  # sigma of the blur before maxima of the heat map are searched
SEPARATION_UM = 1.5  # least distance of two maxima
LEAST_HEAT = 0.3  # of a maximum
MIN_AREA_UM2 = 1.0  # of a piece of the foreground
TYPES = 2  # the first map of types


class CentresDecoder(Decoder):
    """Probability of nucleus, heat of the centres, and with types the probability of background and of each.

    A network gives `mask` and `centre` (a logit each) and, with types, `types` (logits). Nuclei are the maxima of the
    heat that lie in the foreground; their score is the heat there. A piece of foreground without a maximum is not
    a nucleus.
    """

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
        return (maps_bkhw[:, 0] >= 0.5).float()

    def reduced(self, maps_bkhw: Tensor) -> Tensor:
        return likeliest(maps_bkhw, TYPES)

    def find(self, maps_khw: NDArray[np.float32], mpp: float) -> Found:
        blobs_hw, boxes = components((maps_khw[0] >= 0.5).view(np.uint8), math.ceil(MIN_AREA_UM2 / mpp**2))
        heat_hw = np.ascontiguousarray(maps_khw[1], np.float32)
        heat_hw = np.asarray(cv2.GaussianBlur(heat_hw, (0, 0), SMOOTHING_UM / mpp), np.float32)
        centres_n2 = maxima(np.where(blobs_hw > 0, heat_hw, 0), SEPARATION_UM / mpp, LEAST_HEAT)
        markers_hw = np.zeros(blobs_hw.shape, np.int32)
        markers_hw[centres_n2[:, 1], centres_n2[:, 0]] = np.arange(1, len(centres_n2) + 1)
        inst_hw = flooded(blobs_hw, boxes, markers_hw, heat_hw)
        scores_n = heat_hw[centres_n2[:, 1], centres_n2[:, 0]].clip(0, 1)
        return Found(typed(inst_hw, maps_khw, TYPES), centres_n2.astype(np.float64), scores_n)


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


def maxima(map_hw: NDArray[np.float32], separation: float, least: float) -> NDArray[np.intp]:
    """Return the maxima of a map, (N, 2) as (x, y), from top to bottom.

    Of maxima that are too close, the greater one counts.

    Args:
        map_hw: of at least 0.
        separation: least distance of two maxima, px.
        least: value of a maximum.

    >>> maxima(np.array([[0.0, 0.9, 0.8, 0.0, 0.0, 0.5, 0.1]], np.float32), 2, 0.3).tolist()
    [[1, 0], [5, 0]]
    """
    reach = max(1, int(separation))
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    y_n, x_n = np.nonzero((map_hw >= least) & (map_hw == cv2.dilate(map_hw, around)))
    order = np.argsort(-map_hw[y_n, x_n], kind="stable")
    points_n2 = np.stack([x_n[order], y_n[order]], 1)
    kept = np.ones(len(points_n2), bool)
    if len(points_n2):
        near = cKDTree(points_n2).query_ball_point(points_n2, separation - 1e-6)
        for i, others in enumerate(near):
            if kept[i]:
                kept[[j for j in others if j > i]] = False
    points_n2 = points_n2[kept]
    return points_n2[np.lexsort((points_n2[:, 0], points_n2[:, 1]))]
