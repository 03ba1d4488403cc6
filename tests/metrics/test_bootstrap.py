import numpy as np
import pytest

from ihc2he.metrics.bootstrap import Counts, differences, draw, intervals
from ihc2he.metrics.keypoints import score_tile, scores, tabulate

N = 12
NAMES = tuple(f"tile{number:02}" for number in range(N))
TILES = {name: name for name in NAMES}
BLOCKS = {name: f"block{number // 5}" for number, name in enumerate(NAMES)}


def counts(seed=0, **others):
    rng = np.random.default_rng(seed)
    true_n = rng.integers(5, 20, N)
    return Counts(
        NAMES, {"true": true_n, "tp": rng.integers(0, true_n + 1), "tp_r": rng.integers(0, 9, (N, 2)), **others}
    )


def values(sums):
    return {"recall": sums["tp"] / sums["true"], "first": sums["tp_r"][..., 0]}


@pytest.mark.parametrize("units", [TILES, BLOCKS])
def test_intervals_are_those_of_a_plain_loop(units):
    table, drawn = counts(), draw(units, 300, seed=3)
    recalls, firsts = [], []
    for weights_n in drawn.weights_bn.astype(int):
        tiles = np.repeat(np.arange(N), weights_n)
        recalls.append(table.columns["tp"][tiles].sum() / table.columns["true"][tiles].sum())
        firsts.append(table.columns["tp_r"][tiles, 0].sum())
    found = intervals(table, values, drawn)
    assert found["recall"].value == table.columns["tp"].sum() / table.columns["true"].sum()
    assert found["recall"][1:] == pytest.approx(tuple(np.percentile(recalls, [2.5, 97.5])))
    assert found["first"][1:] == pytest.approx(tuple(np.percentile(firsts, [2.5, 97.5])))


def test_differences_see_both_methods_on_the_same_resamples():
    one, other, drawn = counts(0), counts(1), draw(TILES, 300)
    gaps = []
    for weights_n in drawn.weights_bn:
        recall, base = (weights_n @ t.columns["tp"] / (weights_n @ t.columns["true"]) for t in (one, other))
        gaps.append(recall - base)
    found = differences(one, other, values, drawn)["recall"]
    assert found.value == pytest.approx(values(one.total())["recall"] - values(other.total())["recall"])
    assert found[1:] == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])))
    assert set(differences(one, one, values, drawn)["recall"]) == {0}


def test_only_values_of_both_methods_are_compared():
    def more(sums):
        return values(sums) | ({"extra": sums["extra"]} if "extra" in sums else {})

    assert set(differences(counts(extra=np.ones(N)), counts(), more, draw(TILES, 9))) == {"recall", "first"}


def test_tiles_and_blocks_are_drawn_evenly_and_whole():
    tiles, blocks = draw(TILES, 4000), draw(BLOCKS, 4000)
    assert tiles.weights_bn.shape == (4000, N)
    assert (tiles.weights_bn.sum(1) == N).all()
    assert tiles.weights_bn.mean(0) == pytest.approx(np.ones(N), abs=0.1)
    # The number of times a tile is drawn is binomial, with a variance of 1 - 1/N.
    assert tiles.weights_bn.var(0) == pytest.approx(np.full(N, 1 - 1 / N), abs=0.15)
    assert blocks.n_units == 3
    for block in (slice(0, 5), slice(5, 10), slice(10, 12)):
        assert (blocks.weights_bn[:, block] == blocks.weights_bn[:, block][:, :1]).all()
    assert (blocks.weights_bn[:, [0, 5, 10]].sum(1) == 3).all()


def test_the_seed_and_not_the_order_of_tiles_decides():
    first, again, other = draw(TILES), draw(dict(reversed(TILES.items()))), draw(TILES, seed=1)
    assert first.names == again.names == NAMES
    assert np.array_equal(first.weights_bn, again.weights_bn)
    assert not np.array_equal(first.weights_bn, other.weights_bn)


def test_the_interval_of_a_mean_is_that_of_theory():
    numbers = np.random.default_rng(0).normal(10, 2, 400)
    names = tuple(f"{number:03}" for number in range(400))
    table = Counts(names, {"sum": numbers, "tiles": np.ones(400)})
    _, low, high = intervals(table, lambda sums: {"mean": sums["sum"] / sums["tiles"]}, draw({n: n for n in names}))[
        "mean"
    ]
    error = numbers.std() / np.sqrt(400)
    assert (low, high) == pytest.approx(
        (numbers.mean() - 1.96 * error, numbers.mean() + 1.96 * error), abs=0.15 * error
    )


def test_with_one_block_there_is_a_value_and_no_interval():
    drawn = draw(dict.fromkeys(NAMES, "block"), 50)
    value, low, high = intervals(counts(), values, drawn)["recall"]
    assert drawn.n_units == 1
    assert 0 < value < 1
    assert np.isnan([low, high]).all()


def test_resamples_without_a_value_are_left_out():
    rare = np.eye(1, N)[0]  # only the first tile has any

    def recall(sums):
        with np.errstate(invalid="ignore"):
            return {"rare": sums["rare"] / sums["rare"], "never": sums["rare"] * np.nan}

    found = intervals(counts(rare=rare), recall, draw(TILES, 200))
    assert found["rare"] == (1, 1, 1)
    assert np.isnan(found["never"]).all()


def test_other_tiles_are_named():
    other = Counts((*NAMES[1:], "new"), counts().columns)
    with pytest.raises(ValueError, match=r"1 only counted \(new\), 1 only drawn \(tile00\)"):
        intervals(other, values, draw(TILES, 9))
    with pytest.raises(
        ValueError, match=r"1 only counted for one method \(tile00\), 1 only counted for the other \(new\)"
    ):
        differences(counts(), other, values, draw(TILES, 9))
    with pytest.raises(ValueError, match="the order differs"):
        intervals(Counts(NAMES[::-1], counts().columns), values, draw(TILES, 9))
    with pytest.raises(ValueError, match="no tiles"):
        draw({})


def test_scores_of_keypoints_of_many_resamples_are_those_of_each():
    rng = np.random.default_rng(0)
    tiles = {}
    for name in NAMES:
        true, pred = rng.uniform(0, 60, (rng.integers(1, 9), 2)), rng.uniform(0, 60, (rng.integers(1, 9), 2))
        kinds = rng.integers(0, 2, len(true)), rng.integers(-1, 2, len(pred))
        tiles[name] = score_tile(true, kinds[0], pred, kinds[1], mpp=0.25, n_classes=2, inst_hw=np.ones((9, 9), int))
    table, drawn = tabulate(tiles), draw(TILES, 20)
    many = scores({key: np.tensordot(drawn.weights_bn, column, 1) for key, column in table.columns.items()}, "ab")
    for number, weights_n in enumerate(drawn.weights_bn.astype(int)):
        one = scores({key: np.repeat(column, weights_n, 0).sum(0) for key, column in table.columns.items()}, "ab")
        for key, value in one.items():
            assert many[key][number] == pytest.approx(float(value), nan_ok=True), key
    # The error of a mean absolute error follows from sums too.
    low, high = intervals(table, lambda sums: scores(sums, "ab"), draw(TILES))["count_mae"][1:]
    assert low < scores(table.total(), "ab")["count_mae"] < high
