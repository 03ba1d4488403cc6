from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ihc2he.metrics.agreement import agreement, score_readers
from ihc2he.metrics.keypoints import cards

CLASSES = ["stroma", "epithelium"]


def draw(seed, names, n=15):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 200, (n, 2))
    readers = {}
    for name in names:
        seen = rng.random(n) < 0.8
        points = truth[seen] + rng.integers(-5, 6, (seen.sum(), 2))
        readers[name] = np.column_stack([points, rng.integers(0, 2, len(points))])
    return readers


def matched(one, other):
    """Return the classes of matches within 12 px, from one dense assignment in which far pairs cost too much."""
    distances = cdist(one[:, :2], other[:, :2])
    rows, columns = linear_sum_assignment(np.where(distances <= 12, distances, 1e6))
    near = distances[rows, columns] <= 12
    return one[rows[near], 2], other[columns[near], 2]


def test_pairs_and_readers_are_those_of_plain_loops():
    tiles = [draw(0, "abc"), draw(1, "ab"), draw(2, "cab"), draw(3, "a"), {}]
    found = agreement([score_readers(tile, mpp=0.25, n_classes=2) for tile in tiles], CLASSES)
    assert found.n_tiles == 3
    assert set(found.pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    f1s = []
    for one, other in combinations("abc", 2):
        shared = [tile for tile in tiles if one in tile and other in tile]
        classes = [matched(tile[one], tile[other]) for tile in shared]
        mine, theirs = (np.concatenate(part) for part in zip(*classes, strict=True))
        f1 = 2 * len(mine) / sum(len(tile[one]) + len(tile[other]) for tile in shared)
        agreed = (mine == theirs).mean()
        chance = sum((mine == kind).mean() * (theirs == kind).mean() for kind in (0, 1))
        values = found.pairs[one, other]
        assert values["f1"] == pytest.approx(f1)
        assert values["type_kappa"] == pytest.approx((agreed - chance) / (1 - chance))
        f1s.append(f1)
    summary = found.summary()
    for end, value in {"mean": np.mean(f1s), "min": min(f1s), "max": max(f1s)}.items():
        assert summary[f"human_f1/{end}"] == pytest.approx(value)
    for name in "abc":
        met = [(tile, other) for tile in tiles for other in tile if name in tile and other != name]
        hits = sum(len(matched(tile[other], tile[name])[0]) for tile, other in met)
        assert summary[f"reader_recall/{name}"] == pytest.approx(hits / sum(len(tile[other]) for tile, other in met))
        assert summary[f"reader_precision/{name}"] == pytest.approx(hits / sum(len(tile[name]) for tile, _ in met))


def test_the_same_points_agree_wholly_and_a_class_that_nobody_names_does_not_count():
    points = np.array([[10, 10, 0], [90, 90, 0]])
    tile = score_readers({"a": points, "b": points[::-1]}, mpp=0.25, n_classes=2)
    summary = agreement([tile], CLASSES).summary()
    assert (summary["human_f1/min"], summary["human_f1/stroma/mean"], summary["human_f1_macro/max"]) == (1, 1, 1)
    # By chance they would agree as well.
    assert np.isnan([summary["human_f1/epithelium/mean"], summary["human_type_kappa/mean"]]).all()


def test_without_two_readers_there_is_nothing_to_say():
    found = agreement([score_readers(draw(0, "a"), mpp=0.25, n_classes=2)], CLASSES)
    assert (found.n_tiles, found.summary()) == (0, {})


def test_every_value_is_one_of_the_metrics_of_methods():
    found = agreement([score_readers(draw(0, "ab"), mpp=0.25, n_classes=2)], CLASSES)
    metrics = {key.rpartition("/")[0].partition("_")[2] for key in found.summary()}
    assert {"f1", "recall", "f1_macro", "type_kappa", "f1/stroma"} <= metrics <= set(cards(CLASSES))
