import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ihc2he.nuclei.matching import match_points, one_to_one

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 12), st.integers(1, 12))
def test_the_gain_is_that_of_one_dense_assignment(seed, n_true, n_pred):
    rng = np.random.default_rng(seed)
    gain = rng.random((n_true, n_pred)) * (rng.random((n_true, n_pred)) < 0.25)
    true_e, pred_e = np.nonzero(gain)
    taken = one_to_one(true_e, pred_e, gain[true_e, pred_e])
    assert len(set(true_e[taken])) == len(set(pred_e[taken])) == len(taken)
    assert gain[true_e[taken], pred_e[taken]].sum() == pytest.approx(gain[linear_sum_assignment(-gain)].sum())


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(0, 30), st.integers(0, 30))
def test_points_are_matched_as_often_and_then_as_closely_as_can_be(seed, n_true, n_pred):
    rng = np.random.default_rng(seed)
    true_t2, pred_p2 = rng.integers(0, 60, (n_true, 2)), rng.integers(0, 60, (n_pred, 2))
    true_m, pred_m = match_points(true_t2, pred_p2, 10)
    distances = cdist(true_t2, pred_p2) if n_true and n_pred else np.zeros((n_true, n_pred))
    # Beyond the radius a pair costs more than all near ones together, so it never displaces one.
    rows, columns = linear_sum_assignment(np.where(distances <= 10, distances, 1e6))
    expected = distances[rows, columns][distances[rows, columns] <= 10]
    assert len(true_m) == len(expected)
    assert distances[true_m, pred_m].max(initial=0) <= 10
    assert distances[true_m, pred_m].sum() == pytest.approx(expected.sum())
    assert len(set(true_m)) == len(set(pred_m)) == len(true_m)


def test_the_radius_is_inclusive_and_a_far_pair_costs_no_match():
    assert len(match_points(np.array([[0, 0]]), np.array([[12, 0]]), 12)[0]) == 1
    assert len(match_points(np.array([[0, 0]]), np.array([[12.01, 0]]), 12)[0]) == 0
    # The least total distance is 8 + 0 with no second match within 7; the largest matching is 4 + 7.
    true_t2, pred_p2 = np.array([[0.0, 0], [4, 0]]), np.array([[4.0, 0], [11, 0]])
    assert [points.tolist() for points in match_points(true_t2, pred_p2, 7)] == [[0, 1], [0, 1]]


def test_a_slide_of_points_takes_no_table_of_all_pairs():
    points_n2 = np.random.default_rng(0).permutation(70_000)[:, None] * np.array([[7.0, 0]])
    true_m, pred_m = match_points(points_n2, points_n2 + 1, 3)
    assert len(true_m) == 70_000
    assert np.array_equal(true_m, pred_m)
