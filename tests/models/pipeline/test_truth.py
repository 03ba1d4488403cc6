"""Nuclei against the whole truth, by hand and by the functions that other tests judge."""

import numpy as np
import pytest

from ihc2he.metrics.detection import confusion, detection_scores
from ihc2he.metrics.panoptic import aji, panoptic_quality, panoptic_stats
from ihc2he.models.pipeline.assembly import TileNuclei
from ihc2he.models.pipeline.truth import compare_with_truth, stain_counts, truth_cards, truth_scores
from ihc2he.nuclei.instances import centroids, overlaps

TYPES = ["a", "b"]


def squares(seed, side=64, moved=0, lost=0):
    """Return an instance map of squares on a lattice, some moved and the first few lost."""
    rng = np.random.default_rng(seed)
    inst_hw = np.zeros((side, side), np.int32)
    corners = [(y, x) for y in range(2, side - 16, 16) for x in range(2, side - 16, 16)]
    for number, (y, x) in enumerate(corners[lost:], 1):
        dy, dx = rng.integers(0, moved + 1, 2)
        inst_hw[y + dy : y + dy + 8, x + dx : x + dx + 8] = number
    return inst_hw


def nuclei(inst_hw, types_n):
    n = inst_hw.max()
    ones = np.ones(n, np.float32)
    return TileNuclei(inst_hw, np.asarray(types_n, np.int64), ones, ones, None, centroids(inst_hw))


def tiles():
    """Yield the true map, its types by pixel, and what was found, for three tiles."""
    for seed in range(3):
        true_hw = squares(seed)
        kinds = np.random.default_rng(seed).integers(1, 3, true_hw.max() + 1)
        kinds[0] = 0
        found = squares(seed + 9, moved=6, lost=seed)
        yield true_hw, kinds[true_hw], nuclei(found, np.random.default_rng(seed + 5).integers(0, 3, found.max()))


def summed(counts):
    return {key: np.sum([one[key] for one in counts], 0) for key in counts[0]}


def test_sums_over_tiles_give_the_metrics_of_the_whole_set():
    counts = [compare_with_truth(inst, kind, found, 0.5, 2) for inst, kind, found in tiles()]
    values = truth_scores(summed(counts), TYPES)
    pairs = [overlaps(inst, found.inst_hw) for inst, _, found in tiles()]
    stats_1s = np.sum([panoptic_stats(pair)[:1] for pair in pairs], 0)
    assert values["pq"] == pytest.approx(panoptic_quality(stats_1s[None], [""], [], "dataset")["bpq"])
    assert 0.1 < values["pq"] < 0.9
    assert values["aji"] == pytest.approx(np.mean([aji(pair) for pair in pairs]))
    matrix_cc = sum(
        confusion(
            centroids(inst),
            found.centres_n2,
            0.5,
            np.array([kind[inst == i][0] for i in range(1, inst.max() + 1)]),
            found.types_n,
            2,
        )
        for inst, kind, found in tiles()
    )
    expected = detection_scores(matrix_cc, TYPES)
    assert values["f1_outlines"] == pytest.approx(expected["f1"])
    assert values["f1_type/a"] == pytest.approx(expected["f1/a"])
    assert values["f1_type/b"] == pytest.approx(expected["f1/b"])
    assert set(values) <= set(truth_cards(TYPES))


def test_lost_and_invented_nuclei_are_counted_per_tile():
    true_hw, found_hw = np.zeros((2, 40, 40), np.int32)
    true_hw[2:8, 2:8], true_hw[20:26, 20:26] = 1, 2
    found_hw[2:8, 2:8], found_hw[2:8, 30:36], found_hw[30:36, 2:8] = 1, 2, 3
    counts = [compare_with_truth(true_hw, (true_hw > 0) * 1, nuclei(found_hw, [1, 1, 1]), 0.5, 0)]
    counts.append(compare_with_truth(true_hw, (true_hw > 0) * 1, nuclei(true_hw, [1, 1]), 0.5, 0))
    values = truth_scores(summed(counts), TYPES)
    assert (values["lost"], values["invented"]) == (0.5, 1)
    assert values["f1_outlines"] == pytest.approx(2 * 3 / (4 + 5))
    assert not any(key.startswith("f1_type") for key in values)  # an untyped segmenter is not judged by type


def test_resamples_are_scored_at_once():
    counts = [compare_with_truth(inst, kind, found, 0.5, 2) for inst, kind, found in tiles()]
    stacked = {key: np.stack([one[key] for one in counts]) for key in counts[0]}
    together = truth_scores(stacked, TYPES)
    for i, one in enumerate(counts):
        alone = {key: float(value) for key, value in truth_scores(one, TYPES).items()}
        assert {key: float(value[i]) for key, value in together.items()} == pytest.approx(alone, nan_ok=True)


def test_no_nuclei_anywhere_say_nothing():
    empty_hw = np.zeros((20, 20), np.int32)
    values = truth_scores(compare_with_truth(empty_hw, empty_hw, nuclei(empty_hw, []), 0.5, 2), TYPES)
    assert np.isnan([values["pq"], values["f1_outlines"], values["f1_type/a"]]).all()
    assert values["lost"] == values["invented"] == 0


# ------------------------------------------------------------------ stains

BROWN, BLUE, WHITE, PINK = (110, 70, 40), (90, 90, 160), (245, 245, 245), (230, 160, 190)


def halves(left, right, side=32):
    image = np.full((side, side, 3), left, np.uint8)
    image[:, side // 2 :] = right
    return image


def test_means_of_stains_leave_out_tiles_without_a_value():
    brown, plain = halves(BROWN, BLUE), halves(BLUE, WHITE)
    counts = [stain_counts(image, halves(BLUE, PINK), np.zeros((32, 32), np.int32)) for image in (brown, plain)]
    leaked = [count["mean_dab_leakage"] for count in counts]
    assert [float(count["mean_dab_leakage_n"]) for count in counts] == [1, 0]  # without brown nothing can leak
    assert leaked[1] == 0 < leaked[0]
    assert truth_scores(summed(counts), [])["dab_leakage"] == pytest.approx(leaked[0])
    blank = stain_counts(halves(WHITE, WHITE), halves(WHITE, WHITE), None)
    assert np.isnan(truth_scores(blank, [])["hematoxylin_correlation"])
    both = summed([blank, stain_counts(brown, halves(BLUE, PINK), None)])
    assert truth_scores(both, [])["hematoxylin_correlation"] == pytest.approx(
        truth_scores(stain_counts(brown, halves(BLUE, PINK), None), [])["hematoxylin_correlation"]
    )


def test_hematoxylin_in_true_nuclei_is_no_leakage():
    ihc, he = halves(BROWN, WHITE), halves(BLUE, PINK)
    inside = np.zeros((32, 32), np.int32)
    inside[:, :16] = 1
    assert truth_scores(stain_counts(ihc, he, inside), []).keys() >= {"dab_leakage"}
    assert np.isnan(truth_scores(stain_counts(ihc, he, inside), [])["dab_leakage"])
    assert truth_scores(stain_counts(ihc, he, 0 * inside), [])["dab_leakage"] > 0.2
    assert "dab_leakage" not in truth_scores(stain_counts(ihc, he, None), [])
