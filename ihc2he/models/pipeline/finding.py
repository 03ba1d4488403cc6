"""The classical detector, and labels that are final, for worker processes: nothing here imports torch, which is slow.

Shape suffixes: k = maps, h, w = height, width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.classical import segment_density
from ihc2he.nuclei.decoders.base import Found, Nuclei, typed
from ihc2he.nuclei.instances import centroids, foreground, means


def find_in_density(maps_khw: NDArray[np.float32], mpp: float) -> Found:
    """Return the nuclei that the classical detector finds in the optical density of red.

    The score is the mean of that density, at most 1.
    """
    inst_hw, centres_n2 = segment_density(maps_khw[0], mpp)
    n = len(centres_n2)
    nuclei = Nuclei(inst_hw, np.zeros(n, np.int64), np.zeros(n, np.float32))
    return Found(nuclei, centres_n2.astype(np.float64), np.minimum(means(maps_khw[0], inst_hw), 1))


def find_labelled(maps_khw: NDArray[np.float32], mpp: float) -> Found:  # noqa: ARG001
    """Return nuclei that are divided already, each with a score of 1.

    Args:
        maps_khw: labels, which need not be contiguous, 0 = background; and with types the type of each pixel's nucleus.
        mpp: not used.
    """
    places_m, of_m, ids_n = foreground(maps_khw[0].astype(np.int32))
    inst_hw = np.zeros(maps_khw.shape[1:], np.int32)
    inst_hw.ravel()[places_m] = of_m + 1
    return Found(typed(inst_hw, maps_khw, 1), centroids(inst_hw), np.ones(len(ids_n), np.float32))
