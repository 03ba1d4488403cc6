import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ihc2he.nuclei.classical import detect_nuclei
from ihc2he.stain.deconvolution import DAB, separate
from ihc2he.stain.deconvolution import HEMATOXYLIN as IHC_HEMATOXYLIN
from ihc2he.stain.recolour import EOSIN, HEMATOXYLIN, recolour

CONSTANTS = {"h_gain": 1.7, "dab_gain": 0.2, "eosin_level": 0.22, "eosin_gain": 1.0}


def colour(vector, amount):
    vector_c = torch.tensor(vector, dtype=torch.float64)
    return (10 ** -(amount * vector_c / vector_c.norm())).float().view(1, 3, 1, 1)


def amounts(x_bchw):
    """Return hematoxylin and eosin of one pixel, and what they leave unexplained, in optical density."""
    od_c = -torch.log10(x_bchw).flatten().numpy()
    vectors_cs = np.array([HEMATOXYLIN, EOSIN]).T
    vectors_cs = vectors_cs / np.linalg.norm(vectors_cs, axis=0)
    found_s, *_ = np.linalg.lstsq(vectors_cs, od_c, rcond=None)
    return *found_s, np.abs(od_c - vectors_cs @ found_s).max()


@pytest.mark.parametrize(
    ("stain", "gain"), [(IHC_HEMATOXYLIN, CONSTANTS["h_gain"]), (DAB, CONSTANTS["dab_gain"])], ids=["h", "dab"]
)
def test_each_stain_becomes_hematoxylin_by_its_gain_on_tissue_of_constant_eosin(stain, gain):
    hematoxylin, eosin, rest = amounts(recolour(colour(stain, 0.6), **CONSTANTS))
    assert (hematoxylin, eosin, rest) == pytest.approx((0.6 * gain, 0.22, 0), abs=1e-4)


def test_a_marker_of_membranes_can_be_left_out():
    hematoxylin, eosin, _ = amounts(recolour(colour(DAB, 0.6), **(CONSTANTS | {"dab_gain": 0})))
    assert (hematoxylin, eosin) == pytest.approx((0, 0.22), abs=1e-4)


def test_what_neither_stain_explains_becomes_eosin():
    pink = colour((0.07, 0.99, 0.1), 0.3)
    without, with_residual = (amounts(recolour(pink, **(CONSTANTS | {"eosin_gain": gain})))[1] for gain in (0, 1))
    # The residual, by definition: the part of the optical density along the normal to hematoxylin and DAB.
    normal_c = np.cross(DAB, IHC_HEMATOXYLIN)
    residual = -torch.log10(pink).flatten().numpy() @ (normal_c / np.linalg.norm(normal_c))
    assert residual > 0.1
    assert with_residual - without == pytest.approx(residual, abs=1e-4)


@pytest.mark.parametrize("level", [255, 245, 233])
def test_glass_stays_as_white_as_glass_is(level):
    assert recolour(torch.full((1, 3, 2, 2), level / 255), **CONSTANTS).min() > level / 255 - 0.05


@given(x=arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32)))
def test_any_image_gives_an_image(x):
    made = recolour(torch.from_numpy(x), **CONSTANTS)
    assert made.dtype == torch.float32
    assert made.shape == x.shape
    assert 0 <= made.min() <= made.max() <= 1
    assert torch.allclose(made[1:], recolour(torch.from_numpy(x[1:]), **CONSTANTS), atol=1e-5)


def test_half_precision_around_it_changes_nothing():
    x_bchw = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = recolour(x_bchw, **CONSTANTS)
    assert torch.equal(inside, recolour(x_bchw, **CONSTANTS))


def test_gradients_reach_every_pixel_of_tissue():
    x_bchw = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    recolour(x_bchw, **CONSTANTS).sum().backward()
    assert torch.isfinite(x_bchw.grad).all()
    assert (x_bchw.grad != 0).all()


def test_brown_and_blue_nuclei_become_blue_ones_that_are_found():
    tile = np.full((40, 80, 3), 235, np.uint8)
    tile[10:21, 10:21], tile[10:21, 50:61] = (90, 55, 30), (110, 120, 170)
    made = recolour(torch.from_numpy(tile).permute(2, 0, 1)[None] / 255, **CONSTANTS)
    he = (made[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert detect_nuclei(he).tolist() == detect_nuclei(tile).tolist() == [[15, 15], [55, 15]]
    assert (he[15, [15, 55], 2] > he[15, [15, 55], 0]).all()
    assert (separate(he, (HEMATOXYLIN, EOSIN))[15, [15, 55], 0] > 0.4).all()
