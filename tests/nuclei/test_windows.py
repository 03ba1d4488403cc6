import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.errors import DataError
from ihc2he.images.areas import Area
from ihc2he.nuclei.decoders.base import Found, Nuclei
from ihc2he.nuclei.fields import hot_spots
from ihc2he.nuclei.instances import centroids
from ihc2he.nuclei.outlines import outlines
from ihc2he.nuclei.rings import ring_densities, rings
from ihc2he.nuclei.shapes import axes
from ihc2he.nuclei.windows import Doubles, WindowNuclei, kept_nuclei, read_window, write_window
from ihc2he.tiling.windows import divide

FULL = (255.0, 255.0, 255.0)


def discs(side=200, radius=5, step=17):
    """Return a map of discs on a lattice, those at the border cut off."""
    y, x = np.mgrid[:side, :side]
    inst_hw = np.zeros((side, side), np.int32)
    for number, (cy, cx) in enumerate(np.ndindex(side // step + 1, side // step + 1), 1):
        inst_hw[(y - cy * step - 3) ** 2 + (x - cx * step - 3) ** 2 <= radius**2] = number
    return np.unique(inst_hw, return_inverse=True)[1].reshape(side, side).astype(np.int32)


def found_in(inst_hw, block):
    """Return what a perfect segmenter finds in a window."""
    part = inst_hw[block.rows, block.columns]
    part = np.unique(np.append(0, part), return_inverse=True)[1][1:].reshape(part.shape).astype(np.int32)
    n = int(part.max())
    return Found(Nuclei(part, np.ones(n, int), np.ones(n, np.float32)), centroids(part), np.ones(n, np.float32))


def windows_of(inst_hw, scale=(1.0, 1.0)):
    image = np.full((*inst_hw.shape, 3), 255, np.uint8)
    image[inst_hw > 0] = (110, 60, 30)
    tissue = Area(np.ones((1, 1), bool), inst_hw.shape)
    return [
        kept_nuclei(
            found_in(inst_hw, block), block, inst_hw.shape, scale, 0.5, image[block.rows, block.columns], FULL, tissue
        )
        for block in blocks_of(inst_hw)
    ]


def blocks_of(inst_hw):
    return divide(*inst_hw.shape, 80, 32)


def once(windows, width, tops):
    doubles = Doubles(width)
    for window, top in zip(windows, tops, strict=True):
        doubles.add(window, top)
    return doubles.kept()


def test_each_nucleus_of_a_slide_is_there_once_and_whole():
    inst_hw = discs()
    windows = windows_of(inst_hw)
    keep_n = once(windows, 200, [block.rows.start for block in blocks_of(inst_hw)])
    assert not keep_n.all()  # the rims had doubles
    places = np.concatenate([window.table.centroids_n2 for window in windows])[keep_n]
    areas = np.concatenate([window.table.areas_n for window in windows])[keep_n]
    expected = {tuple(place): area for place, area in zip(
        centroids(inst_hw).round(6).tolist(), np.bincount(inst_hw.ravel())[1:], strict=True)}  # fmt: skip
    assert {tuple(place): area for place, area in zip(places.round(6).tolist(), areas, strict=True)} == expected


def test_places_and_sizes_are_those_of_full_resolution():
    one, two = (windows_of(discs(), (factor, factor)) for factor in (1.0, 2.0))
    for small, large in zip(one, two, strict=True):
        assert (large.table.areas_n == 4 * small.table.areas_n).all()
        assert np.allclose(large.table.centroids_n2, 2 * small.table.centroids_n2 + 0.5)
        assert large.table.mpp == small.table.mpp / 2
        assert np.allclose(large.table.extra["length_um"], small.table.extra["length_um"])


def test_nuclei_outside_of_tissue_are_dropped():
    inst_hw = discs(80)
    (block,) = divide(80, 80, 80, 32)
    image = np.full((80, 80, 3), 255, np.uint8)
    left = Area(np.array([[True, False]]), (80, 80))
    window = kept_nuclei(found_in(inst_hw, block), block, (80, 80), (1, 1), 0.5, image, FULL, left)
    assert len(window.table) > 0
    assert (window.table.centroids_n2[:, 0] < 40).all()


def only(inside, places, of):
    """Return the window of nuclei of which nothing else is known."""
    return WindowNuclei(None, np.array(inside), np.array(places), np.array(of, np.int32))


def test_of_two_that_overlap_by_half_the_one_inside_its_core_stays():
    window = only([True, True, False, True], [1, 2, 3, 3, 4, 5, 5, 6], [0, 0, 0, 1, 1, 2, 3, 3])
    assert once([window], 10, [0]).tolist() == [True, False, False, True]
    few = only([True, True], [1, 2, 3, 3, 4, 5], [0, 0, 0, 1, 1, 1])
    assert once([few], 10, [0]).all()  # touching neighbours that share a third
    assert once([], 10, []).tolist() == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_windows_share_does_not_depend_on_when_their_pixels_are_forgotten(seed):
    rng = np.random.default_rng(seed)
    windows, tops = [], sorted(rng.integers(0, 12, 8).tolist())
    for top in tops:  # nuclei of 2 x 2 px anywhere below the first row of their window
        y, x = rng.integers(top, 14, 6), rng.integers(0, 9, 6)
        places = (y * 10 + x)[:, None] + [0, 1, 10, 11]
        windows.append(only(rng.random(6) < 0.5, places.ravel(), np.repeat(np.arange(6), 4)))
    at_once = once(windows, 10, [0] * 8)
    assert not at_once.all()
    assert once(windows, 10, tops).tolist() == at_once.tolist()


def test_a_window_is_read_as_it_was_written(tmp_path):
    window = windows_of(discs())[4]
    path = tmp_path / "000004.npz"
    write_window(path, window)
    again = read_window(path)
    assert np.array_equal(again.table.outlines.corners_e2, window.table.outlines.corners_e2)
    assert list(again.table.extra) == list(window.table.extra)
    assert again.table.stain_od.keys() == window.table.stain_od.keys()
    assert np.array_equal(again.place_m, window.place_m)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="Delete it and repeat"):
        read_window(path)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40000))
def test_axes_are_those_of_second_moments(height, width, corner):
    rng = np.random.default_rng(height * 100 + width)
    inst_hw = (rng.random((height, width)) < 0.7).astype(np.int32)
    inst_hw[0, 0] = 1
    y, x = np.nonzero(inst_hw)
    values = np.linalg.eigvalsh(np.cov(np.stack([x, y]), bias=True).reshape(2, 2) + np.eye(2) / 12)[::-1]
    assert np.allclose(axes(outlines(inst_hw).moved((corner, corner)))[0], 4 * np.sqrt(values))


def test_a_ring_is_measured_beside_its_nucleus():
    inst_hw = np.zeros((20, 30), np.int32)
    inst_hw[5:10, 5:10], inst_hw[5:10, 18:23] = 1, 2
    ring_hw = rings(inst_hw, 2)
    assert (ring_hw[inst_hw > 0] == 0).all()
    assert ring_hw[3:12, 3:12].max() == 1
    assert (ring_hw[:, 13:15] == 0).all()
    image = np.full((20, 30, 3), 255, np.uint8)
    image[:, 12:] = (110, 60, 30)
    dab = ring_densities(inst_hw, 2, 2, image)["dab"]
    assert abs(dab[0]) < 0.01
    assert dab[1] > 0.5
    assert np.isnan(ring_densities(np.ones((3, 3), np.int32), 1, 2, image[:3, :3])["dab"]).all()


def test_hot_spots_hold_most_positive_nuclei_and_do_not_overlap():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0, 8000, (500, 2))
    dense = rng.uniform(-300, 300, (200, 2)) + np.array([5000, 2000])
    points = np.concatenate([spread, dense])
    positive = np.arange(len(points)) >= 400
    first, second, third = hot_spots(points, positive, (8000, 8000), 1.0, 3)
    assert np.hypot(first.x_um - 5000, first.y_um - 2000) < 300
    assert first.positive > 190
    assert first.nuclei > first.positive > second.positive >= third.positive
    assert np.hypot(first.x_um - second.x_um, first.y_um - second.y_um) >= 2 * first.radius_um - 100
    assert first.radius_um == pytest.approx(564.19, abs=0.01)
    assert hot_spots(points, np.zeros(700, bool), (8000, 8000)) == []
