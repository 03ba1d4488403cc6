"""Detection and classification of nuclei by their centres, with the protocol of HoVer-Net.

Shape suffixes: t, p = true and predicted nuclei; m = matches; 2 = (x, y); c = 0 for no match, then classes, then
unknown type.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ihc2he.metrics.cards import Card
from ihc2he.metrics.ratios import detection_ratios, hovernet_f1, ratio
from ihc2he.nuclei.matching import match_points

RADIUS_UM = 3.0  # 12 px at 0.25 um/px

_TEXT = "centres one-to-one within 3 um, counts pooled over tiles"
_ALL = (
    Card("f1", "Detection F1", True, "0 to 1", 1, f"{_TEXT}; per class: a wrong type counts twice (HoVer-Net)"),
    Card("precision", "Detection precision", True, "0 to 1", 1, _TEXT),
    Card("recall", "Detection recall", True, "0 to 1", 1, _TEXT),
    Card("type_accuracy", "Type accuracy", True, "0 to 1", 1, f"share of correct types among matches; {_TEXT}"),
)
CARDS: dict[str, Card] = {card.name: card for card in _ALL}


def confusion(
    true_t2: NDArray[np.number],
    pred_p2: NDArray[np.number],
    mpp: float,
    true_types_t: NDArray[np.integer] | None = None,
    pred_types_p: NDArray[np.integer] | None = None,
    n_classes: int = 1,
) -> NDArray[np.int64]:
    """Return the confusion matrix of a tile's nuclei, matched one-to-one within 3 um.

    The number of matches is as large as possible, see `ihc2he.nuclei.matching.match_points`.

    Args:
        true_t2: (T, 2) centres in px.
        pred_p2: (P, 2) centres in px.
        mpp: pixel size, um/px.
        true_types_t: type of each true nucleus, from 1, 0 = unknown; None = all 1.
        pred_types_p: type of each predicted nucleus, likewise.
        n_classes: number of classes.

    Returns:
        (C + 2, C + 2): row = true type, column = predicted type; row 0 counts predictions without a match, column 0
        true nuclei without a match, the last row and column nuclei of unknown type.

    Raises:
        ValueError: if there is not exactly one type in [0, C] for each nucleus.

    >>> confusion(np.array([[10, 10], [40, 40]]), np.array([[10, 19]]), mpp=0.25).tolist()
    [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    """
    true_types_t = _checked_types(true_types_t, len(true_t2), n_classes)
    pred_types_p = _checked_types(pred_types_p, len(pred_p2), n_classes)
    true_m, pred_m = match_points(true_t2, pred_p2, RADIUS_UM / mpp)
    matrix_cc = np.zeros((n_classes + 2, n_classes + 2), np.int64)
    np.add.at(matrix_cc, (true_types_t[true_m], pred_types_p[pred_m]), 1)
    matrix_cc[0] = np.bincount(np.delete(pred_types_p, pred_m), minlength=n_classes + 2)
    matrix_cc[:, 0] = np.bincount(np.delete(true_types_t, true_m), minlength=n_classes + 2)
    return matrix_cc


def _checked_types(types_n: NDArray[np.integer] | None, n: int, n_classes: int) -> NDArray[np.integer]:
    """Return the types with the unknown one, 0, as C + 1."""
    if types_n is None:
        return np.ones(n, np.int64)
    if len(types_n) != n or (n and not 0 <= types_n.min() <= types_n.max() <= n_classes):
        msg = (
            f"Expected a type from 0 to {n_classes} for each of {n} nuclei, found {len(types_n)}: {np.unique(types_n)}."
        )
        raise ValueError(msg)
    return np.where(types_n == 0, n_classes + 1, types_n)


def detection_scores(matrix_cc: NDArray[np.integer], classes: Sequence[str]) -> dict[str, float]:
    """Return precision, recall and F1 of detection, the accuracy of types among matches, and F1 of each class.

    The F1 of a class is HoVer-Net's (Graham et al. 2019, section 4.1.2): a match with the wrong type counts twice, as a
    false positive of one class and a miss of the other. Nuclei without a match count once. A true nucleus of unknown
    type counts only for detection; a predicted nucleus of unknown type counts as wrong.

    Args:
        matrix_cc: sum of `confusion` over tiles.
        classes: names of the C classes.

    Returns:
        `precision`, `recall`, `f1`, `type_accuracy`, `f1/<class>`; NaN for 0/0.

    >>> scores = detection_scores(np.array([[0, 1, 0, 0], [1, 2, 1, 0], [0, 0, 3, 0], [0, 0, 0, 0]]), ["a", "b"])
    >>> {key: round(value, 3) for key, value in scores.items()}
    {'precision': 0.857, 'recall': 0.857, 'f1': 0.857, 'type_accuracy': 0.833, 'f1/a': 0.5, 'f1/b': 0.75}
    """
    tp, fp, fn = matrix_cc[1:, 1:].sum(), matrix_cc[0].sum(), matrix_cc[:, 0].sum()
    typed_cc = matrix_cc[1:-1, 1:]  # matches of true nuclei whose type is known
    right_c = np.diag(typed_cc)
    wrong_c = typed_cc.sum(0)[:-1] + typed_cc.sum(1) - 2 * right_c
    alone_c = matrix_cc[0, 1:-1] + matrix_cc[1:-1, 0]
    scores = detection_ratios(tp, tp + fp, tp + fn)
    scores["type_accuracy"] = ratio(right_c.sum(), typed_cc.sum())
    scores |= {f"f1/{name}": f1 for name, f1 in zip(classes, hovernet_f1(right_c, wrong_c, alone_c), strict=True)}
    return {key: float(value) for key, value in scores.items()}


class Detection(Metric):
    """`detection_scores` over all tiles on all devices.

    Args:
        classes: names of the classes, from type 1 upwards.

    Attributes:
        matrix_cc: the confusion matrix so far.

    >>> metric = Detection(["nucleus"])
    >>> metric.update(confusion(np.array([[10, 10], [40, 40]]), np.array([[10, 19]]), mpp=0.25))
    >>> {key: round(value.item(), 3) for key, value in metric.compute().items()}
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.667, 'type_accuracy': 1.0, 'f1/nucleus': 0.667}
    """

    full_state_update = False
    cards = CARDS
    matrix_cc: Tensor

    def __init__(self, classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = tuple(classes)
        side = len(self.classes) + 2
        self.add_state("matrix_cc", torch.zeros(side, side, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, matrix_cc: NDArray[np.integer]) -> None:
        """Add the `confusion` of a tile."""
        self.matrix_cc += torch.as_tensor(matrix_cc, device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the float32 values of `detection_scores`."""
        scores = detection_scores(self.matrix_cc.cpu().numpy(), self.classes)
        return {key: torch.tensor(value, dtype=torch.float32, device=self.device) for key, value in scores.items()}
