"""Splits of tiles into training, validation and test: by tile, or by whole cases; and what is left of the training."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ihc2he.errors import ConfigError
from ihc2he.stain import STAINS

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


def stratified_sample(groups: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Return sorted positions of a random subset in which every group keeps its share.

    The subset has ``round(fraction * len(groups))`` members, at least one unless the fraction is 0; after
    rounding down, the remaining members come from the groups with the largest remainders.

    Args:
        groups: the group of each item, for instance its HER2 level.
        fraction: in [0, 1].
        seed: of the choice.

    >>> groups = ["0"] * 4 + ["3+"] * 12
    >>> chosen = stratified_sample(groups, 0.25, seed=0)
    >>> [groups[i] for i in chosen]
    ['0', '3+', '3+', '3+']
    """
    groups_n = np.asarray(groups, dtype=str)
    names, counts = np.unique(groups_n, return_counts=True)
    ideal = counts * fraction
    seats = np.floor(ideal).astype(int)
    size = max(round(fraction * len(groups)), int(fraction > 0))
    missing = size - int(seats.sum())
    seats[np.argsort(seats - ideal, kind="stable")[:missing]] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(groups_n == name))[:k] for name, k in zip(names, seats, strict=True)]
    return sorted(int(i) for i in np.concatenate(chosen)) if chosen else []


def sample(records: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Return a `stratified_sample` of some tiles.

    Args:
        records: their numbers, sorted.
        groups: of all tiles, by number.
        fraction: in [0, 1].
        seed: of the choice.
    """
    return [records[k] for k in stratified_sample([groups[i] for i in records], fraction, seed)]


def split_as_published(
    published: Sequence[str],
    labels: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    cases: Sequence[str] = (),
) -> dict[str, list[int]]:
    """Return the tiles of each split as published; a missing split is a share of the training tiles.

    Where the cases of all training tiles are known, it is a share of their cases, see `split_by_case`.

    Args:
        published: split of each tile; what is neither validation nor test is training.
        labels: class of each tile; every split gets its share of each.
        shares: of the training tiles, for the splits that are missing; each of what the one before has left.
        seed: of the choice.
        cases: of each tile, "" where not known; empty: of none.

    Raises:
        ConfigError: if there are too few cases.

    >>> labels = ["0", "0", "3+", "3+", "0"]
    >>> split_as_published(["train"] * 4 + ["test"], labels, {"test": 0.5, "val": 0.5}, seed=0)["test"]
    [4]
    """
    records = {split: [i for i, own in enumerate(published) if own == split] for split in ("val", "test")}
    train = [i for i, own in enumerate(published) if own not in records]
    missing = {split: share for split, share in shares.items() if share and not records[split]}
    if missing and cases and all(cases[i] for i in train):
        found = split_by_case([cases[i] for i in train], [labels[i] for i in train], missing, seed)
        divided = {split: [train[k] for k in found[split]] for split in ("train", *missing)}
        return {"train": [], **records, **divided}
    for split, share in missing.items():
        records[split] = sample(train, labels, share, seed)
        train = sorted(set(train) - set(records[split]))
    return {"train": train, **records}


def split_by_case(
    cases: Sequence[str], labels: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Return the tiles of each split, no case in two; every split gets its share of the cases of each class.

    A case counts for the class of most of its tiles. Of the cases of a class, each split with a share gets at least
    one, as long as one is left for the training; where none is, a warning names class and split.

    Args:
        cases: of each tile.
        labels: class of each tile.
        shares: of the cases of each class, by split.
        seed: of the choice.

    Raises:
        ConfigError: if a split would get no case at all.

    >>> records = split_by_case(["a", "b", "c", "a"], ["0"] * 4, {"test": 0.3, "val": 0.3}, seed=0)
    >>> {split: sorted({"abca"[i] for i in own}) for split, own in records.items()}
    {'train': ['b'], 'val': ['a'], 'test': ['c']}
    """
    split_of: dict[str, str] = {}
    by_class: dict[str, list[str]] = {}
    for case, label in sorted(class_of_cases(cases, labels).items()):
        by_class.setdefault(label, []).append(case)
    rng = np.random.default_rng(seed)
    for label in sorted(by_class):
        left = [by_class[label][i] for i in rng.permutation(len(by_class[label]))]
        n = len(left)
        for split, share in shares.items():
            count = min(max(round(share * n), int(share > 0)), max(len(left) - 1, 0))
            split_of |= dict.fromkeys(left[:count], split)
            left = left[count:]
            if share and not count:
                log.warning(
                    "Class %s has no case in %s: there are only %d. What is measured there says nothing of it.",
                    label, split, n,
                )  # fmt: skip
    records = {split: [i for i, case in enumerate(cases) if split_of.get(case, "train") == split] for split in SPLITS}
    if empty := [split for split, share in shares.items() if share and not records[split]]:
        n_cases = len(set(cases))
        msg = (
            f"data.split: {n_cases} cases, one or two of a class, are too few for a {' and a '.join(empty)} split. "
            f"Add cases, or pass {' and '.join(f'data.{split}_fraction=0' for split in empty)}."
        )
        raise ConfigError(msg)
    return records


def class_of_cases(cases: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Return the class of most tiles of each case.

    >>> class_of_cases(["a", "a", "a", "b"], ["1+", "2+", "2+", "0"])
    {'a': '2+', 'b': '0'}
    """
    counts: dict[str, Counter[str]] = {}
    for case, label in zip(cases, labels, strict=True):
        counts.setdefault(case, Counter())[label] += 1
    return {case: max(sorted(own), key=own.__getitem__) for case, own in counts.items()}


def reduced(records: Iterable[int], cases: Sequence[str], labels: Sequence[str], share: float, seed: int) -> list[int]:
    """Return the tiles of a share of the cases, or of the tiles where no case is known; every class keeps its share.

    At least one case of every class is left, or one tile.

    Args:
        records: numbers of the tiles.
        cases: of all tiles, by number.
        labels: class of all tiles, by number.
        share: above 0, at most 1.
        seed: of the choice.

    >>> reduced(range(4), ["a", "a", "b", "b"], ["0", "0", "0", "0"], 0.5, seed=0)
    [0, 1]
    """
    records = list(records)
    if share == 1:
        return records
    if not all(cases[i] for i in records):
        kept = {*sample(records, labels, share, seed)}
        lacking = {labels[i]: i for i in reversed(records)}
        for i in kept:
            lacking.pop(labels[i], None)
        return sorted(kept | {*lacking.values()})
    found = class_of_cases([cases[i] for i in records], [labels[i] for i in records])
    rng = np.random.default_rng(seed)
    kept_cases: set[str] = set()
    for label in sorted(set(found.values())):
        own = sorted(case for case, its in found.items() if its == label)
        kept_cases |= {own[i] for i in rng.permutation(len(own))[: max(1, round(share * len(own)))]}
    return [i for i in records if cases[i] in kept_cases]


def split_records(
    rows: Sequence[dict[str, Any]],
    *,
    crop_size: int,
    val_fraction: float,
    test_fraction: float,
    fraction: float,
    seed: int,
) -> tuple[dict[tuple[str, str], list[int]], list[int]]:
    """Return record numbers by (split, stain), and the training records that are too small for the crop.

    Each stain is split as in `split_as_published`, stratified by group. A record with both stains is in the same split
    for both.

    Args:
        rows: of a `TileStore`, with ``split``, ``group`` and ``shapes``.
        crop_size: smallest side of a training tile in px.
        val_fraction: of the training tiles (after the test tiles are taken) for validation.
        test_fraction: of the training tiles for testing.
        fraction: of the remaining training tiles that is used.
        seed: of the choices.
    """
    records: dict[tuple[str, str], list[int]] = {}
    too_small: set[int] = set()
    groups, shares = [row["group"] for row in rows], {"test": test_fraction, "val": val_fraction}
    for stain in STAINS:
        own = [i for i, row in enumerate(rows) if stain in row["shapes"]]
        found = split_as_published([rows[i]["split"] for i in own], [groups[i] for i in own], shares, seed)
        records |= {(split, stain): [own[k] for k in places] for split, places in found.items()}
        small = {i for i in records["train", stain] if min(rows[i]["shapes"][stain][:2]) < crop_size}
        too_small |= small
        large = [i for i in records["train", stain] if i not in small]
        records["train", stain] = sample(large, groups, fraction, seed)
    return records, sorted(too_small)
