"""Compares detected nuclei with keypoints: detection, classes and counts.

`score_tile` counts the matches of a tile, `tabulate` collects the tiles of a method, and `scores` turns sums of counts
into metrics, for all tiles or for many resamples at once (`ihc2he.metrics.bootstrap`).

Shape suffixes: t, p = true and predicted nuclei; m = matches; r = radii; c = classes; h, w = height, width;
2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.metrics.average_precision import SIMILAR_UM, Ranked, rank
from ihc2he.metrics.bootstrap import Counts
from ihc2he.metrics.cards import Card
from ihc2he.metrics.ratios import detection_ratios, hovernet_f1, ratio
from ihc2he.nuclei.matching import near_pairs

RADIUS_UM = 3.0
RADII_UM = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True)
class TileScore:
    """The comparison of the nuclei found on a tile with its keypoints.

    Attributes:
        counts: integers and arrays of them that add up over tiles: `tiles` (1), `true`, `pred`, `tp` (matches), `tp_r`
            (matches at each radius), `abs_error`, `sq_error` (of the number of nuclei), `true_sq`, `true_c`, `pred_c`,
            `tp_c` (matches within a class), `match_cc` (C, C + 1: true and predicted class of the matches, last
            column: no class), and with an instance map `inside` (instances with a keypoint).
        true_m: positions of the matched keypoints.
        pred_m: positions of the nuclei they are matched with.
        ranked: for `ihc2he.metrics.average_precision`, if nuclei have scores.
    """

    counts: dict[str, NDArray[np.int64]]
    true_m: NDArray[np.intp]
    pred_m: NDArray[np.intp]
    ranked: Ranked | None = None

    @property
    def missed(self) -> NDArray[np.intp]:
        """Positions of the keypoints that were not found."""
        return np.delete(np.arange(int(self.counts["true"])), self.true_m)

    @property
    def invented(self) -> NDArray[np.intp]:
        """Positions of the predicted nuclei without a keypoint."""
        return np.delete(np.arange(int(self.counts["pred"])), self.pred_m)


def score_tile(
    true_t2: NDArray[np.number],
    true_types_t: NDArray[np.integer],
    pred_p2: NDArray[np.number],
    pred_types_p: NDArray[np.integer],
    *,
    mpp: float,
    n_classes: int,
    radius_um: float = RADIUS_UM,
    radii_um: Sequence[float] = RADII_UM,
    inst_hw: NDArray[np.integer] | None = None,
    scores_p: NDArray[np.floating] | None = None,
    ap_classes: Sequence[int] | None = None,
) -> TileScore:
    """Return the comparison of the nuclei found on a tile with its keypoints.

    Keypoints and nuclei are matched one-to-one: as many as possible within the radius, with the smallest distances, and
    without regard to classes. For the counts of one class, only its keypoints and nuclei are matched. A keypoint is
    inside if an instance contains its pixel; each instance counts for one keypoint only.

    Args:
        true_t2: (T, 2) keypoints in px.
        true_types_t: their classes, from 0.
        pred_p2: (P, 2) centres of the nuclei found, in px.
        pred_types_p: their classes, -1 = none.
        mpp: pixel size, um/px.
        n_classes: number of classes, C.
        radius_um: largest distance of a match.
        radii_um: other radii at which to count matches.
        inst_hw: the instance map, 0 = background, with one instance for each nucleus.
        scores_p: confidence of each nucleus, for average precision.
        ap_classes: for each class the class that average precision counts it as, from 0; None = itself.

    Raises:
        ValueError: if points, classes or scores do not match, or a size is not positive.

    >>> true, pred = np.array([[10, 10], [40, 40]]), np.array([[10, 19], [80, 80]])
    >>> tile = score_tile(true, np.array([0, 1]), pred, np.array([0, -1]), mpp=0.25, n_classes=2)
    >>> int(tile.counts["tp"]), tile.counts["tp_r"].tolist(), tile.missed.tolist(), tile.invented.tolist()
    (1, [0, 0, 1, 1, 1, 1], [1], [1])
    """
    _check(true_t2, true_types_t, n_classes, 0)
    _check(pred_p2, pred_types_p, n_classes, -1)
    if min(mpp, radius_um, *radii_um) <= 0:
        msg = f"Pixel size and radii must be positive, found {mpp} um/px, {radius_um} um and {list(radii_um)} um."
        raise ValueError(msg)
    reach = max(radius_um, SIMILAR_UM, *radii_um) / mpp
    pairs = near_pairs(true_t2, pred_p2, reach)
    near = pairs.within(radius_um / mpp)
    true_m, pred_m = near.matched()
    kin_m = near.only(true_types_t[near.true_e] == pred_types_p[near.pred_e]).matched()[0]
    counts: dict[str, Any] = {
        "tiles": 1,
        "true": len(true_t2),
        "pred": len(pred_p2),
        "tp": len(true_m),
        "tp_r": [len(pairs.within(radius / mpp).matched()[0]) for radius in radii_um],
        "abs_error": abs(len(pred_p2) - len(true_t2)),
        "sq_error": (len(pred_p2) - len(true_t2)) ** 2,
        "true_sq": len(true_t2) ** 2,
        "true_c": np.bincount(true_types_t, minlength=n_classes),
        "pred_c": np.bincount(pred_types_p[pred_types_p >= 0], minlength=n_classes),
        "tp_c": np.bincount(true_types_t[kin_m], minlength=n_classes),
        "match_cc": _table(true_types_t[true_m], pred_types_p[pred_m] % (n_classes + 1), (n_classes, n_classes + 1)),
    }
    if inst_hw is not None:
        counts["inside"] = count_inside(true_t2, inst_hw)
    ranked = None
    if scores_p is not None:
        kinds_c = np.arange(n_classes) if ap_classes is None else np.asarray(ap_classes)
        ranked = rank(pairs.within(SIMILAR_UM / mpp), true_types_t, pred_types_p, scores_p, kinds_c)
    return TileScore({name: np.asarray(count, np.int64) for name, count in counts.items()}, true_m, pred_m, ranked)


def _check(points_n2: NDArray, types_n: NDArray[np.integer], n_classes: int, lowest: int) -> None:
    n = len(points_n2)
    if points_n2.shape != (n, 2) or types_n.shape != (n,) or not np.issubdtype(types_n.dtype, np.integer):
        msg = f"Expected (N, 2) points and N whole classes, found {points_n2.shape}, {types_n.shape} {types_n.dtype}."
        raise ValueError(msg)
    if n and not lowest <= types_n.min() <= types_n.max() < n_classes:
        msg = f"Expected classes from {lowest} to {n_classes - 1}, found {np.unique(types_n)}."
        raise ValueError(msg)


def _table(row_m: NDArray[np.integer], column_m: NDArray[np.integer], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return how often each pair occurs."""
    return np.bincount(row_m * shape[1] + column_m, minlength=shape[0] * shape[1]).reshape(shape)


def count_inside(true_t2: NDArray[np.number], inst_hw: NDArray[np.integer]) -> int:
    """Return the largest number of keypoints that can each have their own instance around them.

    Instances do not overlap, so this is the number of instances with a keypoint. Keypoints outside the map are in none.

    Args:
        true_t2: (T, 2) keypoints in px of the map.
        inst_hw: instance map, 0 = background.

    >>> count_inside(np.array([[0, 0], [1, 0], [2, 0], [9, 9]]), np.array([[7, 7, 0]]))
    1
    """
    x_t, y_t = np.floor(np.asarray(true_t2) + 0.5).astype(np.int64).T
    height, width = inst_hw.shape
    on_t = (x_t >= 0) & (x_t < width) & (y_t >= 0) & (y_t < height)
    return int(np.count_nonzero(np.unique(inst_hw[y_t[on_t], x_t[on_t]])))


def tabulate(tiles: Mapping[str, TileScore]) -> Counts:
    """Return the counts of a method's tiles, sorted by name, for `scores` and for intervals.

    If no nucleus on any tile has a class, the segmenter has no types, and there are no counts of classes.

    Args:
        tiles: by their names.

    Raises:
        ValueError: if there are none.
    """
    if not tiles:
        msg = "There are no tiles to count."
        raise ValueError(msg)
    names = tuple(sorted(tiles))
    columns = {key: np.stack([tiles[name].counts[key] for name in names]) for key in tiles[names[0]].counts}
    if not columns["pred_c"].any():
        columns = {key: column for key, column in columns.items() if "_c" not in key}
    return Counts(names, columns)


def scores(
    sums: Mapping[str, NDArray], classes: Sequence[str], radii_um: Sequence[float] = RADII_UM
) -> dict[str, NDArray[np.float64]]:
    """Return metrics of summed counts; NaN for 0/0.

    Args:
        sums: sums over tiles of `TileScore.counts`, with any leading axes: `Counts.total`, or sums over resamples.
        classes: names of the C classes.
        radii_um: the other radii that were counted.

    Returns:
        `precision`, `recall`, `f1`, and `..._<radius>um` at each radius; `count_mae`, `count_bias` (predicted - true)
        in nuclei per tile, and `count_r2` of the numbers of nuclei, 1 - sum of squared errors / sum of squares about
        their mean, NaN with fewer than two tiles or no variance. With instance maps: `f1_inside`, `precision_inside`,
        `recall_inside`. With classes: `type_accuracy` and Cohen's `type_kappa` among matches; `f1/<class>` by
        HoVer-Net's definition (Graham et al. 2019, section 4.1.2), where a match with the wrong type counts twice;
        `precision_own/<class>`, `recall_own/<class>`, `f1_own/<class>`, as if there were no other classes; `f1_macro`
        and `f1_own_macro`, the means over classes with keypoints.

    >>> tile = score_tile(np.array([[9, 9]]), np.array([0]), np.empty((0, 2)), np.empty(0, int), mpp=1, n_classes=1)
    >>> values = scores(tabulate({"a": tile}).total(), ["stroma"])
    >>> float(values["recall"]), float(values["precision"]), float(values["count_bias"])
    (0.0, nan, -1.0)
    """
    true, pred, tiles = sums["true"], sums["pred"], sums["tiles"]
    found = detection_ratios(sums["tp"], pred, true)
    for index, radius in enumerate(radii_um):
        found |= detection_ratios(sums["tp_r"][..., index], pred, true, f"_{radius:g}um")
    if "inside" in sums:
        found |= detection_ratios(sums["inside"], pred, true, "_inside")
    spread = ratio(tiles * sums["true_sq"] - true**2, tiles)
    found["count_mae"] = ratio(sums["abs_error"], tiles)
    found["count_bias"] = ratio(pred - true, tiles)
    found["count_r2"] = 1 - ratio(sums["sq_error"], spread)
    return found | (_typed(sums, classes) if "match_cc" in sums else {})


def _typed(sums: Mapping[str, NDArray], classes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of classes."""
    match_cc, true_c, pred_c = sums["match_cc"], sums["true_c"], sums["pred_c"]
    typed_cc = match_cc[..., :-1]
    right_c = np.diagonal(typed_cc, axis1=-2, axis2=-1)
    right, typed = right_c.sum(-1), typed_cc.sum((-2, -1))
    matched_true_c, matched_pred_c = match_cc.sum(-1), typed_cc.sum(-2)
    wrong_c = matched_true_c + matched_pred_c - 2 * right_c
    alone_c = true_c + pred_c - matched_true_c - matched_pred_c
    chance = (typed_cc.sum(-1) * matched_pred_c).sum(-1)
    hover_c = hovernet_f1(right_c, wrong_c, alone_c)
    own = detection_ratios(sums["tp_c"], pred_c, true_c, "_own")
    found = {
        "type_accuracy": ratio(right, sums["tp"]),
        "type_kappa": ratio(typed * right - chance, typed**2 - chance),
    }
    for index, name in enumerate(classes):
        found |= {f"f1/{name}": hover_c[..., index]} | {f"{key}/{name}": own[key][..., index] for key in own}
    for name, value_c in (("f1_macro", hover_c), ("f1_own_macro", own["f1_own"])):
        # A class without keypoints is 0 or NaN.
        found[name] = ratio(np.nansum(value_c, -1), (true_c > 0).sum(-1))
    return found


def cards(
    classes: Sequence[str],
    ap_classes: Sequence[str] = (),
    radius_um: float = RADIUS_UM,
    radii_um: Sequence[float] = RADII_UM,
) -> dict[str, Card]:
    """Return the name cards of `scores` and of `average_precisions`.

    Args:
        classes: names of the classes.
        ap_classes: names of the classes of average precision.
        radius_um: largest distance of a match.
        radii_um: the other radii.

    >>> cards(["stroma"])["f1/stroma"].title
    'F1, stroma'
    """
    near = "keypoints and centres one-to-one within {:g} um, as many as possible; counts pooled over tiles".format
    rules = {f"_{radius:g}um": near(radius) for radius in radii_um} | {"": near(radius_um)}
    rules["_inside"] = "a keypoint is found by the one instance that contains its pixel; counts pooled over tiles"
    ours: dict[str, tuple[str, bool, str, str]] = {}
    for suffix, rule in rules.items():
        title = suffix.replace("_", ", ").replace("um", " um")
        for key, name in {"f1": "F1", "precision": "Precision", "recall": "Recall"}.items():
            ours[key + suffix] = (name + title, True, "0 to 1", rule)
    ours["count_mae"] = ("Count error", False, "nuclei", "mean over tiles of |found - true|")
    ours["count_bias"] = ("Count bias", False, "nuclei", "mean over tiles of found - true; 0 is best")
    ours["count_r2"] = ("Count R2", True, "up to 1", "1 - squared errors of counts per tile / squares about their mean")
    ours["type_accuracy"] = ("Type accuracy", True, "0 to 1", f"share of correct classes among matches; {rules['']}")
    ours["type_kappa"] = ("Type kappa", True, "-1 to 1", f"Cohen's kappa of the class among matches; {rules['']}")
    hover = f"a match with the wrong class counts twice (HoVer-Net); {rules['']}"
    own = f"as if there were no other classes; {rules['']}"
    for name in classes:
        ours[f"f1/{name}"] = (f"F1, {name}", True, "0 to 1", hover)
        for key, title in {"f1": "F1", "precision": "Precision", "recall": "Recall"}.items():
            ours[f"{key}_own/{name}"] = (f"{title} on its own, {name}", True, "0 to 1", own)
    ours["f1_macro"] = ("F1, mean of classes", True, "0 to 1", f"classes with keypoints; {hover}")
    ours["f1_own_macro"] = ("F1 on its own, mean of classes", True, "0 to 1", f"classes with keypoints; {own}")
    ap = "similarity exp(-d2/2s2) >= 0.5, s 2.98 um (EndoNet), greedy by score, all-point interpolation, tiles pooled"
    ours["ap"] = ("AP", True, "0 to 1", f"classes ignored; {ap}")
    ours |= {f"ap/{name}": (f"AP, {name}", True, "0 to 1", ap) for name in ap_classes}
    ours["map"] = ("mAP", True, "0 to 1", f"mean over {', '.join(ap_classes) or 'no class'}; {ap}")
    best = {"count_bias": 0.0}
    return {key: Card(key, *ours[key][:3], 1, ours[key][3], best.get(key)) for key in ours}
