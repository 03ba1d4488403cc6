"""What is measured of a classifier: torchmetrics, intervals over cases, and pictures.

Shape suffixes: b = batch, n = tiles, k = classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassCohenKappa,
    MulticlassConfusionMatrix,
)

from ihc2he.metrics.bootstrap import draw, intervals, units_of
from ihc2he.metrics.cards import Card
from ihc2he.metrics.grading import BINS, count_rows, grading
from ihc2he.ranks import from_all_ranks

CARDS = {
    card.name: card
    for card in (
        Card("balanced_accuracy", "Balanced accuracy", True, "0 to 1", 1, "mean recall of the classes that there are"),
        Card("accuracy", "Accuracy", True, "0 to 1", 1, "share of the tiles with the right class"),
        Card("kappa", "Quadratic kappa", True, "-1 to 1", 1, "Cohen's, classes in their order, quadratic weights"),
        Card("auroc", "AUROC", True, "0 to 1", 1, "each class against the others, mean of those that there are"),
        Card("recall", "Recall", True, "0 to 1", 1, "share of the tiles of a class that are found"),
        Card("ece", "Calibration error", False, "0 to 1", 1, f"expected, of the top class, {BINS} bins of equal width"),
        Card("loss", "Cross-entropy", False, "nats", 1, "without weights, smoothing and mixup"),
    )
}


class GradingEvaluation:
    """Collects the probabilities of a validation or test.

    Args:
        classes: their names, in order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        n = len(self.classes)
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(n, average="micro"),
                "recall": MulticlassAccuracy(n, average="none"),
                "kappa": MulticlassCohenKappa(n, weights="quadratic"),
                "auroc": MulticlassAUROC(n, average="none"),
                "ece": MulticlassCalibrationError(n, n_bins=BINS, norm="l1"),
                "confusion": MulticlassConfusionMatrix(n),
            },
            compute_groups=False,
        )
        self._losses: list[Tensor] = []
        self._rows: list[dict[str, Any]] = []

    def update(self, logits_bk: Tensor, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a row of results for each tile of a batch.

        Args:
            logits_bk: of the batch.
            batch: with `label`, `name` and `case`.
        """
        label_b = batch["label"]
        prob_bk = logits_bk.float().softmax(1)
        self.metrics.to(prob_bk.device).update(prob_bk, label_b)
        loss_b = torch.nn.functional.cross_entropy(logits_bk.float(), label_b, reduction="none")
        found_b = prob_bk.argmax(1)
        rows = []
        for i, (name, case) in enumerate(zip(batch["name"], batch["case"], strict=True)):
            true = int(label_b[i])
            rows.append(
                {
                    "name": name,
                    "group": self.classes[true],
                    "case": case,
                    "found": self.classes[int(found_b[i])],
                    "p_true": float(prob_bk[i, true]),
                    "loss": float(loss_b[i]),
                    **{f"p {kind}": float(value) for kind, value in zip(self.classes, prob_bk[i], strict=True)},
                }
            )
        self._rows += rows
        return rows

    def compute_and_reset(self) -> tuple[dict[str, float], Tensor, list[dict[str, Any]]]:
        """Return the metrics, the confusion matrix (true, found), and the rows of the tiles, of all ranks."""
        found = self.metrics.compute()
        self.metrics.reset()
        rows = sorted((row for part in from_all_ranks(self._rows) for row in part), key=lambda row: row["name"])
        self._rows = []
        there = found["confusion"].sum(1) > 0
        values = {
            "accuracy": float(found["accuracy"]),
            "balanced_accuracy": float(found["recall"][there].mean()),
            "kappa": float(found["kappa"]),
            "auroc": float(found["auroc"][there].mean()) if int(there.sum()) > 1 else float("nan"),
            "ece": float(found["ece"]),
            "loss": float(np.mean([row["loss"] for row in rows])),
        }
        for kind, recall, exists in zip(self.classes, found["recall"], there, strict=True):
            values[f"recall/{kind}"] = float(recall) if exists else float("nan")
        return values, found["confusion"].cpu(), rows

    def interval_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a row for each metric: its value and 95 % interval by bootstrap over cases, see `units_of`.

        Args:
            rows: of all tiles.
        """
        resampling = draw(units_of({row["name"]: row["case"] for row in rows}))
        unit = " or ".join(sorted({"case" if row["case"] else "tile" for row in rows}))
        found = intervals(count_rows(rows), grading, resampling)
        lines = []
        for key, (value, low, high) in found.items():
            metric, _, number = key.partition("/")
            kind = self.classes[int(number)] if number else ""
            line = {"metric": metric, "group": kind, "value": value, "low": low, "high": high}
            lines.append(line | {"unit": unit, "units": resampling.n_units, "tiles": len(rows)})
        return lines
