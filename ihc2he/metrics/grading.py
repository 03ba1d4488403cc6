"""How well tiles are graded: values of a confusion matrix and of calibration, as functions of sums over tiles.

So they have bootstrap intervals (`metrics.bootstrap`). Any leading axes are allowed, for instance resamples.

Shape suffixes: n = tiles; t = true classes, p = predicted ones; k = bins; 3 = confidence, correct, count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.metrics.bootstrap import Counts

BINS = 10  # of the confidence, for calibration


def count(prob_np: NDArray[np.floating], label_n: NDArray[np.integer], names: Sequence[str]) -> Counts:
    """Return what each tile adds to the sums.

    Args:
        prob_np: probability of each class.
        label_n: the true classes.
        names: of the tiles, sorted.
    """
    n, n_classes = prob_np.shape
    confusion_ntp = np.zeros((n, n_classes, n_classes))
    found_n = prob_np.argmax(1)
    confusion_ntp[np.arange(n), label_n, found_n] = 1
    bins_nk3 = np.zeros((n, BINS, 3))
    confidence_n = prob_np.max(1)
    bin_n = np.minimum((confidence_n * BINS).astype(int), BINS - 1)
    bins_nk3[np.arange(n), bin_n] = np.stack([confidence_n, found_n == label_n, np.ones(n)], -1)
    return Counts(tuple(names), {"confusion": confusion_ntp, "bins": bins_nk3})


def count_rows(rows: Sequence[Mapping[str, Any]]) -> Counts:
    """Return what each tile adds to the sums, from the rows of `results.csv`.

    Args:
        rows: of one tile at least, with `name`, `group` (the true class) and `p CLASS` for each class, numbers or text.
    """
    rows = sorted(rows, key=lambda row: str(row["name"]))
    classes = [column.removeprefix("p ") for column in rows[0] if column.startswith("p ")]
    prob_np = np.array([[float(row[f"p {kind}"]) for kind in classes] for row in rows])
    label_n = np.array([classes.index(row["group"]) for row in rows])
    return count(prob_np, label_n, [str(row["name"]) for row in rows])


def grading(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return accuracy, balanced accuracy, quadratic kappa, calibration error and the recall of each class, by number.

    Balanced accuracy is the mean recall of the classes that there are. Kappa is Cohen's with quadratic weights, NaN
    where all tiles are of one class and found to be. A recall is NaN where there is no tile of the class.

    Args:
        sums: `confusion` (..., T, P) and `bins` (..., K, 3).

    >>> sums = {"confusion": np.array([[2, 0], [1, 1]]), "bins": np.array([[3.2, 3, 4]])}
    >>> {name: round(float(value), 2) for name, value in grading(sums).items()}
    {'accuracy': 0.75, 'balanced_accuracy': 0.75, 'kappa': 0.5, 'ece': 0.05, 'recall/0': 1.0, 'recall/1': 0.5}
    """
    confusion, bins = np.asarray(sums["confusion"], np.float64), np.asarray(sums["bins"], np.float64)
    total, right = confusion.sum((-1, -2)), np.einsum("...tt->...", confusion)
    true, found = confusion.sum(-1), confusion.sum(-2)
    n_classes = confusion.shape[-1]
    distance = (np.arange(n_classes)[:, None] - np.arange(n_classes)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.einsum("...tt->...t", confusion) / true
        observed = (confusion * distance).sum((-1, -2))
        expected = (true[..., :, None] * found[..., None, :] * distance).sum((-1, -2)) / total
        values = {
            "accuracy": right / total,
            "balanced_accuracy": np.nansum(recall, -1) / (true > 0).sum(-1),
            "kappa": 1 - observed / expected,
            "ece": np.abs(bins[..., 0] - bins[..., 1]).sum(-1) / total,
        }
    return values | {f"recall/{i}": recall[..., i] for i in range(n_classes)}
