"""The classical detector for worker processes: nothing here imports torch, which would take seconds.

Shape suffixes: k = maps, h, w = height, width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.classical import segment_density
from ihc2he.nuclei.decoders.base import Found, Nuclei
from ihc2he.nuclei.instances import means


def find_in_density(maps_khw: NDArray[np.float32], mpp: float) -> Found:
    """Return the nuclei that the classical detector finds in the optical density of red.

    The score is the mean of that density, at most 1.
    """
    inst_hw, centres_n2 = segment_density(maps_khw[0], mpp)
    n = len(centres_n2)
    nuclei = Nuclei(inst_hw, np.zeros(n, np.int64), np.zeros(n, np.float32))
    return Found(nuclei, centres_n2.astype(np.float64), np.minimum(means(maps_khw[0], inst_hw), 1))
