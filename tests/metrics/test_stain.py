import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.metrics.stain import CARDS, stain_change
from ihc2he.stain.deconvolution import DAB, EOSIN, HEMATOXYLIN


def paint(**densities_bhw):
    """Return images in [-1, 1] that hold these densities of the stains."""
    vectors = {"hematoxylin": HEMATOXYLIN, "eosin": EOSIN, "dab": DAB}
    od_bchw = 0
    for stain, density_bhw in densities_bhw.items():
        unit_c = torch.tensor(vectors[stain]) / np.linalg.norm(vectors[stain])
        od_bchw = od_bchw + density_bhw[:, None] * unit_c.view(1, 3, 1, 1)
    return 2 * 10**-od_bchw - 1


@pytest.fixture
def density():
    return 0.6 * torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_translation_that_keeps_nuclei_and_removes_brown(density):
    brown = density.flip(1)
    ihc = paint(hematoxylin=density, dab=brown)
    change = stain_change(ihc, paint(hematoxylin=density, eosin=torch.full_like(density, 0.3)), "he")
    assert change["hematoxylin_correlation"] == pytest.approx([1, 1], abs=1e-3)
    assert change["dab_ratio"] == pytest.approx([0, 0], abs=1e-3)
    half = stain_change(ihc, paint(hematoxylin=density, dab=brown / 2), "he")
    assert half["dab_ratio"] == pytest.approx([0.5, 0.5], abs=1e-3)


def test_swapped_nuclei_and_background_are_negative(density):
    change = stain_change(paint(hematoxylin=density), paint(hematoxylin=0.7 - density), "he")
    assert change["hematoxylin_correlation"] == pytest.approx([-1, -1], abs=1e-3)


def test_brown_nuclei_count_as_nuclei(density):
    # In IHC a nucleus may be brown, blue or both; its H&E shows hematoxylin for all of them.
    other = density.flip(2)
    change = stain_change(paint(hematoxylin=density, dab=other), paint(hematoxylin=(density + other) / 2), "he")
    assert change["nuclear_correlation"] == pytest.approx([1, 1], abs=1e-3)
    assert (change["hematoxylin_correlation"] < 0.95).all()


def test_both_directions_read_each_image_by_its_own_stains(density):
    ihc, he = paint(hematoxylin=density, dab=density.flip(1)), paint(hematoxylin=density, eosin=density.flip(2))
    to_he, to_ihc = stain_change(ihc, he, "he"), stain_change(he, ihc, "ihc")
    assert set(to_he) == set(CARDS)
    assert set(to_ihc) == set(CARDS) - {"dab_ratio"}
    for name, value in to_ihc.items():
        assert torch.equal(value, to_he[name])


def test_what_is_not_defined_is_nan(density):
    blank = torch.ones(2, 3, 8, 8)
    change = stain_change(blank, paint(hematoxylin=density), "he")
    assert all(math.isnan(value) for values in change.values() for value in values)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_ranges_hold_for_any_images(seed):
    source, made = torch.rand(2, 3, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    change = stain_change(source, made, "he")
    assert (change["hematoxylin_correlation"].abs() <= 1 + 1e-5).all()
    assert (change["nuclear_correlation"].abs() <= 1 + 1e-5).all()
    assert (change["dab_ratio"].nan_to_num(0) >= 0).all()
    alone = stain_change(source[1:2], made[1:2], "he")
    for name, value in change.items():
        assert value[1].item() == pytest.approx(alone[name].item(), abs=1e-5, nan_ok=True)


def test_half_precision_images_give_float32(density):
    with torch.autocast("cpu", torch.bfloat16):
        change = stain_change(paint(hematoxylin=density).bfloat16(), paint(hematoxylin=density).bfloat16(), "he")
    assert {value.dtype for value in change.values()} == {torch.float32}
