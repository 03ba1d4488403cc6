"""Panoptic quality of nuclei with the protocol of PanNuke, and AJI, AJI+ and Dice.

`panoptic_stats` counts the matches of a tile; `panoptic_quality` turns the counts of all tiles into bPQ, mPQ and other
metrics. Papers average over tiles in different ways, and this alone changes bPQ by more than a point.

Shape suffixes: h, w = height, width; t, p = true and predicted nuclei; c = classes; n = tiles; g = tissues;
s = statistics (TP, FP, FN, sum of IoU); k = bytes of a tissue's name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.metrics.cards import Card
from ihc2he.metrics.fidelity import decode_key, encode_key
from ihc2he.nuclei.instances import Overlaps
from ihc2he.nuclei.matching import one_to_one

AGGREGATES = ("tissue", "image", "dataset")
EMPTY_GT = ("skip", "zero", "one")
_MATCH_IOU = 0.5  # above this IoU a match is unique


def panoptic_stats(
    pairs: Overlaps,
    true_types_t: NDArray[np.integer] | None = None,
    pred_types_p: NDArray[np.integer] | None = None,
    n_classes: int = 0,
) -> NDArray[np.float64]:
    """Return TP, FP, FN and the sum of IoU of a tile, for all nuclei and for each class.

    Each class is evaluated as if there were no others, as in PanNuke: a nucleus that is found with the wrong type is a
    miss of its own class and a false positive of the other.

    Args:
        pairs: `ihc2he.nuclei.instances.overlaps` of the true and the predicted instance map.
        true_types_t: type of each true nucleus, from 1; 0 belongs to no class.
        pred_types_p: type of each predicted nucleus.
        n_classes: number of classes.

    Returns:
        (C + 1, 4), row 0 for all nuclei, row c for class c; columns TP, FP, FN, sum of IoU over TP.

    Raises:
        ValueError: if there is not exactly one type in [0, C] for each nucleus.

    >>> from ihc2he.nuclei.instances import overlaps
    >>> true, pred = np.array([[1, 1, 1, 0, 2]]), np.array([[7, 7, 7, 7, 0]])
    >>> panoptic_stats(overlaps(true, pred)).tolist()
    [[1.0, 0.0, 1.0, 0.75]]
    """
    true_types_t = _checked_types(true_types_t, len(pairs.true_ids_t), n_classes)
    pred_types_p = _checked_types(pred_types_p, len(pairs.pred_ids_p), n_classes)
    matched = pairs.iou_e > _MATCH_IOU
    true_e, pred_e, iou_e = pairs.true_e[matched], pairs.pred_e[matched], pairs.iou_e[matched]
    agreed = true_types_t[true_e] == pred_types_p[pred_e]
    kind_e = true_types_t[true_e][agreed]
    stats_cs = np.zeros((n_classes + 1, 4))
    stats_cs[:, 0] = np.bincount(kind_e, minlength=n_classes + 1)
    stats_cs[:, 1] = np.bincount(pred_types_p, minlength=n_classes + 1) - stats_cs[:, 0]
    stats_cs[:, 2] = np.bincount(true_types_t, minlength=n_classes + 1) - stats_cs[:, 0]
    stats_cs[:, 3] = np.bincount(kind_e, iou_e[agreed], n_classes + 1)
    tp = len(iou_e)
    stats_cs[0] = tp, len(pred_types_p) - tp, len(true_types_t) - tp, iou_e.sum()
    return stats_cs


def _checked_types(types_n: NDArray[np.integer] | None, n: int, n_classes: int) -> NDArray[np.integer]:
    if types_n is None:
        return np.zeros(n, np.int64)
    if len(types_n) != n or (n and not 0 <= types_n.min() <= types_n.max() <= n_classes):
        msg = (
            f"Expected a type from 0 to {n_classes} for each of {n} nuclei, found {len(types_n)}: {np.unique(types_n)}."
        )
        raise ValueError(msg)
    return types_n


def qualities(stats_s: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return DQ, SQ and PQ of statistics of any shape (..., 4); NaN if there is no truth and no prediction.

    Unlike the published code, SQ divides by TP, not by TP + 1e-6.

    Args:
        stats_s: TP, FP, FN, sum of IoU.

    >>> [round(float(value), 3) for value in qualities(np.array([1, 0, 1, 0.75]))]
    [0.667, 0.75, 0.5]
    """
    tp, fp, fn, iou = np.moveaxis(np.asarray(stats_s, np.float64), -1, 0)
    with np.errstate(invalid="ignore"):
        size = tp + (fp + fn) / 2
        dq, pq = tp / size, iou / size
        sq = np.where(size > 0, iou / np.maximum(tp, 1), np.nan)
    return dq, sq, pq


def panoptic_quality(
    stats_ncs: NDArray[np.floating],
    tissues: Sequence[str],
    classes: Sequence[str],
    aggregate: str = "tissue",
    empty_gt: str = "skip",
) -> dict[str, float]:
    """Return bPQ, mPQ, DQ, SQ, PQ of each class, and bPQ and mPQ of each tissue.

    The defaults are PanNuke's official protocol (Gamper et al. 2020): a tile's mPQ is the mean over the classes in its
    truth, a tissue's value the mean over its tiles, the result the mean over tissues; a class's PQ is the mean over
    tiles. DQ and SQ, of all nuclei, are averaged like bPQ.

    Args:
        stats_ncs: (N, C + 1, 4), `panoptic_stats` of every tile.
        tissues: of every tile, an empty string for none.
        classes: names of the C classes.
        aggregate: `tissue`; `image`, the mean over tiles; or `dataset`, which adds up the counts of all tiles first,
            as CoNIC's mPQ+ does.
        empty_gt: the value of a tile without true nuclei (of a class). `skip`: none, it does not count; `zero`: 0;
            `one`: 1 if nothing was predicted, otherwise 0. Not used for `dataset`.

    Returns:
        `bpq`, `mpq`, `dq`, `sq`, `pq/<class>`, `bpq/<tissue>`, `mpq/<tissue>`; NaN if not defined.

    Raises:
        ConfigError: if `aggregate` or `empty_gt` is unknown.
        ValueError: if the lengths differ.

    >>> stats_ncs = np.array([[[1, 0, 1, 0.75], [1, 0, 0, 0.75], [0, 0, 1, 0]]])
    >>> panoptic_quality(stats_ncs, [""], ["a", "b"])
    {'bpq': 0.5, 'mpq': 0.375, 'dq': 0.6666666666666666, 'sq': 0.75, 'pq/a': 0.75, 'pq/b': 0.0}
    """
    check_protocol(aggregate, empty_gt)
    stats_ncs = np.asarray(stats_ncs, np.float64)
    if stats_ncs.shape != (len(tissues), len(classes) + 1, 4):
        expected = (len(tissues), len(classes) + 1, 4)
        msg = f"Expected statistics of shape {expected} for these tissues and classes, found {stats_ncs.shape}."
        raise ValueError(msg)
    tissue_n = np.asarray(tissues, np.str_)
    result, pq_c = _summary(stats_ncs, aggregate, empty_gt)
    by_tissue = {str(t): _summary(stats_ncs[tissue_n == t], aggregate, empty_gt)[0] for t in np.unique(tissue_n)}
    if aggregate == "tissue":
        result = {key: float(_mean(np.array([part[key] for part in by_tissue.values()]))) for key in result}
    result |= {f"pq/{name}": float(pq) for name, pq in zip(classes, pq_c, strict=True)}
    return result | {f"{key}/{t}": part[key] for key in ("bpq", "mpq") for t, part in by_tissue.items() if t}


def check_protocol(aggregate: str, empty_gt: str) -> None:
    """Check that both names are known.

    Raises:
        ConfigError: if one is not; the message has the nearest known name.
    """
    for key, value, known in (("aggregate", aggregate, AGGREGATES), ("empty_gt", empty_gt, EMPTY_GT)):
        if value not in known:
            msg = f"{key}={value} is unknown.{did_you_mean(value, known)}"
            raise ConfigError(msg)


def _summary(stats_ncs: NDArray[np.floating], aggregate: str, empty_gt: str) -> tuple[dict[str, float], NDArray]:
    """Return the means over tiles (or the values of all tiles taken together) for all nuclei, and PQ of each class."""
    if aggregate == "dataset":
        dq_nc, sq_nc, pq_nc = qualities(stats_ncs.sum(0, keepdims=True))
    else:
        fp_nc, empty_nc = stats_ncs[..., 1], stats_ncs[..., 0] + stats_ncs[..., 2] == 0
        instead_nc = {"skip": np.nan, "zero": 0.0, "one": (fp_nc == 0).astype(np.float64)}[empty_gt]
        dq_nc, sq_nc, pq_nc = (np.where(empty_nc, instead_nc, value_nc) for value_nc in qualities(stats_ncs))
    tiles = {"bpq": pq_nc[:, 0], "mpq": _mean(pq_nc[:, 1:], 1), "dq": dq_nc[:, 0], "sq": sq_nc[:, 0]}
    return {key: float(_mean(values_n)) for key, values_n in tiles.items()}, _mean(pq_nc[:, 1:], 0)


def _mean(values: NDArray[np.float64], axis: int | None = None) -> NDArray[np.float64]:
    """Return the mean of all values that are not NaN; NaN if there are none."""
    seen = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(seen, values, 0).sum(axis) / seen.sum(axis)


class PanopticQuality(Metric):
    """`panoptic_quality` over all tiles on all devices.

    Args:
        classes: names of the classes, from type 1 upwards.
        aggregate: `tissue`, `image` or `dataset`.
        empty_gt: `skip`, `zero` or `one`.

    Raises:
        ConfigError: if `aggregate` or `empty_gt` is unknown.

    >>> metric = PanopticQuality(["a"])
    >>> metric.update(np.array([[[1, 0, 1, 0.75], [1, 0, 0, 0.75]]]), ["Breast"])
    >>> {key: round(value.item(), 2) for key, value in metric.compute().items()}
    {'bpq': 0.5, 'mpq': 0.75, 'dq': 0.67, 'sq': 0.75, 'pq/a': 0.75, 'bpq/Breast': 0.5, 'mpq/Breast': 0.75}
    """

    full_state_update = False
    stats: list[Tensor]
    tissue_rows: list[Tensor]

    def __init__(
        self, classes: Sequence[str], aggregate: str = "tissue", empty_gt: str = "skip", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_protocol(aggregate, empty_gt)
        self.classes = tuple(classes)
        self.aggregate = aggregate
        self.empty_gt = empty_gt
        self.add_state("stats", [], dist_reduce_fx="cat")  # (N, C + 1, 4) float32
        self.add_state("tissue_rows", [], dist_reduce_fx="cat")  # (N, k) uint8

    @property
    def cards(self) -> dict[str, Card]:
        """The name cards by metric; they state the protocol."""
        return panoptic_cards(self.aggregate, self.empty_gt)

    def update(self, stats_ncs: NDArray[np.floating], tissues: Sequence[str]) -> None:
        """Add tiles.

        Args:
            stats_ncs: (N, C + 1, 4), `panoptic_stats` of each.
            tissues: of each, an empty string for none.
        """
        self.stats.append(torch.as_tensor(stats_ncs, dtype=torch.float32, device=self.device))
        rows = [encode_key("", tissue) for tissue in tissues]
        self.tissue_rows.append(torch.tensor(rows, dtype=torch.uint8, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the float32 values of `panoptic_quality`; none if there were no tiles."""
        if not sum(len(part) for part in self.stats):
            return {}
        tissues = [decode_key(row)[1] for row in dim_zero_cat(self.tissue_rows).tolist()]
        stats_ncs = dim_zero_cat(self.stats).cpu().double().numpy()
        values = panoptic_quality(stats_ncs, tissues, self.classes, self.aggregate, self.empty_gt)
        return {key: torch.tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the tiles of all devices; a device without tiles adds no rows."""
        if isinstance(self.stats, list) and not self.stats:
            # Without these rows torchmetrics would send a float vector, which does not match the others.
            self.stats = [torch.empty(0, len(self.classes) + 1, 4, device=self.device)]
            width = len(encode_key("", ""))
            self.tissue_rows = [torch.empty(0, width, dtype=torch.uint8, device=self.device)]
        super().sync(*args, **kwargs)


def panoptic_cards(aggregate: str = "tissue", empty_gt: str = "skip") -> dict[str, Card]:
    """Return the name cards of all metrics in this module; they state the protocol.

    Args:
        aggregate: as for `panoptic_quality`.
        empty_gt: as for `panoptic_quality`.
    """
    over = {"tissue": "mean over tissues of means over tiles", "image": "mean over tiles", "dataset": "pooled counts"}
    empty = "" if aggregate == "dataset" else f"; empty truth: {empty_gt}"
    per_class = over["image" if aggregate == "tissue" else aggregate]
    protocols = {
        "bpq": ("bPQ", f"IoU > 0.5, all nuclei, {over[aggregate]}{empty}"),
        "mpq": ("mPQ", f"IoU > 0.5, mean over classes, {over[aggregate]}{empty}"),
        "dq": ("DQ", f"IoU > 0.5, all nuclei, {over[aggregate]}{empty}"),
        "sq": ("SQ", f"IoU > 0.5, all nuclei, {over[aggregate]}{empty}"),
        "pq": ("PQ", f"IoU > 0.5, one class, {per_class}{empty}"),
        "aji": ("AJI", "Kumar 2017, mean over tiles"),
        "aji_plus": ("AJI+", "Graham 2019, one-to-one by greatest total IoU, mean over tiles"),
        "dice": ("Dice", "pixels of nuclei and background, mean over tiles"),
    }
    return {name: Card(name, title, True, "0 to 1", 1, text) for name, (title, text) in protocols.items()}


def aji(pairs: Overlaps) -> float:
    """Return the aggregated Jaccard index of a tile (Kumar et al. 2017); NaN if both maps are empty.

    Each true nucleus takes the prediction with the highest IoU; several nuclei may take the same one. Predictions that
    no nucleus takes are added to the union.

    >>> from ihc2he.nuclei.instances import overlaps
    >>> aji(overlaps(np.array([[1, 1, 2, 2]]), np.array([[1, 1, 2, 0]])))
    0.75
    """
    iou_e = _published_iou(pairs)
    order = np.lexsort((pairs.pred_e, -iou_e, pairs.true_e))
    first = np.diff(pairs.true_e[order], prepend=-1) > 0
    return _aggregated_jaccard(pairs, order[first])


def aji_plus(pairs: Overlaps) -> float:
    """Return AJI with one-to-one pairs of greatest total IoU (Graham et al. 2019); NaN if both maps are empty.

    >>> from ihc2he.nuclei.instances import overlaps
    >>> aji_plus(overlaps(np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 1]])))
    0.3333333333333333
    """
    return _aggregated_jaccard(pairs, one_to_one(pairs.true_e, pairs.pred_e, _published_iou(pairs)))


def _published_iou(pairs: Overlaps) -> NDArray[np.float64]:
    """Return IoU with the published 1e-6 in the denominator, which decides between pairs with equal IoU."""
    union_e = pairs.true_areas_t[pairs.true_e] + pairs.pred_areas_p[pairs.pred_e] - pairs.areas_e
    return pairs.areas_e / (union_e + 1e-6)


def _aggregated_jaccard(pairs: Overlaps, taken_e: NDArray[np.intp]) -> float:
    """Return intersection over union, each summed over the pairs; nuclei without a pair are added to the union."""
    true_e, pred_e = pairs.true_e[taken_e], pairs.pred_e[taken_e]
    intersection = pairs.areas_e[taken_e].sum()
    union = pairs.true_areas_t[true_e].sum() + pairs.pred_areas_p[pred_e].sum() - intersection
    union += np.delete(pairs.true_areas_t, true_e).sum() + np.delete(pairs.pred_areas_p, pred_e).sum()
    return float(intersection / union) if union else float("nan")


def dice(pairs: Overlaps) -> float:
    """Return the Dice coefficient of the foregrounds of a tile; NaN if both maps are empty.

    >>> from ihc2he.nuclei.instances import overlaps
    >>> dice(overlaps(np.array([[1, 1, 2, 0]]), np.array([[0, 5, 5, 5]])))
    0.6666666666666666
    """
    total = pairs.true_areas_t.sum() + pairs.pred_areas_p.sum()
    return float(2 * pairs.areas_e.sum() / total) if total else float("nan")
