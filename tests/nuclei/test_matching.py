import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ihc2he.nuclei.matching import match_points, near_pairs, one_to_one

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
    # The least total distance is 0 + 7.8, whose second pair is beyond 7; the largest matching is 5 + 6.
    true_t2, pred_p2 = np.array([[0, 0], [5, 0]]), np.array([[5, 0], [5, 6]])
    assert [points.tolist() for points in match_points(true_t2, pred_p2, 7)] == [[0, 1], [0, 1]]


def test_more_pairs_than_are_solved_at_once_make_no_difference():
    rng = np.random.default_rng(0)
    true_t2, pred_p2 = rng.uniform(0, 900, (1000, 2)), rng.uniform(0, 900, (1100, 2))
    assert len(near_pairs(true_t2, pred_p2, 30).distance_e) > 3000
    distances = cdist(true_t2, pred_p2)
    rows, columns = linear_sum_assignment(np.where(distances <= 30, distances, 1e6))
    expected = distances[rows, columns][distances[rows, columns] <= 30]
    true_m, pred_m = match_points(true_t2, pred_p2, 30)
    assert len(true_m) == len(expected)
    assert distances[true_m, pred_m].sum() == pytest.approx(expected.sum())


def test_thousands_that_all_hang_together_are_one_group_and_soon_solved():
    points_n2 = np.random.default_rng(0).uniform(0, 300, (3000, 2))
    started = time.perf_counter()
    true_m, _ = match_points(points_n2, points_n2[:, ::-1], 12)
    assert time.perf_counter() - started < 10
    assert len(true_m) > 2900


def test_by_greed_the_best_score_chooses_first():
    pairs = near_pairs(np.array([[0, 0], [4, 0]]), np.array([[3, 0], [5, 0]]), 3)
    assert [points.tolist() for points in pairs.matched()] == [[0, 1], [0, 1]]
    # The first takes the point at 4, the closest; the second has nothing left within 3.
    assert [points.tolist() for points in pairs.greedy(np.array([0.9, 0.8]))] == [[1], [0]]
    assert [points.tolist() for points in pairs.greedy(np.array([0.8, 0.9]))] == [[1, 0], [1, 0]]


def test_a_slide_of_points_takes_no_table_of_all_pairs():
    points_n2 = np.random.default_rng(0).permutation(70_000)[:, None] * np.array([[7.0, 0]])
    true_m, pred_m = match_points(points_n2, points_n2 + 1, 3)
    assert len(true_m) == 70_000
    assert np.array_equal(true_m, pred_m)
