import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.color import separate_stains

from ihc2he.stain.deconvolution import DAB, EOSIN, HE, HEMATOXYLIN, IHC, optical_density, separate, separate_batch
from ihc2he.stain.deconvolution import unmixing_matrix as unmixing

ALL = (HEMATOXYLIN, EOSIN, DAB)
every_mixture = pytest.mark.parametrize("stains", [HE, IHC, ALL])
images = arrays(np.uint8, (3, 4, 3))


def to_batch(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1


def test_optical_density_of_known_intensities():
    image = np.array([[[255, 128, 0]]], np.uint8)
    assert optical_density(image)[0, 0] == pytest.approx([0, -np.log10(128 / 255), np.log10(255)], abs=1e-6)


def test_optical_density_refuses_floats():
    with pytest.raises(TypeError, match="takes a uint8 image, found float64"):
        optical_density(np.zeros((2, 2, 3)))


@every_mixture
def test_each_stain_alone_is_found_alone(stains):
    unit_sc = np.array(stains) / np.linalg.norm(stains, axis=1, keepdims=True)
    assert unit_sc @ unmixing(stains) == pytest.approx(np.eye(len(stains)), abs=1e-5)


def test_a_colour_outside_two_stains_goes_to_the_residual():
    unit_sc = np.array(HE) / np.linalg.norm(HE, axis=1, keepdims=True)
    assert np.cross(*unit_sc) @ unmixing(HE) == pytest.approx([0, 0], abs=1e-5)


@every_mixture
@given(data=st.data())
def test_mixed_concentrations_come_back(stains, data):
    # Below 2 units of optical density in sum, so that no channel reaches the floor of 1/255.
    densities_s = data.draw(arrays(np.float64, len(stains), elements=st.floats(0, 0.7)))
    unit_sc = np.array(stains) / np.linalg.norm(stains, axis=1, keepdims=True)
    intensity_c = 10 ** -(densities_s @ unit_sc)
    x_bchw = torch.tensor(2 * intensity_c - 1).reshape(1, 3, 1, 1)
    assert separate_batch(x_bchw, stains).flatten() == pytest.approx(densities_s, abs=1e-4)


@every_mixture
@given(image=images)
def test_arrays_and_batches_agree(stains, image):
    found = separate_batch(to_batch(image), stains)[0].permute(1, 2, 0).numpy()
    assert found.dtype == np.float32
    assert found == pytest.approx(separate(image, stains), abs=2e-5)


@given(image=images)
def test_three_stains_agree_with_scikit_image(image):
    # skimage measures density in units of ln(1e-6) and cuts off below 0; from 1/255 upwards that differs by 6.
    image = np.maximum(image, 1)
    unit_sc = np.array(ALL) / np.linalg.norm(ALL, axis=1, keepdims=True)
    expected = 6 * separate_stains(image, np.linalg.inv(unit_sc))
    assert np.maximum(separate(image, ALL), 0) == pytest.approx(expected, abs=1e-4)


@given(x=arrays(np.float32, (1, 3, 2, 2), elements=st.floats(-0.875, 0.875, width=32)), thinner=st.floats(0.5, 0.99))
def test_concentrations_are_linear_in_optical_density(x, thinner):
    intensity = (torch.from_numpy(x) + 1) / 2
    thin = separate_batch(2 * intensity**thinner - 1, IHC)
    assert thin == pytest.approx(thinner * separate_batch(torch.from_numpy(x), IHC), abs=1e-4)


def test_gradients_reach_the_image():
    x_bchw = torch.zeros(1, 3, 2, 2, requires_grad=True)
    separate_batch(x_bchw, IHC)[:, 1].sum().backward()
    expected_c = -unmixing(IHC)[:, 1] / np.log(10)  # d(-log10((x + 1) / 2)) / dx at 0 is -1 / ln 10
    assert x_bchw.grad[0, :, 0, 0] == pytest.approx(expected_c, abs=1e-5)
