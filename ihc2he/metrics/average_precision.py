"""Average precision of detected nuclei, with the keypoint similarity of EndoNet.

Shape suffixes: p = predicted nuclei; c = classes; k = classes of average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.matching import Pairs

# Distance at which the similarity exp(-d^2 / 2 s^2) is 0.5. EndoNet uses s = 15.24 px in tiles of 100 um and 512 px.
SIMILAR_UM = 2.98 * float(np.sqrt(2 * np.log(2)))


class Ranked(NamedTuple):
    """What average precision needs to know about a tile.

    Attributes:
        scores_p: of each predicted nucleus.
        types_p: its class, -1 = none.
        hits_p: whether it found a true nucleus.
        typed_hits_p: whether it found one of its own class, if each class is matched separately.
        true_k: number of true nuclei of each class.
    """

    scores_p: NDArray[np.floating]
    types_p: NDArray[np.integer]
    hits_p: NDArray[np.bool_]
    typed_hits_p: NDArray[np.bool_]
    true_k: NDArray[np.int64]


def rank(
    pairs: Pairs,
    true_types_t: NDArray[np.integer],
    pred_types_p: NDArray[np.integer],
    scores_p: NDArray[np.floating],
    kinds_c: NDArray[np.integer],
) -> Ranked:
    """Return which nuclei of a tile are hits: in order of falling score, each takes the closest keypoint left.

    Args:
        pairs: of keypoints and nuclei no further apart than `SIMILAR_UM`.
        true_types_t: class of each keypoint, from 0.
        pred_types_p: class of each nucleus, -1 = none.
        scores_p: confidence of each nucleus.
        kinds_c: for each class the class that it counts as, from 0.

    Raises:
        ValueError: if there is not exactly one finite score for each nucleus.

    >>> pairs = Pairs(np.array([0, 0]), np.array([0, 1]), np.array([1.0, 2.0]))
    >>> rank(pairs, np.array([2]), np.array([1, 0]), np.array([0.9, 0.8]), np.array([0, 1, 0]))[2:4]
    (array([ True, False]), array([False,  True]))
    """
    if scores_p.shape != pred_types_p.shape or not np.isfinite(scores_p).all():
        msg = f"Expected a finite score for each of {len(pred_types_p)} nuclei, found {scores_p.shape}: {scores_p}."
        raise ValueError(msg)
    true_kinds_t, kinds_p = kinds_c[true_types_t], np.append(kinds_c, -1)[pred_types_p]
    hits_p, typed_hits_p = np.zeros((2, len(scores_p)), bool)
    hits_p[pairs.greedy(scores_p)[1]] = True
    typed_hits_p[pairs.only(true_kinds_t[pairs.true_e] == kinds_p[pairs.pred_e]).greedy(scores_p)[1]] = True
    return Ranked(scores_p, kinds_p, hits_p, typed_hits_p, np.bincount(true_kinds_t, minlength=kinds_c.max() + 1))


def average_precision(scores_p: NDArray[np.floating], hits_p: NDArray[np.bool_], n_true: int) -> float:
    """Return the area under the interpolated curve of precision over recall; NaN if there are no true nuclei.

    The precision at each recall is the best one at this or a higher recall, and the area is exact ("all points", as in
    PASCAL VOC since 2010), not sampled at 101 recalls as in COCO. Equal scores are one point of the curve.

    Args:
        scores_p: of each prediction.
        hits_p: whether it found a true nucleus that no other has found.
        n_true: number of true nuclei.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    0.8333333333333333
    """
    if not n_true:
        return float("nan")
    order = np.argsort(-scores_p)
    last_p = np.diff(scores_p[order], append=np.nan) != 0  # of those with equal scores
    tp_p = np.cumsum(hits_p[order])[last_p]
    precision_p = tp_p / (np.flatnonzero(last_p) + 1)
    best_p = np.maximum.accumulate(precision_p[::-1])[::-1]
    return float(np.sum(np.diff(tp_p, prepend=0) * best_p) / n_true)


def average_precisions(tiles: Sequence[Ranked], classes: Sequence[str]) -> dict[str, float]:
    """Return average precision over all tiles: for all nuclei, for each class, and the mean over classes.

    The protocol of EndoNet: a nucleus finds a keypoint at a similarity exp(-d^2 / 2 s^2) of at least 0.5 with s = 2.98
    um, that is within 3.5 um. In order of falling score, each takes the most similar keypoint left. Their code differs:
    it takes the least similar keypoint and sorts by rising score.

    Args:
        tiles: at least one.
        classes: names of the classes of average precision.

    Returns:
        `ap`. If any nucleus has a class, also `ap/<class>`, which is NaN without keypoints, and `map`, the mean over
        the other classes.

    >>> tile = Ranked(np.array([0.9]), np.array([0]), np.array([True]), np.array([True]), np.array([1, 1]))
    >>> average_precisions([tile], ["stroma", "epithelium"])
    {'ap': 0.5, 'ap/stroma': 1.0, 'ap/epithelium': 0.0, 'map': 0.5}
    """
    scores_p, types_p, hits_p, typed_hits_p = map(np.concatenate, list(zip(*tiles, strict=True))[:4])
    true_k = np.sum([tile.true_k for tile in tiles], 0)
    found = {"ap": average_precision(scores_p, hits_p, true_k.sum())}
    if (types_p < 0).all():
        return found
    for kind, (name, n_true) in enumerate(zip(classes, true_k, strict=True)):
        own_p = types_p == kind
        found[f"ap/{name}"] = average_precision(scores_p[own_p], typed_hits_p[own_p], n_true)
    defined = [value for name, value in found.items() if name != "ap" and not np.isnan(value)]
    return found | {"map": float(np.mean(defined)) if defined else float("nan")}
