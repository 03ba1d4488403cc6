import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.metrics.average_precision import SIMILAR_UM, average_precision, average_precisions
from ihc2he.metrics.keypoints import score_tile

SIGMA_UM = 2.98
seeds = st.integers(0, 2**32 - 1)
MANY = settings(deadline=None, max_examples=40)


def draw(seed, n_tiles=3):
    """Return tiles of keypoints, classes, nuclei, classes and scores that all differ."""
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(n_tiles):
        n_true, n_pred = rng.integers(0, 12, 2)
        true, pred = rng.uniform(0, 60, (n_true, 2)), rng.uniform(0, 60, (n_pred, 2))
        tiles.append((true, rng.integers(0, 3, n_true), pred, rng.integers(-1, 3, n_pred), rng.random(n_pred)))
    return tiles


def reference(tiles, mpp):
    """Return AP by going through the nuclei of all tiles one by one; NaN without keypoints."""
    ranked = sorted(
        ((score, number, place) for number, tile in enumerate(tiles) for place, score in enumerate(tile[2])),
        reverse=True,
    )
    n_true = sum(len(tile[0]) for tile in tiles)
    taken, curve, hits = set(), [], 0
    for seen, (_, number, place) in enumerate(ranked, 1):
        true, pred, _ = tiles[number]
        best, most = None, 0.5
        for index, point in enumerate(true):
            similarity = np.exp(-(((point - pred[place]) * mpp) ** 2).sum() / (2 * SIGMA_UM**2))
            if similarity >= most and (number, index) not in taken:
                best, most = (number, index), similarity
        if best is not None:
            taken.add(best)
            hits += 1
        curve.append((hits / max(n_true, 1), hits / seen))
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(curve):
        area += (recall - before) * max(precision for _, precision in curve[place:])
        before = recall
    return area if n_true else float("nan")


@MANY
@given(seeds, st.sampled_from([0.25, 0.5]))
def test_ap_is_that_of_a_plain_loop(seed, mpp):
    tiles = draw(seed)
    kinds = np.array([0, 1, 0, -1])  # "other" counts as stroma, no class as none
    options = {"mpp": mpp, "n_classes": 3, "ap_classes": [0, 1, 0]}
    ranked = [score_tile(*tile[:4], scores_p=tile[4], **options).ranked for tile in tiles]
    expected = {"ap": reference([(true, pred, scores) for true, _, pred, _, scores in tiles], mpp)}
    for kind, name in enumerate(("stroma", "epithelium")):
        own = [(t[kinds[tt] == kind], p[kinds[pt] == kind], s[kinds[pt] == kind]) for t, tt, p, pt, s in tiles]
        expected[f"ap/{name}"] = reference(own, mpp)
    found = average_precisions(ranked, ["stroma", "epithelium"])
    if (np.concatenate([tile[3] for tile in tiles]) >= 0).any():
        defined = [value for key, value in expected.items() if key != "ap" and not np.isnan(value)]
        expected["map"] = np.mean(defined) if defined else np.nan
        assert found == pytest.approx(expected, nan_ok=True)
    else:
        assert found == pytest.approx({"ap": expected["ap"]}, nan_ok=True)


def test_similar_is_half_the_keypoint_similarity_of_endonet():
    assert np.exp(-(SIMILAR_UM**2) / (2 * SIGMA_UM**2)) == pytest.approx(0.5)
    assert pytest.approx(15.24 * 100 / 512, abs=0.01) == SIGMA_UM


def test_the_better_nucleus_goes_first_and_takes_the_closest_keypoint():
    true, pred, zero = np.array([[0.0, 0], [2, 0]]), np.array([[1.5, 0], [3, 0]]), np.zeros(2, int)
    ranks = [
        score_tile(true, zero, pred, zero, mpp=1, n_classes=1, scores_p=np.array(scores)).ranked
        for scores in ([0.9, 0.8], [0.8, 0.9])
    ]
    # The first takes the keypoint at 2 and leaves 0, 3 away, for the second; with a reach of 3.5 both find one.
    assert [rank.hits_p.tolist() for rank in ranks] == [[True, True], [True, True]]
    far = score_tile(
        true, zero, pred + np.array([[0, 0], [2, 0]]), zero, mpp=1, n_classes=1, scores_p=np.array([0.9, 0.8])
    )
    assert far.ranked.hits_p.tolist() == [True, False]


def test_equal_scores_are_one_point_of_the_curve_in_any_order():
    hits = np.array([True, False, False, True])
    for order in ([0, 1, 2, 3], [1, 2, 3, 0]):
        assert average_precision(np.ones(4), hits[order], 4) == 0.5 * 0.5


def test_perfect_none_and_nothing_to_find():
    assert average_precision(np.array([0.9, 0.1]), np.array([True, True]), 2) == 1
    assert average_precision(np.empty(0), np.empty(0, bool), 2) == 0
    assert np.isnan(average_precision(np.array([0.9]), np.array([False]), 0))


@MANY
@given(seeds)
def test_a_monotone_change_of_scores_and_the_order_of_tiles_and_nuclei_change_nothing(seed):
    tiles = draw(seed)
    rng = np.random.default_rng(seed)

    def ap(tiles):
        ranked = [score_tile(*tile[:4], scores_p=tile[4], mpp=0.25, n_classes=3).ranked for tile in tiles]
        return average_precisions(ranked, "abc")

    other = []
    for true, true_types, pred, pred_types, scores in tiles[::-1]:
        order = rng.permutation(len(pred))
        other.append((true, true_types, pred[order], pred_types[order], scores[order] ** 3 - 5))
    assert ap(other) == pytest.approx(ap(tiles), nan_ok=True)
