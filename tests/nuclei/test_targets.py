import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ihc2he.nuclei.targets import hv_maps, relabel_pieces


def reference_pieces(inst_hw):
    """Give the second and further connected pieces of each id a new one; one full mask per id, as published."""
    out = inst_hw.copy()
    top = out.max()
    for number in np.unique(inst_hw[inst_hw > 0]):
        pieces = ndimage.label(np.array(out == number, np.uint8))[0]
        pieces[pieces > 1] += top
        out[pieces > 1] = pieces[pieces > 1]
        top = out.max()
    return out


def reference_hv(inst_hw):
    """The published targets, nucleus by nucleus, for a map that is not cropped; returns (2, H, W)."""
    inst_hw = reference_pieces(inst_hw)
    maps = np.zeros((2, *inst_hw.shape), np.float32)
    ids, areas = np.unique(inst_hw, return_counts=True)
    for number in ids[(ids > 0) & (areas >= 30)]:
        mask = np.array(inst_hw == number, np.uint8)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        # A start below zero counts from the other end of the array, as in the published code.
        box = (slice(rows[0] - 2, rows[-1] + 3), slice(columns[0] - 2, columns[-1] + 3))
        crop = mask[box]
        if min(crop.shape) < 2 or not crop.any():  # in the second case the published code fails
            continue
        y_centre, x_centre = (int(value + 0.5) for value in ndimage.center_of_mass(crop))
        x, y = np.meshgrid(
            np.arange(1, crop.shape[1] + 1) - x_centre,
            np.arange(1, crop.shape[0] + 1) - y_centre,
        )
        for channel, offsets in enumerate((x, y)):
            offsets[crop == 0] = 0
            values = offsets.astype(np.float32)
            if values.min() < 0:
                values[values < 0] /= -values[values < 0].min()
            if values.max() > 0:
                values[values > 0] /= values[values > 0].max()
            maps[channel][box][crop > 0] = values[crop > 0]
    return maps


instance_maps = st.tuples(st.integers(8, 40), st.integers(8, 40), st.integers(0, 12), st.integers(0, 2**32 - 1))


def blocks(height, width, count, seed):
    """A map of overlapping rectangles anywhere, borders included."""
    rng = np.random.default_rng(seed)
    inst_hw = np.zeros((height, width), np.int32)
    for number in range(1, count + 1):
        top, left, h, w = rng.integers(-3, height), rng.integers(-3, width), rng.integers(1, 12), rng.integers(1, 12)
        inst_hw[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = number
    return inst_hw


@pytest.mark.parametrize(("side", "count"), [(64, 4), (128, 20), (256, 40)])
def test_with_quirks_it_is_the_reference_to_the_last_bit(ellipses, side, count):
    inst_hw = ellipses(side, count, seed=side)
    expected = reference_hv(inst_hw)
    assert np.abs(expected).max() == 1
    assert np.abs(hv_maps(relabel_pieces(inst_hw), reference_quirks=True) - expected).max() == 0


@settings(deadline=None, max_examples=60)
@given(instance_maps)
def test_with_quirks_it_is_the_reference_at_borders_too(drawn):
    inst_hw = blocks(*drawn)
    assert np.array_equal(hv_maps(relabel_pieces(inst_hw), reference_quirks=True), reference_hv(inst_hw))


@settings(deadline=None, max_examples=60)
@given(instance_maps)
def test_pieces_are_those_of_the_reference(drawn):
    inst_hw = blocks(*drawn)
    ours, theirs = relabel_pieces(inst_hw), reference_pieces(inst_hw)
    pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(ours)) == len(np.unique(theirs))
    assert ours.dtype == np.int32


def test_the_zero_lies_at_the_centre_and_at_the_reference_one_pixel_before():
    inst_hw = np.zeros((41, 41), np.int32)
    inst_hw[10:31, 10:31] = 1
    assert hv_maps(inst_hw)[:, 20, 20].tolist() == [0, 0]
    assert hv_maps(inst_hw, reference_quirks=True)[:, 20, 20] == pytest.approx([1 / 11, 1 / 11])


def test_nuclei_at_the_border_and_small_ones_have_a_target():
    inst_hw = np.zeros((20, 20), np.int32)
    inst_hw[0:7, 1:7], inst_hw[12:15, 12:15] = 1, 2
    assert not hv_maps(inst_hw, reference_quirks=True).any()
    for channel in hv_maps(inst_hw):
        for number in (1, 2):
            assert (channel[inst_hw == number].min(), channel[inst_hw == number].max()) == (-1, 1)


def test_one_pixel_no_pixel_and_every_pixel():
    inst_hw = np.zeros((5, 7), np.int32)
    assert not hv_maps(inst_hw).any()
    inst_hw[2, 3] = 9
    assert not hv_maps(inst_hw).any()
    full = hv_maps(np.ones((5, 7), np.int64))
    assert np.allclose(full[0], np.linspace(-1, 1, 7))
    assert np.allclose(full[1], np.linspace(-1, 1, 5)[:, None])
    assert full.dtype == np.float32


@settings(deadline=None, max_examples=40)
@given(instance_maps)
def test_turning_flipping_and_moving_only_turn_flip_and_move_the_maps(drawn):
    inst_hw = blocks(*drawn)
    x_hw, y_hw = hv_maps(inst_hw)
    assert np.allclose(hv_maps(inst_hw[:, ::-1]), np.stack([-x_hw, y_hw])[..., ::-1], atol=1e-6)
    # A quarter turn to the left: what pointed right points up.
    assert np.allclose(hv_maps(np.rot90(inst_hw)), np.stack([np.rot90(y_hw), -np.rot90(x_hw)]), atol=1e-6)
    moved = hv_maps(np.pad(inst_hw, ((3, 1), (0, 5))))
    assert np.allclose(moved[:, 3:-1, :-5], np.stack([x_hw, y_hw]), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(instance_maps, st.integers(0, 1000))
def test_ids_do_not_matter(drawn, seed):
    inst_hw = blocks(*drawn)
    ids = np.random.default_rng(seed).choice(2**31 - 1, inst_hw.max() + 1, replace=False)
    ids[0] = 0
    assert np.array_equal(hv_maps(ids[inst_hw]), hv_maps(inst_hw))


def test_more_ids_than_16_bits_hold():
    inst_hw = np.arange(1, 300 * 300 + 1).reshape(300, 300)
    assert not hv_maps(inst_hw).any()  # every nucleus is one pixel
    assert relabel_pieces(inst_hw).max() == 90_000


@pytest.mark.parametrize(
    ("inst_hw", "message"),
    [
        (np.zeros((4, 4)), r"HxW array of integers, found float64 of \(4, 4\)"),
        (np.zeros((1, 4, 4), int), r"found int64 of \(1, 4, 4\)"),
        (np.full((4, 4), -2), "positive ids, found -2"),
    ],
)
def test_what_is_no_instance_map_is_refused(inst_hw, message):
    with pytest.raises(ValueError, match=message):
        hv_maps(inst_hw)
