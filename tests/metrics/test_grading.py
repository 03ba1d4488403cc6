import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
)

from ihc2he.metrics.bootstrap import draw, intervals
from ihc2he.metrics.grading import BINS, count, grading


@pytest.fixture
def graded():
    rng = np.random.default_rng(0)
    label_n = rng.integers(0, 4, 60)
    logit_nk = rng.normal(0, 1, (60, 4)) + 1.5 * np.eye(4)[label_n]
    return torch.tensor(logit_nk).softmax(1).numpy(), label_n


def test_values_are_those_of_torchmetrics(graded):
    prob_nk, label_n = graded
    found = grading(count(prob_nk, label_n, [str(i) for i in range(60)]).total())
    prob, label = torch.tensor(prob_nk), torch.tensor(label_n)
    options = {"num_classes": 4}
    assert found["accuracy"] == pytest.approx(multiclass_accuracy(prob, label, average="micro", **options).item())
    assert found["balanced_accuracy"] == pytest.approx(multiclass_accuracy(prob, label, **options).item())
    assert found["kappa"] == pytest.approx(multiclass_cohen_kappa(prob, label, weights="quadratic", **options).item())
    ece = multiclass_calibration_error(prob, label, n_bins=BINS, **options).item()
    assert found["ece"] == pytest.approx(ece, abs=1e-6)
    recall_k = multiclass_accuracy(prob, label, average="none", **options)
    assert [found[f"recall/{k}"] for k in range(4)] == pytest.approx(recall_k.tolist())


def test_a_class_without_tiles_does_not_count():
    found = grading({"confusion": np.diag([3, 0, 2]), "bins": np.zeros((BINS, 3))})
    assert found["balanced_accuracy"] == 1
    assert np.isnan(found["recall/1"])


def test_intervals_over_cases_are_wider_than_over_tiles(graded):
    prob_nk, label_n = graded
    names = [f"{i:02d}" for i in range(60)]
    right = prob_nk.argmax(1) == label_n
    cases = {name: f"{int(ok)}{i % 3}" for i, (name, ok) in enumerate(zip(names, right, strict=True))}  # all or nothing
    counts = count(prob_nk, label_n, names)
    over = {unit: intervals(counts, grading, draw(units))["accuracy"] for unit, units in
            (("case", cases), ("tile", dict(zip(names, names, strict=True))))}  # fmt: skip
    assert over["case"].value == over["tile"].value == pytest.approx(right.mean())
    assert over["case"].high - over["case"].low > 1.5 * (over["tile"].high - over["tile"].low)
