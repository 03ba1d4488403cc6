from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihc2he.data.splits import split_records, stratified_sample

levels = st.lists(st.sampled_from(["0", "1+", "2+", "3+"]), max_size=80)


@given(levels, st.floats(0, 1), st.integers(0, 5))
def test_every_group_keeps_its_share_within_one(groups, fraction, seed):
    chosen = stratified_sample(groups, fraction, seed)
    assert chosen == sorted(set(chosen))
    if groups and fraction > 0:
        assert len(chosen) == max(1, round(fraction * len(groups)))
    counts, taken = Counter(groups), Counter(groups[i] for i in chosen)
    assert all(abs(taken[group] - fraction * n) <= 1 for group, n in counts.items())
    assert chosen == stratified_sample(groups, fraction, seed)


def test_the_seed_changes_the_choice():
    assert stratified_sample(["0"] * 50, 0.5, 0) != stratified_sample(["0"] * 50, 0.5, 1)


def rows(split_levels, size=64):
    shapes = {"ihc": (size, size, 3), "he": (size, size, 3)}
    return [{"split": split, "group": level, "shapes": shapes} for split, level in split_levels]


DEFAULTS = {"crop_size": 32, "val_fraction": 0.25, "test_fraction": 0.0, "fraction": 1.0, "seed": 0}


def test_validation_is_taken_from_training_where_the_tree_has_none():
    table = rows([("train", "0")] * 8 + [("train", "3+")] * 16 + [("test", "3+")] * 5)
    records, too_small = split_records(table, **DEFAULTS)
    assert too_small == []
    assert Counter(table[i]["group"] for i in records["val", "ihc"]) == {"0": 2, "3+": 4}
    assert records["val", "ihc"] == records["val", "he"], "paired records stay together"
    assert set(records["train", "ihc"]) | set(records["val", "ihc"]) == set(range(24))
    assert not set(records["train", "ihc"]) & set(records["val", "ihc"])
    assert records["test", "ihc"] == list(range(24, 29))


def test_a_validation_folder_is_used_as_it_is():
    table = rows([("train", "0")] * 8 + [("val", "0")] * 3)
    records, _ = split_records(table, **DEFAULTS)
    assert records["val", "ihc"] == [8, 9, 10]
    assert records["train", "ihc"] == list(range(8))


def test_reduction_keeps_the_level_ratio_and_leaves_evaluation_alone():
    table = rows([("train", "0")] * 16 + [("train", "3+")] * 48 + [("test", "0")] * 4)
    whole, _ = split_records(table, **DEFAULTS)
    half, _ = split_records(table, **DEFAULTS | {"fraction": 0.5})
    assert Counter(table[i]["group"] for i in half["train", "ihc"]) == {"0": 6, "3+": 18}
    assert set(half["train", "ihc"]) < set(whole["train", "ihc"])
    assert half["val", "ihc"] == whole["val", "ihc"]
    assert half["test", "ihc"] == whole["test", "ihc"]


@pytest.mark.parametrize(("split", "lost"), [("train", [0]), ("test", [])])
def test_only_training_tiles_can_be_too_small(split, lost):
    table = rows([(split, "0")], size=31) + rows([("train", "0")] * 4)
    records, too_small = split_records(table, **DEFAULTS | {"val_fraction": 0.0})
    assert too_small == lost
    assert records["train", "he"] == [1, 2, 3, 4]
