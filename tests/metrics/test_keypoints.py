import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ihc2he.metrics.average_precision import average_precisions
from ihc2he.metrics.detection import confusion, detection_scores
from ihc2he.metrics.keypoints import cards, count_inside, score_tile, scores, tabulate

CLASSES = ["stroma", "epithelium", "other"]
NONE = np.empty((0, 2)), np.empty(0, int)
MANY = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def best_matching(allowed, distances):
    """Return (number, least total distance) of all one-to-one matchings of allowed pairs, by trying every one."""

    def extend(row, free):
        if row == len(allowed):
            return 0, 0.0
        found = [extend(row + 1, free)]
        for column in free:
            if allowed[row, column]:
                n, total = extend(row + 1, free - {column})
                found.append((n + 1, total + distances[row, column]))
        return min(found, key=lambda pair: (-pair[0], pair[1]))

    return extend(0, frozenset(range(allowed.shape[1])))


def draw(seed, n_true=5, n_pred=5, side=60, lowest=0):
    """Return a crowded tile: keypoints, their classes, nuclei, their classes."""
    rng = np.random.default_rng(seed)
    true, pred = rng.uniform(0, side, (n_true, 2)), rng.uniform(0, side, (n_pred, 2))
    return true, rng.integers(0, 3, n_true), pred, rng.integers(lowest, 3, n_pred)


def score(tile, **options):
    return score_tile(*tile, **{"mpp": 0.25, "n_classes": 3} | options)


def values_of(*tiles):
    return scores(tabulate({str(number): score(tile) for number, tile in enumerate(tiles)}).total(), CLASSES)


@MANY
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_matches_are_the_most_and_then_the_closest_of_all_matchings(seed, n_true, n_pred):
    tile = draw(seed, n_true, n_pred, lowest=-1)
    true, true_types, pred, pred_types = tile
    found = score(tile, radius_um=4.5, radii_um=(1.5, 3, 6))
    distances = cdist(true, pred)
    n, total = best_matching(distances <= 18, distances)
    assert found.counts["tp"] == len(found.true_m) == n
    assert distances[found.true_m, found.pred_m].sum() == pytest.approx(total)
    assert found.counts["tp_r"].tolist() == [best_matching(distances <= 4 * r, distances)[0] for r in (1.5, 3, 6)]
    for kind in range(3):
        alike = (true_types == kind)[:, None] & (pred_types == kind)
        assert found.counts["tp_c"][kind] == best_matching(alike & (distances <= 18), distances)[0]


@MANY
@given(seeds)
def test_a_keypoint_inside_has_an_instance_of_its_own(seed):
    rng = np.random.default_rng(seed)
    inst_hw = rng.integers(0, 6, (4, 4)).repeat(5, 0).repeat(5, 1) * 7
    true = rng.uniform(-3, 22, (6, 2))
    ids = np.arange(7, 36, 7)
    columns, rows = np.floor(true + 0.5).astype(int).T
    on = (columns >= 0) & (columns < 20) & (rows >= 0) & (rows < 20)
    inside = np.array([[o and inst_hw[r, c] == i for i in ids] for r, c, o in zip(rows, columns, on, strict=True)])
    n, _ = best_matching(inside, np.zeros(inside.shape))
    assert count_inside(true, inst_hw) == n
    tile = score((true, np.zeros(6, int), rng.uniform(0, 20, (5, 2)), np.zeros(5, int)), inst_hw=inst_hw)
    values = scores(tabulate({"a": tile}).total(), CLASSES)
    assert values["f1_inside"] == pytest.approx(2 * n / 11)
    assert (values["recall_inside"], values["precision_inside"]) == pytest.approx((n / 6, n / 5))


def test_gating_after_the_assignment_would_lose_a_match():
    # The least total distance is 0 + 7.8, whose second pair is too far; 5 + 6 are two matches.
    true, pred = np.array([[0, 0], [5, 0]]), np.array([[5, 0], [5, 6]])
    distances = cdist(true, pred)
    assert (distances[linear_sum_assignment(distances)] <= 7).sum() == 1
    both = np.zeros(2, int)
    assert score((true, both, pred, both), mpp=1, radius_um=7).counts["tp"] == 2


@MANY
@given(seeds)
def test_scores_are_those_of_the_detection_protocol(seed):
    tiles = [draw(seed + number, 30, 25, 150, lowest=-1) for number in range(3)]
    matrix_cc = sum(confusion(t, p, 0.25, t_types + 1, p_types + 1, 3) for t, t_types, p, p_types in tiles)
    found = values_of(*tiles)
    for key, value in detection_scores(matrix_cc, CLASSES).items():
        assert found[key] == pytest.approx(value, nan_ok=True), key


def test_classes_on_their_own_means_and_kappa():
    # In a row: right, right, wrong, without a class, missed; and one invented.
    true, pred = np.arange(5)[:, None] * [100, 0], np.array([0, 1, 2, 3, 9])[:, None] * [100, 0]
    found = values_of((true, np.array([0, 1, 1, 1, 0]), pred, np.array([0, 1, 0, -1, 1])))
    assert found["type_accuracy"] == pytest.approx(2 / 4)
    # Three matches have two classes: 2 agree; by chance (1 * 2 + 2 * 1) / 9.
    assert found["type_kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert found["f1/stroma"] == pytest.approx(2 / (2 + 2 * 1 + 1))
    assert found["f1/epithelium"] == pytest.approx(2 / (2 + 2 * 2 + 1))
    assert found["f1_own/stroma"] == pytest.approx(2 * 1 / (2 + 2))
    assert (found["precision_own/epithelium"], found["recall_own/epithelium"]) == pytest.approx((1 / 2, 1 / 3))
    assert np.isnan(found["f1/other"])
    assert found["f1_macro"] == pytest.approx((2 / 5 + 2 / 7) / 2)
    assert found["f1_own_macro"] == pytest.approx((1 / 2 + 2 / 5) / 2)


def test_a_class_without_keypoints_is_in_no_mean():
    tile = np.array([[5, 5]]), np.array([0]), np.array([[5, 5], [90, 90]]), np.array([0, 2])
    found = values_of(tile)
    assert (found["f1/other"], found["f1_macro"]) == (0, 1)
    assert np.isnan(values_of((*NONE, *tile[2:]))["f1_macro"])


def test_counts():
    numbers = [(4, 5), (10, 7), (0, 0), (6, 8)]
    tiles = [draw(0, true, pred) for true, pred in numbers]
    true, pred = np.array(numbers, float).T
    found = values_of(*tiles)
    assert found["count_mae"] == np.abs(pred - true).mean()
    assert found["count_bias"] == (pred - true).mean()
    assert found["count_r2"] == pytest.approx(1 - ((pred - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())
    assert np.isnan(values_of(tiles[0])["count_r2"])
    assert np.isnan(values_of(tiles[0], tiles[0])["count_r2"])


@MANY
@given(seeds)
def test_reordering_moving_and_turning_change_nothing(seed):
    true, true_types, pred, pred_types = draw(seed, 20, 20, 100)
    rng = np.random.default_rng(seed)
    order_t, order_p = rng.permutation(20), rng.permutation(20)
    other = true[order_t, ::-1] + 7, true_types[order_t], pred[order_p, ::-1] + 7, pred_types[order_p]
    before, after = score((true, true_types, pred, pred_types)), score(other)
    assert {key: count.tolist() for key, count in before.counts.items()} == {
        key: count.tolist() for key, count in after.counts.items()
    }
    assert sorted(order_t[after.true_m]) == sorted(before.true_m)


@MANY
@given(seeds, st.integers(0, 9), st.integers(0, 9))
def test_swapping_truth_and_prediction_swaps_precision_and_recall(seed, n_true, n_pred):
    true, true_types, pred, pred_types = draw(seed, n_true, n_pred)
    one, other = values_of((true, true_types, pred, pred_types)), values_of((pred, pred_types, true, true_types))
    for key in one:
        if key.startswith(("f1", "type_", "count_mae")) and key in other and "macro" not in key:
            assert one[key] == pytest.approx(float(other[key]), nan_ok=True), key
        if key.startswith("precision") and key in other:
            assert one[key] == pytest.approx(float(other[key.replace("precision", "recall")]), nan_ok=True), key
    assert one["count_bias"] == -other["count_bias"]


@MANY
@given(seeds, st.integers(0, 9), st.integers(0, 9))
def test_every_nucleus_is_matched_missed_or_invented_and_wider_radii_find_more(seed, n_true, n_pred):
    tile = score(draw(seed, n_true, n_pred))
    assert sorted([*tile.true_m, *tile.missed]) == list(range(n_true))
    assert sorted([*tile.pred_m, *tile.invented]) == list(range(n_pred))
    assert np.all(np.diff(tile.counts["tp_r"]) >= 0)
    assert tile.counts["tp_r"][2] == tile.counts["tp"]


def test_the_radius_is_in_micrometres_and_inclusive():
    zero = np.zeros(1, int)
    for mpp, reach in ((0.25, 12), (0.5, 6), (1.0, 3)):
        for far, n in ((0, 1), (0.01, 0)):
            tile = score((np.array([[50.0, 50]]), zero, np.array([[50, 50 + reach + far]]), zero), mpp=mpp)
            assert tile.counts["tp"] == n


def test_empty_tiles():
    one = np.array([[3, 4]]), np.array([1])
    nothing, missed, invented = values_of((*NONE, *NONE)), values_of((*one, *NONE)), values_of((*NONE, *one))
    assert np.isnan([nothing["f1"], nothing["recall"], missed["precision"], invented["recall"]]).all()
    assert (missed["f1"], missed["recall"], invented["f1"], invented["precision"]) == (0, 0, 0, 0)
    assert score((*NONE, *NONE), inst_hw=np.zeros((4, 4), int)).counts["inside"] == 0


def test_without_types_there_are_no_metrics_of_classes():
    true, true_types, pred, _ = draw(0)
    without = np.full(len(pred), -1)
    found = values_of((true, true_types, pred, without))
    assert {key for key in found if "/" in key or key.startswith("type") or "macro" in key} == set()
    assert found["f1"] == values_of(draw(0))["f1"]
    tile = score((true, true_types, pred, without), scores_p=np.ones(len(pred)))
    assert set(average_precisions([tile.ranked], CLASSES)) == {"ap"}


def test_a_tile_without_nuclei_keeps_the_classes_of_the_others():
    true, true_types, *_ = draw(0)
    assert values_of((true, true_types, *NONE), draw(1))["recall_own/stroma"] < 1


def test_a_slide_of_points_takes_no_table_of_all_pairs():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 3500, (10_000, 2))
    types = rng.integers(0, 3, 10_000)
    started = time.perf_counter()
    tile = score((true, types, true + rng.normal(0, 3, true.shape), types), scores_p=rng.random(10_000))
    assert time.perf_counter() - started < 10
    assert tile.counts["tp"] > 9000


def test_every_metric_has_a_card():
    tile = score(draw(0), inst_hw=np.ones((60, 60), int), scores_p=np.ones(5), radii_um=(0.5, 2))
    found = scores(tabulate({"a": tile}).total(), CLASSES, (0.5, 2)) | average_precisions([tile.ranked], CLASSES)
    known = cards(CLASSES, CLASSES, radii_um=(0.5, 2))
    assert set(found) == set(known)
    assert all(card.name == key for key, card in known.items())
    assert {key for key, card in known.items() if not card.higher_is_better} == {"count_mae", "count_bias"}
    assert {key: card.better for key, card in known.items() if card.best is not None} == {"count_bias": "closest to 0"}
    assert "within 0.5 um" in known["f1_0.5um"].protocol


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({0: np.zeros((5, 3))}, {}, "Expected (N, 2) points and N whole classes, found (5, 3), (5,)"),
        ({1: np.zeros(4, int)}, {}, "found (5, 2), (4,)"),
        ({1: np.zeros(5)}, {}, "float64"),
        ({1: np.array([0, 0, 0, 0, -1])}, {}, "Expected classes from 0 to 2, found [-1  0]"),
        ({3: np.array([0, 0, 0, 0, 3])}, {}, "Expected classes from -1 to 2, found [0 3]"),
        ({}, {"mpp": 0}, "must be positive, found 0 um/px"),
        ({}, {"radii_um": (1, 0)}, "3.0 um and [1, 0] um"),
        ({}, {"scores_p": np.ones(4)}, "a finite score for each of 5 nuclei, found (4,)"),
        ({}, {"scores_p": np.array([1, 1, 1, 1, np.nan])}, "nan"),
    ],
)
def test_what_does_not_fit_is_named(changed, options, message):
    tile = [changed.get(place, value) for place, value in enumerate(draw(0))]
    with pytest.raises(ValueError, match=re.escape(message)):
        score(tile, **options)


def test_no_tiles_are_an_error():
    with pytest.raises(ValueError, match="no tiles"):
        tabulate({})
