"""The DAB around keypoints, and which of them are pale, on images whose stains are known."""

import numpy as np
import pytest

from ihc2he.metrics.pale import RADIUS_UM, dab_around, pale_limit
from ihc2he.stain.deconvolution import DAB, HEMATOXYLIN


def stained(dab_hw, hematoxylin=0.0, white=(255, 255, 255)):
    """Return an image with so much of each stain, in decadic optical density."""
    brown_c, blue_c = (np.array(stain) / np.linalg.norm(stain) for stain in (DAB, HEMATOXYLIN))
    od_hwc = np.asarray(dab_hw)[..., None] * brown_c + hematoxylin * blue_c
    return (np.array(white) * 10**-od_hwc).round().astype(np.uint8)


@pytest.mark.parametrize("mpp", [0.23, 0.25, 0.5, 1.0, 4.0])
def test_it_is_the_mean_over_a_disc_whatever_the_pixel_size(mpp):
    rng = np.random.default_rng(0)
    dab_hw = rng.uniform(0, 1, (60, 60))
    points_n2 = np.array([[30, 30], [12, 40], [0, 59]])  # (x, y); the last is in a corner
    got_n = dab_around(stained(dab_hw, hematoxylin=0.3), points_n2, mpp)
    y_hw, x_hw = np.mgrid[:60, :60]
    discs = [np.hypot(x_hw - x, y_hw - y) * mpp <= RADIUS_UM for x, y in points_n2]
    assert got_n == pytest.approx([dab_hw[disc].mean() for disc in discs], abs=0.01)


def test_hematoxylin_and_glass_have_none():
    none_hw = np.zeros((20, 20))
    points_n2 = np.array([[10, 10]])
    assert dab_around(stained(none_hw), points_n2, 0.5) == 0
    assert dab_around(stained(none_hw, hematoxylin=0.8), points_n2, 0.5) == pytest.approx(0, abs=0.01)
    bluer = np.full((20, 20, 3), (40, 60, 220), np.uint8)
    assert dab_around(bluer, points_n2, 0.5) == 0


def test_densities_count_from_the_white_point():
    white = (240, 225, 205)
    points_n2 = np.array([[10, 10]])
    image = stained(np.full((20, 20), 0.4), white=white)
    assert dab_around(image, points_n2, 0.5, white) == pytest.approx(0.4, abs=0.01)
    assert dab_around(image, points_n2, 0.5) > 0.45


def test_points_far_from_the_image_are_unknown_and_none_give_none():
    image = stained(np.full((20, 20), 0.4))
    got_n = dab_around(image, np.array([[-1, 10], [60, 10]]), 0.5)
    assert got_n[0] == pytest.approx(0.4, abs=0.01)
    assert np.isnan(got_n[1])
    assert dab_around(image, np.empty((0, 2)), 0.5).shape == (0,)


@pytest.mark.parametrize(
    ("dab", "pale"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2),
        ([0.1, 0.2, 0.3, 0.4], 2),  # a third, rounded up
        ([0.5], 1),
        ([0, 0, 0, 0, 0.1, 0.2], 4),  # ties are not split
        ([0.3, 0.3, 0.3], 3),
        ([0.1, np.nan, 0.2, 0.3], 1),  # what is unknown is not pale
        ([np.nan], 0),
        ([], 0),
    ],
)
def test_a_third_is_pale_and_ties_stay_together(dab, pale):
    dab_n = np.random.default_rng(0).permutation(np.array(dab, float))
    limit = pale_limit([dab_n[:2], dab_n[2:]])
    assert (dab_n <= limit).sum() == pale


def test_no_tiles_have_no_limit():
    assert np.isnan(pale_limit([]))
