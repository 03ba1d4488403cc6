"""From maps to nuclei, as plain functions for worker processes: nothing here imports torch, which takes them seconds.

Shape suffixes: k = maps, h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.classical import segment_density
from ihc2he.nuclei.instances import centroids, foreground, instance_types
from ihc2he.nuclei.postprocess import Nuclei, segment
from ihc2he.tiling.resampling import moved_points, resized_labels


class Found(NamedTuple):
    """Nuclei as a segmenter finds them.

    Attributes:
        nuclei: with ids from 1 to N; on a coarser grid some may have no pixel left.
        centres_n2: (x, y) in px.
        scores_n: how sure the segmenter is of each, in [0, 1].
    """

    nuclei: Nuclei
    centres_n2: NDArray[np.float64]
    scores_n: NDArray[np.float32]


def find_on_hover_maps(maps_khw: NDArray[np.float32], mpp: float, keep_unmarked: bool = True) -> Found:
    """Return the nuclei on the maps of a HoVer-Net; the score is the mean probability inside of the nucleus.

    Args:
        maps_khw: probability of nucleus, horizontal and vertical map, and with types the likeliest of each pixel.
        mpp: um/px.
        keep_unmarked: see `ihc2he.nuclei.postprocess.segment`.
    """
    prob_hw, hv_2hw = maps_khw[0], maps_khw[1:3]
    inst_hw = segment(prob_hw, hv_2hw, mpp, keep_unmarked)
    types_hw = maps_khw[3].astype(np.uint8) if len(maps_khw) > 3 else np.zeros(inst_hw.shape, np.uint8)
    nuclei = Nuclei(inst_hw, *instance_types(inst_hw, types_hw))
    return Found(nuclei, centroids(inst_hw), means(prob_hw, inst_hw))


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
    size: tuple[int, int],
) -> tuple[Found, NDArray[np.float32] | None]:
    """Return the nuclei on maps, on the grid of the tile, and where there are votes their mean over each nucleus.

    Args:
        find: one of the functions above.
        maps_khw: what it takes.
        votes_hw: share of ensemble members and views that call a pixel nucleus.
        mpp: pixel size of the maps, um/px.
        size: height and width of the tile, px.
    """
    nuclei, centres_n2, scores_n = find(maps_khw, mpp)
    agreement_n = None if votes_hw is None else means(votes_hw, nuclei.inst_hw)
    centres_n2 = moved_points(centres_n2, nuclei.inst_hw.shape, size)
    inst_hw = resized_labels(nuclei.inst_hw, *size).astype(np.int32, copy=False)
    return Found(nuclei._replace(inst_hw=inst_hw), centres_n2, scores_n), agreement_n
