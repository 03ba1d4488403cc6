"""The content losses against their formulas in NumPy, and what they do at the ends of their ranges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.losses.content import nuclear_loss, segmentation_loss

RUIFROK = {"hematoxylin": (0.650, 0.704, 0.286), "eosin": (0.072, 0.990, 0.105), "dab": (0.268, 0.570, 0.776)}


def unit(stain):
    return np.array(RUIFROK[stain]) / np.linalg.norm(RUIFROK[stain])


def concentrations(x_chw, first, second):
    """Return the densities of two stains and what is orthogonal to both, by solving for them pixel by pixel."""
    od_cn = -np.log10(np.clip((x_chw.astype(np.float64) + 1) / 2, 1 / 255, 1)).reshape(3, -1)
    rest = np.cross(unit(first), unit(second))
    return np.linalg.solve(np.stack([unit(first), unit(second), rest / np.linalg.norm(rest)], 1), od_cn)


def expected_loss(ihc, he, dab):
    losses = []
    for ihc_chw, he_chw in zip(ihc, he, strict=True):
        h_n, dab_n, _ = concentrations(ihc_chw, "hematoxylin", "dab")
        a_n, b_n = h_n + dab * dab_n, concentrations(he_chw, "hematoxylin", "eosin")[0]
        covariance = ((a_n - a_n.mean()) * (b_n - b_n.mean())).mean()
        losses.append(1 - covariance / np.sqrt((a_n.var() + 1e-4) * (b_n.var() + 1e-4)))
    return np.mean(losses)


def paint(**densities_bhw):
    od_bchw = sum(
        density_bhw[:, None] * torch.tensor(unit(stain)).view(1, 3, 1, 1)
        for stain, density_bhw in densities_bhw.items()
    )
    return (2 * 10**-od_bchw - 1).float()


@pytest.fixture
def images():
    return torch.rand(2, 2, 3, 7, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def density():
    return 0.6 * torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dab", [0.0, 0.5, 1.0])
def test_the_nuclear_loss_is_its_formula(images, dab):
    loss = nuclear_loss(*images, dab)
    assert loss.item() == pytest.approx(expected_loss(*images.numpy(), dab), abs=1e-5)
    assert loss.shape == ()


def test_strength_of_the_stains_does_not_matter_and_order_does(density):
    other = density.flip(2)
    ihc = paint(hematoxylin=density, dab=other)
    both = (density + other) / 3
    assert nuclear_loss(ihc, paint(hematoxylin=both, eosin=density.flip(1))) < 0.02
    assert nuclear_loss(ihc, paint(hematoxylin=0.8 - both)) > 1.95
    # With a marker of membranes, hematoxylin alone says where nuclei are.
    assert nuclear_loss(ihc, paint(hematoxylin=density / 2), dab=0) < 0.02
    assert nuclear_loss(ihc, paint(hematoxylin=density / 2), dab=1) > 0.1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0]))
def test_any_images_have_a_loss_from_0_to_2_and_finite_gradients(seed, dab):
    drawn = torch.rand(2, 1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    ihc, he = (4 * drawn - 2).clamp(-1, 1).requires_grad_().unbind()  # with black and white pixels
    loss = nuclear_loss(ihc, he, dab)
    gradients = torch.autograd.grad(loss, [ihc, he])
    assert -1e-5 <= loss.item() <= 2 + 1e-5
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_empty_glass_asks_for_nothing(density):
    """The noise of glass must not be copied: its gradient is far below that of tissue."""
    made = paint(hematoxylin=density, eosin=density.flip(1)).requires_grad_()
    noise = 1 - 0.01 * torch.rand(2, 3, 16, 16)
    sizes = []
    for source in (paint(hematoxylin=density.flip(2)), noise):
        (gradient,) = torch.autograd.grad(nuclear_loss(source, made), made)
        sizes.append(gradient.norm())
    assert sizes[1] < 0.2 * sizes[0]
    blank = torch.ones(2, 3, 16, 16)
    assert nuclear_loss(blank, made.detach()).item() == 1


def test_descent_leads_to_the_nuclei_of_the_source(density):
    source = paint(hematoxylin=density, dab=density.flip(2) / 2)
    made = paint(hematoxylin=density.flip(1), eosin=density).requires_grad_()
    losses = []
    for _ in range(20):
        loss = nuclear_loss(source, made)
        (gradient,) = torch.autograd.grad(loss, made)
        made = (made - 30 * gradient).clamp(-1, 1).detach().requires_grad_()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_half_precision_around_it_changes_nothing(images):
    with torch.autocast("cpu", torch.bfloat16):
        loss = nuclear_loss(*images)
    assert torch.equal(loss, nuclear_loss(*images))
    low = nuclear_loss(images[0].bfloat16(), images[1])
    assert low.dtype == torch.float32


def test_the_segmentation_loss_counts_each_map_once():
    rng = np.random.default_rng(0)
    shapes = {"mask": (2, 1, 4, 5), "types": (2, 6, 4, 5)}
    one, other = ({name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(2))
    expected = np.mean([np.abs(one[name] - other[name]).mean() for name in shapes])
    made, own = ({name: torch.tensor(value) for name, value in maps.items()} for maps in (one, other))
    assert segmentation_loss(made, own).item() == pytest.approx(expected, rel=1e-6)
    assert segmentation_loss(own, own) == 0
    half = {name: value.bfloat16() for name, value in made.items()}
    assert segmentation_loss(half, own).dtype == torch.float32
