"""Basins against a slow oracle, and their properties."""

import numpy as np
import pytest
from scipy import ndimage

from ihc2he.nuclei.basins import basins

EIGHT = np.ones((3, 3))


def smooth(seed, side=48, sigma=2.0):
    map_hw = ndimage.gaussian_filter(np.random.default_rng(seed).random((side, side)), sigma).astype(np.float32)
    return (map_hw - map_hw.min()) / np.ptp(map_hw)


def parts_of(map_hw, mask_hw, ratio):
    found = basins(map_hw, mask_hw, ratio)
    parts_hw = np.zeros(map_hw.shape, int)
    parts_hw.ravel()[found.places_m] = found.of_m + 1
    return parts_hw, found.peaks_n


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_connected_cover_the_mask_and_have_their_peak(seed):
    map_hw = smooth(seed)
    mask_hw = smooth(seed + 100) > 0.4
    parts_hw, peaks_n = parts_of(map_hw, mask_hw, 0.85)
    assert np.array_equal(parts_hw > 0, mask_hw)
    for i, peak in enumerate(peaks_n, 1):
        assert ndimage.label(parts_hw == i, EIGHT)[1] == 1
        assert map_hw[parts_hw == i].max() == peak


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.6, 0.8, 0.95])
def test_peaks_are_the_maxima_that_no_higher_one_is_reached_from_without_a_valley(seed, ratio):
    """A maximum is its own part if, above `ratio` of its height, nothing higher is connected with it."""
    map_hw, mask_hw = smooth(seed), np.ones((48, 48), bool)
    own = []
    for y, x in zip(*np.nonzero(map_hw == ndimage.maximum_filter(map_hw, 3)), strict=True):
        pieces_hw, _ = ndimage.label(map_hw >= ratio * map_hw[y, x], EIGHT)
        if map_hw[pieces_hw == pieces_hw[y, x]].max() == map_hw[y, x]:
            own.append(map_hw[y, x])
    assert sorted(parts_of(map_hw, mask_hw, ratio)[1].tolist()) == sorted(float(value) for value in own)


def test_pieces_that_do_not_touch_are_never_united_and_a_plateau_is_one():
    map_hw = np.full((9, 20), 0.7, np.float32)
    mask_hw = np.ones((9, 20), bool)
    mask_hw[:, 9:11] = False
    parts_hw, peaks_n = parts_of(map_hw, mask_hw, 1.0)
    assert len(peaks_n) == 2
    assert (parts_hw[:, :9] == 1).all()
    assert (parts_hw[:, 11:] == 2).all()


def test_a_low_maximum_divides_nothing_but_may_be_alone():
    map_hw = np.array([[0.9, 0.1, 0.3, 0.0, 0.3, 0.2]], np.float32)
    mask_hw = map_hw > 0
    assert parts_of(map_hw, mask_hw, 0.8)[0].tolist() == [[1, 1, 2, 0, 3, 3]]
    found = basins(map_hw, mask_hw, 0.8, least=0.4)
    assert found.of_m.tolist() == [0, 0, 0, 1, 1]


def test_an_empty_mask_has_no_parts():
    assert len(parts_of(np.ones((3, 4), np.float32), np.zeros((3, 4), bool), 0.8)[1]) == 0
