"""Sizes, images, labels and points from one pixel size to another."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ihc2he.tiling.resampling import moved_points, resampled_size, resized, resized_labels


def test_size_follows_from_the_pixel_sizes():
    assert resampled_size(200, 200, 0.5, 0.25) == (400, 400)
    assert resampled_size(200, 200, 0.5, 0.46) == (217, 217)
    assert resampled_size(1, 1, 0.25, 4.0) == (1, 1)


def test_equal_size_changes_nothing():
    x_bchw = torch.rand(1, 3, 9, 7)
    assert resized(x_bchw, 9, 7) is x_bchw


def test_images_stay_in_range_where_bicubic_overshoots():
    x_bchw = (torch.arange(16) % 2).float().expand(1, 3, 16, 16)
    for side in (5, 31):
        y_bchw = resized(x_bchw, side, side)
        assert y_bchw.min() >= 0
        assert y_bchw.max() <= 1


def test_shrinking_averages_instead_of_skipping_pixels():
    x_bchw = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    inner = resized(x_bchw, 16, 16)[..., 4:-4, 4:-4]
    assert torch.allclose(inner, torch.tensor(0.5), atol=0.05)


def test_labels_keep_their_values_and_places():
    labels_hw = np.zeros((10, 10), np.int32)
    labels_hw[2:5, 3:8] = 70000
    twice_hw = resized_labels(labels_hw, 20, 20)
    assert twice_hw.dtype == np.int32
    assert np.array_equal(resized_labels(twice_hw, 10, 10), labels_hw)
    assert (twice_hw[4:10, 6:16] == 70000).all()
    assert np.count_nonzero(twice_hw) == 4 * np.count_nonzero(labels_hw)


@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.floats(0, 500), st.floats(0, 500)),
)
def test_points_come_back(here, there, point):
    points_n2 = np.array([point])
    back_n2 = moved_points(moved_points(points_n2, here, there), there, here)
    assert back_n2 == pytest.approx(points_n2, abs=1e-6)


def test_a_point_follows_its_nucleus():
    labels_hw = np.zeros((40, 60), np.int32)
    labels_hw[10:15, 20:27] = 1
    small_hw = resized_labels(labels_hw, 20, 30)
    centre_2 = np.argwhere(labels_hw).mean(0)[::-1]
    expected_2 = np.argwhere(small_hw).mean(0)[::-1]
    assert moved_points(centre_2[None], (40, 60), (20, 30))[0] == pytest.approx(expected_2, abs=0.51)


@pytest.mark.parametrize("shape", [(20, 30), (80, 120), (40, 60), (13, 47)])
def test_resampled_labels_keep_their_place_and_share(shape):
    disc = cv2.circle(np.zeros((40, 60), np.int32), (30, 20), 12, 5, -1)
    small = resized_labels(disc, *shape)
    assert small.shape == shape
    assert set(np.unique(small)) == {0, 5}
    assert abs((small > 0).mean() - (disc > 0).mean()) < 0.02
    centre = [(np.argwhere(m).mean(0) + 0.5) / m.shape for m in (small, disc)]
    assert np.abs(centre[0] - centre[1]).max() < 0.5 / min(shape)
