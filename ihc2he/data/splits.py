"""Deterministic, stratified splits of tiles into training, validation and test."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ihc2he.stain import STAINS

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

    Splits on disk are kept. A missing split is made from a fraction of the training tiles. Every step is stratified by
    group. A record with both stains is in the same split for both.

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

    def sample(numbers: list[int], share: float) -> list[int]:
        return [numbers[k] for k in stratified_sample([rows[i]["group"] for i in numbers], share, seed)]

    for stain in STAINS:
        for split in SPLITS:
            records[split, stain] = [i for i, r in enumerate(rows) if r["split"] == split and stain in r["shapes"]]
        train = records["train", stain]
        for split, share in (("test", test_fraction), ("val", val_fraction)):
            if not records[split, stain]:
                records[split, stain] = sample(train, share)
                train = sorted(set(train) - set(records[split, stain]))
        small = {i for i in train if min(rows[i]["shapes"][stain][:2]) < crop_size}
        too_small |= small
        records["train", stain] = sample(sorted(set(train) - small), fraction)
    return records, sorted(too_small)
