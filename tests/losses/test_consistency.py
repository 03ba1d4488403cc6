"""The student's loss against formulas written out pixel by pixel."""

from math import exp, log

import pytest
import torch

from ihc2he.losses.consistency import clear, consistency_losses, ramp


def cross_entropy(logit, target):
    p = 1 / (1 + exp(-logit))
    return -(target * log(p) + (1 - target) * log(1 - p))


def test_only_what_the_teacher_is_sure_of_counts():
    p, heat = [0.97, 0.6, 0.04, 0.90], [0.8, 0.3, 0.0, 0.5]
    mask, centre = [0.7, -1.0, 0.4, 2.0], [0.2, 1.5, -0.6, 0.1]
    teacher_bkhw = torch.tensor([p, heat]).view(1, 2, 2, 2)
    maps = {"mask": torch.tensor(mask).view(1, 1, 2, 2), "centre": torch.tensor(centre).view(1, 1, 2, 2)}
    losses = consistency_losses(maps, teacher_bkhw, 0.9)
    sure = [cross_entropy(mask[0], 1), cross_entropy(mask[2], 0), cross_entropy(mask[3], 1)]  # 0.6 is not clear
    assert losses["mask"].item() == pytest.approx(sum(sure) / 4)
    weighted = [abs(2 * a - 1) * (1 + 4 * h) * cross_entropy(c, h) for a, h, c in zip(p, heat, centre, strict=True)]
    assert losses["centre"].item() == pytest.approx(2 * sum(weighted) / 4)
    assert losses.keys() == {"mask", "centre"}


def test_types_follow_the_teachers_probabilities_where_it_is_sure():
    logits, wanted = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.1, 0.2, 0.7])
    teacher_bkhw = torch.stack([torch.tensor([1.0, 0.5]), torch.zeros(2), *(w.expand(2) for w in wanted)])[
        None, :, None
    ]
    maps = {name: torch.zeros(1, 1, 1, 2) for name in ("mask", "centre")}
    maps["types"] = logits.view(1, 3, 1, 1).expand(1, 3, 1, 2)
    expected = -(wanted * logits.log_softmax(0)).sum() / 2  # one of two pixels
    torch.testing.assert_close(consistency_losses(maps, teacher_bkhw, 0.9)["types"], expected)


def test_an_unsure_teacher_teaches_nothing():
    maps = {name: torch.randn(1, 1, 4, 4, requires_grad=True) for name in ("mask", "centre")}
    losses = consistency_losses(maps, torch.full((1, 2, 4, 4), 0.5), 0.9)
    assert sum(losses.values()).item() == 0
    assert clear(torch.tensor([0.1, 0.11, 0.89, 0.9]), 0.9).tolist() == [1, 0, 0, 1]


def test_the_ramp_grows_to_1_and_stays():
    values = [ramp(step, 10) for step in range(15)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(exp(-5))
    assert set(values[10:]) == {1.0}
