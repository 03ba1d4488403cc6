"""One-to-one matching of nuclei, by points or by any gain of pairing them.

Shape suffixes: t, p = true and predicted nuclei; e = pairs that may be matched; 2 = (x, y).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree


def one_to_one(
    true_e: NDArray[np.integer], pred_e: NDArray[np.integer], gain_e: NDArray[np.floating]
) -> NDArray[np.intp]:
    """Return which pairs to take so that nobody is taken twice and the sum of their gains is the greatest possible.

    The pairs fall apart into small groups that share nobody; each is solved exactly by itself, so that crowded tiles
    cost no more than their number of nuclei.

    Args:
        true_e: the true nucleus of each pair.
        pred_e: the predicted one.
        gain_e: what taking the pair is worth, above 0.

    Returns:
        Positions in the list of pairs, ascending.

    >>> one_to_one(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.9, 0.5, 0.6])).tolist()
    [1, 2]
    """
    if not len(gain_e):
        return np.empty(0, np.intp)
    n_true = int(true_e.max()) + 1
    n = n_true + int(pred_e.max()) + 1
    graph = coo_array((np.ones(len(gain_e)), (true_e, pred_e + n_true)), shape=(n, n))
    group_e = connected_components(graph, directed=False)[1][true_e]
    order = np.argsort(group_e, kind="stable")
    chosen = []
    for members in np.split(order, np.flatnonzero(np.diff(group_e[order])) + 1):
        if len(members) == 1:
            chosen.append(members)
            continue
        trues, row = np.unique(true_e[members], return_inverse=True)
        preds, column = np.unique(pred_e[members], return_inverse=True)
        gain = np.zeros((len(trues), len(preds)))
        pair = np.full(gain.shape, -1)
        gain[row, column], pair[row, column] = gain_e[members], members
        taken = pair[linear_sum_assignment(gain, maximize=True)]
        chosen.append(taken[taken >= 0])
    return np.sort(np.concatenate(chosen))


def match_points(
    true_t2: NDArray[np.number], pred_p2: NDArray[np.number], radius: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the largest one-to-one matching of points no further apart than a radius, the closest of the largest.

    Differs from HoVer-Net's `pair_coordinates`, which minimises the total distance over all points and drops pairs
    beyond the radius afterwards, and so may lose matches.

    Args:
        true_t2: (T, 2) points.
        pred_p2: (P, 2) points.
        radius: largest distance of a pair, inclusive, in the unit of the points.

    Returns:
        Positions of the matched points in both lists, of equal length.

    >>> [points.tolist() for points in match_points(np.array([[0, 0], [4, 0]]), np.array([[3, 0], [7, 0]]), 3)]
    [[0, 1], [0, 1]]
    """
    if not len(true_t2) or not len(pred_p2):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    near = KDTree(true_t2).sparse_distance_matrix(KDTree(pred_p2), radius, output_type="ndarray")
    # One more pair is worth more than any saving of distance.
    gain_e = radius * (min(len(true_t2), len(pred_p2)) + 1) - near["v"]
    taken = one_to_one(near["i"], near["j"], gain_e)
    order = taken[np.argsort(near["i"][taken])]
    return near["i"][order], near["j"][order]
