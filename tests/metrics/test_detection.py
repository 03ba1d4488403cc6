import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ihc2he.metrics.detection import CARDS, Detection, confusion, detection_scores

CLASSES = ("a", "b", "c")


def reference_scores(tiles, n_classes):
    """HoVer-Net's detection and class F1 over tiles of (true points, predicted points, types of both), 0.25 um/px."""
    paired_true, paired_pred, alone_true, alone_pred = [], [], [], []
    for true, pred, true_types, pred_types in tiles:
        distances = cdist(true, pred) if len(true) and len(pred) else np.zeros((len(true), len(pred)))
        # Gated before the assignment: a pair beyond the radius costs more than all near ones together.
        rows, columns = linear_sum_assignment(np.where(distances <= 12, distances, 1e6))
        near = distances[rows, columns] <= 12
        paired_true.extend(true_types[rows[near]])
        paired_pred.extend(pred_types[columns[near]])
        alone_true.extend(np.delete(true_types, rows[near]))
        alone_pred.extend(np.delete(pred_types, columns[near]))
    paired_true, paired_pred = np.array(paired_true), np.array(paired_pred)
    alone_true, alone_pred = np.array(alone_true), np.array(alone_pred)
    tp, fp, fn = len(paired_true), len(alone_pred), len(alone_true)
    scores = {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
    scores["type_accuracy"] = (paired_true == paired_pred).mean()
    for kind, name in enumerate(CLASSES[:n_classes], 1):
        right = ((paired_true == kind) & (paired_pred == kind)).sum()
        wrong_here = ((paired_true != kind) & (paired_pred == kind)).sum()
        wrong_there = ((paired_true == kind) & (paired_pred != kind)).sum()
        alone = (alone_true == kind).sum() + (alone_pred == kind).sum()
        scores[f"f1/{name}"] = 2 * right / (2 * right + 2 * wrong_here + 2 * wrong_there + alone)
    return scores


def draw(seed, n_tiles=3):
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(n_tiles):
        true = rng.uniform(0, 200, (60, 2))
        pred = np.concatenate([true[rng.random(60) < 0.8] + rng.normal(0, 4, 2), rng.uniform(0, 200, (8, 2))])
        tiles.append((true, pred, rng.integers(1, 4, len(true)), rng.integers(1, 4, len(pred))))
    return tiles


def matrix_of(tile, mpp=0.25):
    true, pred, true_types, pred_types = tile
    return confusion(true, pred, mpp, true_types, pred_types, 3)


# With few points the optimal assignment is unique, so that types cannot differ between two equally good ones.
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_scores_are_hover_nets(seed):
    tiles = draw(seed)
    found = detection_scores(sum(matrix_of(tile) for tile in tiles), CLASSES)
    assert found == pytest.approx(reference_scores(tiles, 3), abs=1e-6)


def test_the_radius_is_three_micrometres_at_any_pixel_size():
    for mpp, reach in ((0.25, 12), (0.5, 6), (1.0, 3)):
        near = confusion(np.array([[50, 50]]), np.array([[50, 50 + reach]]), mpp)
        far = confusion(np.array([[50, 50]]), np.array([[50, 50 + reach + 0.01]]), mpp)
        assert near.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
        assert far.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_turning_moving_and_reordering_change_nothing(seed):
    (tile,) = draw(seed, 1)
    true, pred, true_types, pred_types = tile
    order = np.random.default_rng(seed).permutation(len(pred))
    other = (true[:, ::-1] + 7, pred[order, ::-1] + 7, true_types, pred_types[order])
    assert matrix_of(other).tolist() == matrix_of(tile).tolist()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_every_nucleus_is_counted_once(seed):
    (tile,) = draw(seed, 1)
    matrix_cc = matrix_of(tile)
    assert matrix_cc[1:].sum(1).tolist() == np.bincount(tile[2], minlength=5)[1:].tolist()
    assert matrix_cc[:, 1:].sum(0).tolist() == np.bincount(tile[3], minlength=5)[1:].tolist()
    assert matrix_cc[0, 0] == 0


def test_empty_tiles():
    none, one = np.empty((0, 2)), np.array([[3, 4]])
    assert confusion(none, none, 0.25).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert confusion(none, one, 0.25).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert confusion(one, none, 0.25).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    scores = detection_scores(confusion(none, one, 0.25), ["nucleus"])
    assert (scores["precision"], scores["f1"]) == (0, 0)
    assert np.isnan(scores["recall"])
    assert np.isnan(scores["type_accuracy"])


def test_an_unknown_type_counts_for_detection():
    points = np.arange(8).reshape(4, 2) * 50
    # Right, wrong, predicted without a type, true without a type.
    matrix_cc = confusion(points, points, 0.25, np.array([1, 1, 2, 0]), np.array([1, 2, 0, 1]), 2)
    scores = detection_scores(matrix_cc, ["a", "b"])
    assert scores["f1"] == 1
    assert scores["type_accuracy"] == pytest.approx(1 / 3)
    assert scores["f1/a"] == pytest.approx(2 / 4)
    assert scores["f1/b"] == 0


def test_types_that_do_not_exist_are_named():
    one = np.array([[3, 4]])
    with pytest.raises(ValueError, match=r"type from 0 to 2 for each of 1 nuclei, found 1: \[3\]"):
        confusion(one, one, 0.25, np.array([1]), np.array([3]), 2)
    with pytest.raises(ValueError, match="for each of 1 nuclei, found 2"):
        confusion(one, one, 0.25, np.array([1, 1]))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_metric_adds_tiles():
    tiles = draw(5)
    metric = Detection(CLASSES)
    for tile in tiles:
        metric.update(matrix_of(tile))
    found = {key: value.item() for key, value in pickle.loads(pickle.dumps(metric)).compute().items()}
    assert found == pytest.approx(reference_scores(tiles, 3), abs=1e-6)
    assert metric.matrix_cc.sum() == sum(matrix_of(tile).sum() for tile in tiles)
    assert {key.partition("/")[0] for key in found} == set(CARDS)
    metric.reset()
    assert np.isnan(metric.compute()["f1"].item())


def test_two_ranks_equal_one(on_two_ranks, tmp_path):
    tiles = draw(6)
    np.save(tmp_path / "matrices.npy", [matrix_of(tile) for tile in tiles])
    ranks = on_two_ranks(f"""
import numpy as np
from ihc2he.metrics.detection import Detection
metric = Detection({CLASSES!r})
for matrix in np.load(folder + "/matrices.npy")[[0, 1, 2][rank * 3 :]]:
    metric.update(matrix)
result = {{key: value.item() for key, value in metric.compute().items()}}
""")
    for values in ranks:
        assert values == pytest.approx(reference_scores(tiles, 3), abs=1e-6)
