"""Precision, recall, density and coverage against cases made by hand, and against their definitions in loops."""

import math

import pytest
import torch

from ihc2he.metrics.manifold import CARDS, manifold


def looped(real, fake, k):
    """Kynkaanniemi 2019 (eq. 1) and Naeem 2020 (eqs. 3 to 6), as they are written."""

    def radius(x, i):
        return sorted(math.dist(x[i], other) for j, other in enumerate(x) if j != i)[k - 1]

    balls = {name: [(p, radius(x, i)) for i, p in enumerate(x)] for name, x in (("real", real), ("fake", fake))}

    def holds(name, point):
        return [math.dist(point, centre) <= r for centre, r in balls[name]]

    return {
        "precision": sum(any(holds("real", p)) for p in fake) / len(fake),
        "recall": sum(any(holds("fake", p)) for p in real) / len(real),
        "density": sum(sum(holds("real", p)) for p in fake) / (k * len(fake)),
        "coverage": sum(any(math.dist(p, c) <= r for p in fake) for c, r in balls["real"]) / len(real),
    }


def values(real, fake, k):
    return {name: value.item() for name, value in manifold(real, fake, k).items()}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_it_is_the_definition(k, shift):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(n, 3, generator=generator) for n in (17, 12))
    fake = 0.8 * fake + shift
    assert values(real, fake, k) == pytest.approx(looped(real.tolist(), fake.tolist(), k), rel=1e-6)


def test_copies_of_the_real_images_are_as_real_as_these():
    real = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    found = values(real, real, 5)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert found["density"] > 1  # each lies in its own ball too


def test_far_away_nothing_is_covered():
    real = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    assert set(values(real, real + 100, 5).values()) == {0}


def test_a_collapsed_set_is_precise_and_covers_little():
    real = torch.cat([torch.randn(30, 2, generator=torch.Generator().manual_seed(i)) + 50 * i for i in range(2)])
    found = values(real, real[:1] + torch.randn(60, 2, generator=torch.Generator().manual_seed(9)) * 1e-3, 5)
    assert found["precision"] == 1
    assert found["recall"] < 0.05
    assert found["coverage"] < 0.3


def test_an_outlier_of_the_real_images_raises_precision_but_not_density():
    """What density was made for (Naeem 2020, figure 3): one far real image has a ball that reaches everywhere."""
    real = torch.cat([torch.randn(60, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[30.0, 0.0]])])
    fake = torch.randn(60, 2, generator=torch.Generator().manual_seed(1)) + torch.tensor([15.0, 0.0])
    found = values(real, fake, 5)
    assert found["precision"] == 1
    assert found["density"] == pytest.approx(1 / 5)


def test_too_few_images_are_not_judged():
    x = torch.randn(5, 3)
    assert all(math.isnan(value) for value in values(x, x, 5).values())
    assert values(torch.randn(6, 3), torch.randn(6, 3), 5).keys() == CARDS.keys()
