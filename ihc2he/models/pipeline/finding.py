"""From maps to nuclei, as plain functions for worker processes: nothing here imports torch, which takes them seconds.

Shape suffixes: k = maps, h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.classical import segment_density
from ihc2he.nuclei.instances import centroids, foreground
from ihc2he.nuclei.postprocess import Nuclei, postprocess


class Found(NamedTuple):
    """Nuclei on the segmenter's own grid.

    Attributes:
        nuclei: with ids 1..N.
        centres_n2: (x, y) in px.
        scores_n: how sure the segmenter is of each, in [0, 1].
    """

    nuclei: Nuclei
    centres_n2: NDArray[np.float64]
    scores_n: NDArray[np.float32]


def find_on_hover_maps(maps_khw: NDArray[np.float32], mpp: float, keep_unmarked: bool = True) -> Found:
    """Return the nuclei on the maps of a HoVer-Net; the score is the mean probability inside of the nucleus."""
    # As `ihc2he.models.hovernet.module.joined` orders them.
    prob_hw, hv_2hw, types_khw = maps_khw[0], maps_khw[1:3], maps_khw[3:] if len(maps_khw) > 3 else None
    nuclei = postprocess(prob_hw, hv_2hw, types_khw, mpp, keep_unmarked)
    return Found(nuclei, centroids(nuclei.inst_hw), means(prob_hw, nuclei.inst_hw))


def find_in_density(maps_khw: NDArray[np.float32], mpp: float) -> Found:
    """Return the nuclei that the classical detector sees in the optical density of red.

    The score is that density in the mean, 1 at most.
    """
    inst_hw, centres_n2 = segment_density(maps_khw[0], mpp)
    n = len(centres_n2)
    nuclei = Nuclei(inst_hw, np.zeros(n, np.int64), np.zeros(n, np.float32))
    return Found(nuclei, centres_n2.astype(np.float64), np.minimum(means(maps_khw[0], inst_hw), 1))


def means(map_hw: NDArray[np.float32], inst_hw: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the mean of a map over each nucleus, in ascending order of the ids.

    >>> means(np.array([[0.5, 1.0, 9.0]], np.float32), np.array([[4, 4, 0]], np.int32)).tolist()
    [0.75]
    """
    places_m, of_m, ids_n = foreground(inst_hw)
    areas_n = np.bincount(of_m, minlength=len(ids_n))
    return (np.bincount(of_m, map_hw.ravel()[places_m], len(ids_n)) / areas_n).astype(np.float32)


def find_and_vote(
    find: Callable[[NDArray[np.float32], float], Found],
    maps_khw: NDArray[np.float32],
    votes_hw: NDArray[np.float32] | None,
    mpp: float,
) -> tuple[Found, NDArray[np.float32] | None]:
    """Return the nuclei on maps and, where there are votes, their mean over each nucleus.

    Args:
        find: one of the functions above.
        maps_khw: what it takes.
        votes_hw: share of ensemble members and views that call a pixel nucleus.
        mpp: pixel size of the maps, um/px.
    """
    found = find(maps_khw, mpp)
    return found, None if votes_hw is None else means(votes_hw, found.nuclei.inst_hw)
