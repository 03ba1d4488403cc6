import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ihc2he.nuclei.instances import foreground, instance_types, overlaps, without_holes

maps = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([3, 50, 2**30]))


def random_map(seed, top):
    """A map with few ids out of a range that is small, larger than the map, or near the end of int32."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate([[0], rng.integers(1, top + 1, 4)])
    return ids[rng.integers(0, 5, (6, 7))].astype(np.int32)


@settings(max_examples=60)
@given(maps)
def test_foreground_is_what_unique_says(drawn):
    inst_hw = random_map(*drawn)
    places_m, of_m, ids_n = foreground(inst_hw)
    assert ids_n.tolist() == [number for number in np.unique(inst_hw) if number]
    assert places_m.tolist() == np.flatnonzero(inst_hw).tolist()
    assert ids_n[of_m].tolist() == inst_hw[inst_hw > 0].tolist()


@settings(max_examples=60)
@given(maps, maps)
def test_overlaps_are_those_of_full_masks(drawn, other):
    true_hw, pred_hw = random_map(*drawn), random_map(*other)
    pairs = overlaps(true_hw, pred_hw)
    expected = [
        (int(t), int(p), int(((true_hw == t) & (pred_hw == p)).sum()))
        for t in np.unique(true_hw[true_hw > 0])
        for p in np.unique(pred_hw[pred_hw > 0])
        if ((true_hw == t) & (pred_hw == p)).any()
    ]
    found = zip(pairs.true_ids_t[pairs.true_e], pairs.pred_ids_p[pairs.pred_e], pairs.areas_e, strict=True)
    assert list(found) == expected
    assert pairs.true_areas_t.tolist() == [(true_hw == t).sum() for t in pairs.true_ids_t]
    assert pairs.pred_areas_p.tolist() == [(pred_hw == p).sum() for p in pairs.pred_ids_p]


def test_more_nuclei_than_a_dense_table_could_hold():
    inst_hw = np.arange(1, 300 * 300 + 1).reshape(300, 300)
    pairs = overlaps(inst_hw, inst_hw[::-1] + 5)
    assert len(pairs.areas_e) == 90_000
    assert (pairs.iou_e == 1).all()


def test_the_type_of_the_majority_but_background_only_where_there_is_nothing_else():
    inst_hw = np.array([[1, 1, 1, 1, 2, 2, 3, 3]])
    types_hw = np.array([[0, 0, 0, 2, 0, 0, 4, 3]])
    types_n, shares_n = instance_types(inst_hw, types_hw)
    assert types_n.tolist() == [2, 0, 3]
    assert shares_n.tolist() == [0.25, 1, 0.5]
    assert [len(part) for part in instance_types(np.zeros((0, 4), int), np.zeros((0, 4), int))] == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlaps(np.zeros((2, 2), int), np.zeros((2, 3), int)), r"one shape, found \(2, 2\) and \(2, 3\)"),
        (lambda: instance_types(np.zeros((2, 2), int), np.zeros((2, 3), int)), r"map \(2, 2\), types \(2, 3\)"),
        (lambda: instance_types(np.zeros((1, 1), int), np.full((1, 1), -1)), "from 0 upwards"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_holes_of_one_nucleus_are_filled_and_gaps_between_several_are_not():
    smooth_hw = ndimage.gaussian_filter(np.random.default_rng(0).random((96, 96)), 2)
    inst_hw = ndimage.label(smooth_hw > 0.49)[0].astype(np.int32)
    gaps_hw, n = ndimage.label(inst_hw == 0)
    expected_hw = inst_hw.copy()
    for i in range(1, n + 1):
        gap_hw = gaps_hw == i
        beside = set(inst_hw[ndimage.binary_dilation(gap_hw)].tolist()) - {0}
        framed = gap_hw[0].any() or gap_hw[-1].any() or gap_hw[:, 0].any() or gap_hw[:, -1].any()
        if len(beside) == 1 and not framed:
            expected_hw[gap_hw] = beside.pop()
    assert (expected_hw != inst_hw).any()
    assert np.array_equal(without_holes(inst_hw), expected_hw)
    assert np.array_equal(without_holes(expected_hw), expected_hw)
