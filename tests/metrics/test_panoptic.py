import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from ihc2he.errors import ConfigError
from ihc2he.metrics.panoptic import (
    PanopticQuality,
    aji,
    aji_plus,
    dice,
    panoptic_cards,
    panoptic_quality,
    panoptic_stats,
    qualities,
)
from ihc2he.nuclei.instances import overlaps

CLASSES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")


def reference_tables(true_hw, pred_hw):
    """Intersections and unions of all pairs, from one full mask per nucleus, as the published code has them."""
    true_masks = [np.array(true_hw == t, np.uint8) for t in np.unique(true_hw)[1:]]
    pred_masks = {p: np.array(pred_hw == p, np.uint8) for p in np.unique(pred_hw)[1:]}
    inter = np.zeros((len(true_masks), len(pred_masks)))
    union = np.zeros_like(inter)
    column = {p: i for i, p in enumerate(pred_masks)}
    for row, mask in enumerate(true_masks):
        for p in np.unique(pred_hw[mask > 0]):
            if p:
                total = (mask + pred_masks[p]).sum()
                inter[row, column[p]] = (mask * pred_masks[p]).sum()
                union[row, column[p]] = total - inter[row, column[p]]
    return inter, union, [mask.sum() for mask in true_masks], [mask.sum() for mask in pred_masks.values()]


def reference_pq(true_hw, pred_hw):
    """DQ, SQ and PQ as published."""
    inter, union, true_areas, pred_areas = reference_tables(true_hw, pred_hw)
    iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    matched = iou > 0.5
    tp = matched.sum()
    dq = tp / (tp + 0.5 * (len(pred_areas) - tp) + 0.5 * (len(true_areas) - tp))
    sq = iou[matched].sum() / (tp + 1e-6)
    return dq, sq, dq * sq


def reference_remap(ids_hw):
    out = np.zeros(ids_hw.shape, np.int32)
    for new, old in enumerate(np.unique(ids_hw)[1:], 1):
        out[ids_hw == old] = new
    return out


def reference_binarize(channels_hwc):
    """One map of all channels, full image per nucleus; later channels lie on top."""
    out, count = np.zeros(channels_hwc.shape[:2]), 1
    for channel in range(channels_hwc.shape[2]):
        for number in np.unique(channels_hwc[..., channel])[1:]:
            mask = channels_hwc[..., channel] == number
            out *= 1 - mask
            out += count * mask
            count += 1
    return out.astype(np.int32)


def reference_image(true_hwc, pred_hwc):
    """bPQ of an image and PQ of each of its classes, NaN where the truth is empty, as PanNuke's evaluation does."""
    true_hw, pred_hw = reference_binarize(true_hwc), reference_binarize(pred_hwc)
    binary = np.nan if len(np.unique(true_hw)) == 1 else reference_pq(true_hw, pred_hw)[2]
    classes = []
    for channel in range(true_hwc.shape[2]):
        true_hw, pred_hw = (reference_remap(maps[..., channel].astype(np.int32)) for maps in (true_hwc, pred_hwc))
        classes.append(np.nan if len(np.unique(true_hw)) == 1 else reference_pq(true_hw, pred_hw)[2])
    return binary, classes


def reference_aji(true_hw, pred_hw, unique):
    inter, union, true_areas, pred_areas = reference_tables(true_hw, pred_hw)
    iou = inter / (union + 1e-6)
    rows, columns = linear_sum_assignment(-iou) if unique else (np.arange(len(iou)), iou.argmax(1))
    paired = iou[rows, columns] > 0
    rows, columns = rows[paired], columns[paired]
    total = union[rows, columns].sum()
    total += sum(area for i, area in enumerate(true_areas) if i not in rows)
    total += sum(area for i, area in enumerate(pred_areas) if i not in columns)
    return inter[rows, columns].sum() / total


def draw(rng, side=48, count=8):
    """A map of rectangles, and another that is the same disturbed: moved, lost and invented nuclei."""
    maps = np.zeros((2, side, side), np.int32)
    for number in range(1, count + 1):
        y, x = rng.integers(0, side - 8, 2)
        h, w = rng.integers(3, 12, 2)
        dy, dx = rng.integers(-1, 2, 2).clip(-y, None).clip(-x, None)
        if rng.random() < 0.85:
            maps[0, y : y + h, x : x + w] = number
        if rng.random() < 0.85:
            maps[1, y + dy : y + dy + h, x + dx : x + dx + w] = number
    return maps


def typed(maps, rng, n_classes=5, wrong=0.2):
    """A type for each nucleus of both maps, the same id mostly with the same type."""
    kinds = rng.integers(1, n_classes + 1, maps.max() + 1)
    others = np.where(rng.random(len(kinds)) < wrong, rng.integers(1, n_classes + 1, len(kinds)), kinds)
    return [k[np.unique(ids[ids > 0])] for k, ids in zip((kinds, others), maps, strict=True)], (kinds, others)


def channels(ids_hw, kind_of_id, n_classes=5):
    kinds_hw = np.where(ids_hw > 0, kind_of_id[ids_hw], 0)
    return np.stack([np.where(kinds_hw == kind, ids_hw, 0) for kind in range(1, n_classes + 1)], -1)


@pytest.fixture(scope="module")
def data_set():
    """Statistics and official values of 40 tiles in three tissues; some without truth, some without prediction."""
    rng = np.random.default_rng(0)
    stats, official = [], []
    for i in range(40):
        maps = draw(rng, count=int(rng.integers(1, 10)))
        if i % 9 == 0:
            maps[i % 2] = 0
        (true_types, pred_types), kinds = typed(maps, rng)
        stats.append(panoptic_stats(overlaps(*maps), true_types, pred_types, 5))
        official.append(reference_image(*(channels(m, k) for m, k in zip(maps, kinds, strict=True))))
    return np.array(stats), [("Breast", "Colon", "Bile-duct")[i % 7 % 3] for i in range(40)], official


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_the_defaults_are_pannukes_official_evaluation(data_set):
    stats_ncs, tissues, official = data_set
    found = panoptic_quality(stats_ncs, tissues, CLASSES)
    binary_n, classes_nc = np.array([b for b, _ in official]), np.array([c for _, c in official])
    each_n = np.nanmean(classes_nc, 1)
    assert np.isnan(binary_n).any()
    by_tissue = {}
    for tissue in set(tissues):
        of = [i for i, t in enumerate(tissues) if t == tissue]
        by_tissue[tissue] = np.nanmean(each_n[of]), np.nanmean(binary_n[of])
        assert found[f"mpq/{tissue}"] == pytest.approx(by_tissue[tissue][0], abs=1e-6)
        assert found[f"bpq/{tissue}"] == pytest.approx(by_tissue[tissue][1], abs=1e-6)
    assert found["mpq"] == pytest.approx(np.nanmean([m for m, _ in by_tissue.values()]), abs=1e-6)
    assert found["bpq"] == pytest.approx(np.nanmean([b for _, b in by_tissue.values()]), abs=1e-6)
    for name, pq in zip(CLASSES, np.nanmean(classes_nc, 0), strict=True):
        assert found[f"pq/{name}"] == pytest.approx(pq, abs=1e-6)
    means = panoptic_quality(stats_ncs, tissues, CLASSES, aggregate="image")
    assert means["bpq"] == pytest.approx(np.nanmean(binary_n), abs=1e-6)
    assert means["mpq"] == pytest.approx(np.nanmean(each_n), abs=1e-6)
    assert abs(means["bpq"] - found["bpq"]) > 1e-4  # the difference that makes papers incomparable


def test_pooled_counts_are_one_large_tile(data_set):
    stats_ncs, tissues, _ = data_set
    found = panoptic_quality(stats_ncs, tissues, CLASSES, aggregate="dataset")
    tp, fp, fn, iou = stats_ncs.sum(0).T
    pq_c = iou / (tp + fp / 2 + fn / 2)
    assert found["bpq"] == pytest.approx(pq_c[0])
    assert found["mpq"] == pytest.approx(pq_c[1:].mean())
    assert found["dq"] * found["sq"] == pytest.approx(found["bpq"])
    assert found["pq/dead"] == pytest.approx(pq_c[4])


@pytest.mark.parametrize(("empty_gt", "expected"), [("skip", 0.8), ("zero", 0.8 / 3), ("one", 1.8 / 3)])
def test_a_tile_without_truth_counts_as_asked(empty_gt, expected):
    # One true positive of IoU 0.8; nothing at all; two false positives.
    stats_ncs = np.array([[[1, 0, 0, 0.8]], [[0, 0, 0, 0]], [[0, 2, 0, 0]]])
    for aggregate in ("image", "tissue"):
        found = panoptic_quality(stats_ncs, ["", "", ""], [], aggregate, empty_gt)
        assert found["bpq"] == pytest.approx(expected)
    assert panoptic_quality(stats_ncs, ["", "", ""], [], "dataset", empty_gt)["bpq"] == pytest.approx(0.4)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_quality_aji_and_dice_are_the_published_ones(seed):
    true_hw, pred_hw = draw(np.random.default_rng(seed))
    if not true_hw.any() or not pred_hw.any():
        return
    pairs = overlaps(true_hw, pred_hw)
    for ours, theirs in zip(qualities(panoptic_stats(pairs)[0]), reference_pq(true_hw, pred_hw), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert aji(pairs) == pytest.approx(reference_aji(true_hw, pred_hw, unique=False), abs=1e-6)
    assert aji_plus(pairs) == pytest.approx(reference_aji(true_hw, pred_hw, unique=True), abs=1e-6)
    expected = 2 * ((true_hw > 0) & (pred_hw > 0)).sum() / ((true_hw > 0).sum() + (pred_hw > 0).sum())
    assert dice(pairs) == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_turning_moving_and_renaming_change_nothing(seed):
    rng = np.random.default_rng(seed)
    maps = draw(rng)
    turned = np.pad(np.rot90(maps, axes=(1, 2))[..., ::-1], ((0, 0), (2, 0), (0, 3)))
    before, after = overlaps(*maps), overlaps(*turned)
    assert aji(after) == pytest.approx(aji(before), nan_ok=True)
    for renamed in turned:  # each map by itself; AJI by Kumar settles ties by the ids
        ids = rng.choice(2**31 - 1, maps.max() + 1, replace=False)
        ids[0] = 0
        renamed[:] = ids[renamed]
    after = overlaps(*turned)
    assert panoptic_stats(after) == pytest.approx(panoptic_stats(before))
    assert dice(after) == pytest.approx(dice(before), nan_ok=True)
    assert aji_plus(after) == pytest.approx(aji_plus(before), abs=1e-6, nan_ok=True)


def test_equal_maps_score_one_and_empty_ones_are_not_defined():
    maps = draw(np.random.default_rng(1))
    same, empty = overlaps(maps[0], maps[0]), overlaps(maps[0] * 0, maps[0] * 0)
    assert [float(value) for value in qualities(panoptic_stats(same)[0])] == [1, 1, 1]
    assert aji(same) == aji_plus(same) == dice(same) == 1
    values = [*qualities(panoptic_stats(empty)[0]), aji(empty), aji_plus(empty), dice(empty)]
    assert np.isnan(np.array(values)).all()
    missed = overlaps(maps[0], maps[0] * 0)
    assert [float(value) for value in qualities(panoptic_stats(missed)[0])] == [0, 0, 0]
    assert aji(missed) == aji_plus(missed) == dice(missed) == 0


def test_a_tile_that_is_all_nucleus_and_one_of_single_pixels():
    full = np.ones((20, 20), int)
    assert panoptic_stats(overlaps(full, full)).tolist() == [[1, 0, 0, 1]]
    pixels = np.arange(1, 270 * 270 + 1).reshape(270, 270)
    pairs = overlaps(pixels, pixels[::-1])
    assert panoptic_stats(pairs).tolist() == [[72_900, 0, 0, 72_900]]
    assert aji(pairs) == aji_plus(pairs) == dice(pairs) == 1


def test_an_iou_of_exactly_one_half_is_no_match():
    assert panoptic_stats(overlaps(np.array([[1, 1]]), np.array([[1, 0]]))).tolist() == [[0, 1, 1, 0]]


def test_a_wrong_type_is_a_miss_and_a_false_positive():
    ids = np.array([[1, 1, 0, 2, 2]])
    stats_cs = panoptic_stats(overlaps(ids, ids), np.array([1, 2]), np.array([1, 0]), 2)
    assert stats_cs.tolist() == [[2, 0, 0, 2], [1, 0, 0, 1], [0, 0, 1, 0]]


def test_mistakes_are_named():
    pairs = overlaps(np.array([[1, 2]]), np.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"type from 0 to 2 for each of 2 nuclei, found 2: \[1 3\]"):
        panoptic_stats(pairs, np.array([1, 3]), np.array([1, 1]), 2)
    with pytest.raises(ValueError, match="for each of 2 nuclei, found 1"):
        panoptic_stats(pairs, np.array([1]), np.array([1, 1]), 2)
    with pytest.raises(ConfigError, match=r"aggregate=tisue is unknown. Did you mean 'tissue'"):
        PanopticQuality(["a"], aggregate="tisue")
    with pytest.raises(ConfigError, match="empty_gt=none is unknown"):
        panoptic_quality(np.zeros((1, 1, 4)), [""], [], empty_gt="none")
    with pytest.raises(ValueError, match=r"shape \(1, 2, 4\) for these tissues and classes, found \(2, 2, 4\)"):
        panoptic_quality(np.zeros((2, 2, 4)), ["x"], ["a"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_metric_gives_the_functions_values_whatever_the_batches(data_set):
    stats_ncs, tissues, _ = data_set
    metric = PanopticQuality(CLASSES)
    assert metric.compute() == {}
    for part in (slice(0, 7), slice(7, 8), slice(8, 40)):
        metric.update(stats_ncs[part], tissues[part])
    expected = panoptic_quality(stats_ncs, tissues, CLASSES)
    found = {key: value.item() for key, value in pickle.loads(pickle.dumps(metric)).compute().items()}
    assert found == pytest.approx(expected, abs=1e-6)
    assert metric.state_dict() == {}
    metric.reset()
    assert metric.compute() == {}


def test_cards_name_the_protocol():
    assert "mean over tissues" in PanopticQuality(CLASSES).cards["bpq"].protocol
    assert "empty truth: skip" in panoptic_cards()["pq"].protocol
    assert panoptic_cards("dataset")["mpq"].protocol.endswith("pooled counts")


def test_two_ranks_equal_one(on_two_ranks, data_set, tmp_path):
    stats_ncs, tissues, _ = data_set
    np.save(tmp_path / "stats.npy", stats_ncs)
    uneven, idle = on_two_ranks(f"""
import numpy as np
from ihc2he.metrics.panoptic import PanopticQuality
stats, tissues = np.load(folder + "/stats.npy"), {tissues!r}
def compute(shares):
    metric = PanopticQuality({CLASSES!r})
    for i in shares[rank]:
        metric.update(stats[i : i + 1], tissues[i : i + 1])
    return {{key: value.item() for key, value in metric.compute().items()}}, len(metric.stats)
result = [compute((range(33), range(33, 40))), compute((range(40), ()))]
""")
    expected = panoptic_quality(stats_ncs, tissues, CLASSES)
    for values, _ in (*uneven, *idle):
        assert values == pytest.approx(expected, abs=1e-6)
    assert [own for _, own in uneven] == [33, 40]
