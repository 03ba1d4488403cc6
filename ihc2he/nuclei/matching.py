"""One-to-one matching of nuclei, by points or by any gain of pairing them.

Shape suffixes: t, p = true and predicted nuclei; e = pairs that may be matched; m = matches; 2 = (x, y).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import KDTree

_BATCH = 1000  # pairs solved in one call: enough to make its cost small, too few for its growth to show


def one_to_one(
    true_e: NDArray[np.integer], pred_e: NDArray[np.integer], gain_e: NDArray[np.floating]
) -> NDArray[np.intp]:
    """Return a selection of pairs in which nothing occurs twice and the sum of the gains is as large as possible.

    The pairs are divided into small independent groups, and only a limited number is solved together, so that the time
    grows only with the number of nuclei.

    Args:
        true_e: the true nucleus of each pair.
        pred_e: the predicted one.
        gain_e: value of each pair, above 0.

    Returns:
        Positions in the list of pairs, ascending.

    >>> one_to_one(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.9, 0.5, 0.6])).tolist()
    [1, 2]
    """
    alone_e = (np.bincount(true_e)[true_e] == 1) & (np.bincount(pred_e)[pred_e] == 1)
    chosen = [np.flatnonzero(alone_e)]
    rest = np.flatnonzero(~alone_e)
    if len(rest):
        n_true = int(true_e.max()) + 1
        n = n_true + int(pred_e.max()) + 1
        graph = coo_array((np.ones(len(rest)), (true_e[rest], pred_e[rest] + n_true)), shape=(n, n))
        group_e = connected_components(graph, directed=False)[1][true_e[rest]]
        order = np.argsort(group_e, kind="stable")
        before_e = np.searchsorted(group_e[order], group_e[order])  # pairs of earlier groups
        for members in np.split(rest[order], np.flatnonzero(np.diff(before_e // _BATCH)) + 1):
            chosen.append(members[_assign(true_e[members], pred_e[members], gain_e[members])])
    return np.sort(np.concatenate(chosen))


def _assign(true_e: NDArray[np.integer], pred_e: NDArray[np.integer], gain_e: NDArray[np.floating]) -> NDArray[np.intp]:
    """Like `one_to_one`, for pairs that are solved together."""
    trues, row_e = np.unique(true_e, return_inverse=True)
    preds, column_e = np.unique(pred_e, return_inverse=True)
    n_true, n_pred = len(trues), len(preds)
    # The solver must match all of one side and accepts no cost of 0: a true nucleus may also take a column of its
    # own, at the cost of no gain.
    own_t = np.arange(n_true)
    nothing = 2 * gain_e.max()
    costs = np.concatenate([nothing - gain_e, np.full(n_true, nothing)])
    places = (np.concatenate([row_e, own_t]), np.concatenate([column_e, n_pred + own_t]))
    table = csr_array((costs, places), shape=(n_true, n_pred + n_true))
    taken_t = min_weight_full_bipartite_matching(table)[1]
    return np.flatnonzero(taken_t[row_e] == column_e)


class Pairs(NamedTuple):
    """Pairs of points that may be matched.

    Attributes:
        true_e: position of the true point in its list.
        pred_e: position of the predicted one.
        distance_e: their distance.
    """

    true_e: NDArray[np.intp]
    pred_e: NDArray[np.intp]
    distance_e: NDArray[np.float64]

    def only(self, keep_e: NDArray[np.bool_]) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.true_e[keep_e], self.pred_e[keep_e], self.distance_e[keep_e])

    def within(self, radius: float) -> Pairs:
        """Return the pairs with a distance up to a radius."""
        return self.only(self.distance_e <= radius)

    def matched(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the largest one-to-one matching, the closest of the largest, as `match_points` does.

        >>> pairs = Pairs(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([3.0, 1.0, 3.0]))
        >>> pairs.matched()
        (array([0, 1]), array([0, 1]))
        """
        # One more pair is worth more than any saving of distance.
        gain_e = (self.distance_e.max(initial=0) + 1) * (len(self.distance_e) + 1) - self.distance_e
        taken = one_to_one(self.true_e, self.pred_e, gain_e)
        taken = taken[np.argsort(self.true_e[taken])]
        return self.true_e[taken], self.pred_e[taken]

    def greedy(self, scores_p: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the matching in which by falling score each predicted point takes the closest true one that is left.

        Of equal scores, the closest pair goes first.

        Args:
            scores_p: of each predicted point.

        >>> pairs = Pairs(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0]))
        >>> pairs.greedy(np.array([0.5, 0.9]))
        (array([0]), array([1]))
        """
        order = np.lexsort((self.distance_e, -scores_p[self.pred_e]))
        of: dict[int, int] = {}
        preds: set[int] = set()
        for true, pred in zip(self.true_e[order].tolist(), self.pred_e[order].tolist(), strict=True):
            if true not in of and pred not in preds:
                of[true] = pred
                preds.add(pred)
        return np.array([*of], np.intp), np.array([*of.values()], np.intp)


def near_pairs(true_t2: NDArray[np.number], pred_p2: NDArray[np.number], radius: float) -> Pairs:
    """Return all pairs of points no further apart than a radius.

    Args:
        true_t2: (T, 2) points.
        pred_p2: (P, 2) points.
        radius: largest distance of a pair, inclusive, in the unit of the points.

    >>> [values.tolist() for values in near_pairs(np.array([[0, 0], [9, 0]]), np.array([[3, 4]]), 5)]
    [[0], [0], [5.0]]
    """
    if not len(true_t2) or not len(pred_p2):
        return Pairs(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0))
    near = KDTree(true_t2).sparse_distance_matrix(KDTree(pred_p2), radius, output_type="ndarray")
    return Pairs(near["i"], near["j"], near["v"])


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
        Positions of the matched points in both lists, of equal length; the true ones ascend.

    >>> [points.tolist() for points in match_points(np.array([[0, 0], [4, 0]]), np.array([[3, 0], [7, 0]]), 3)]
    [[0, 1], [0, 1]]
    """
    return near_pairs(true_t2, pred_p2, radius).matched()
