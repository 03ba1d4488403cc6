"""95 % bootstrap intervals of any function of counts that add up over tiles, and of paired differences of methods.

Tiles are drawn with replacement. The weight of a tile is how often it was drawn, so all resamples of a count are one
matrix product. Metrics with values per tile, such as a mean absolute error, are also sums over tiles.

Shape suffixes: n = tiles; b = resamples; u = units that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)

# From sums, each of shape (..., shape per tile), to values by name, each of shape (...).
Function = Callable[[Mapping[str, NDArray]], Mapping[str, NDArray]]


@dataclass(frozen=True)
class Counts:
    """What was counted on each tile by one method.

    Attributes:
        names: of the N tiles.
        columns: by name an array (N, ...).
    """

    names: tuple[str, ...]
    columns: Mapping[str, NDArray]

    def total(self) -> dict[str, NDArray]:
        """Return the sums over all tiles."""
        return {name: column.sum(0) for name, column in self.columns.items()}


@dataclass(frozen=True)
class Resampling:
    """How often each tile is in each resample.

    Attributes:
        names: of the N tiles.
        weights_bn: (B, N) float64.
        n_units: number of units; with 1 there are no intervals.
    """

    names: tuple[str, ...]
    weights_bn: NDArray[np.float64]
    n_units: int


class Interval(NamedTuple):
    """A value and its 95 % interval, NaN if there is none."""

    value: float
    low: float
    high: float


def units_of(groups: Mapping[str, str]) -> dict[str, str]:
    """Return the unit of each tile, for `draw`: its case or block; a tile of none that is known is its own unit.

    So tiles of one case stay together, even where the cases of other tiles are not known.

    Args:
        groups: case or block of each tile, by its name; "" where it is not known.

    >>> units_of({"a": "left", "b": "left", "c": ""})
    {'a': 'left', 'b': 'left', 'c': 'c'}
    """
    return {name: group or name for name, group in groups.items()}


def draw(units: Mapping[str, str], resamples: int = RESAMPLES, seed: int = 0) -> Resampling:
    """Return resamples of tiles, drawn with replacement in whole units; the order of the tiles does not matter.

    Neighbouring tiles are alike, so intervals over tiles are too narrow. If the slide or patient of each tile is known,
    use blocks of tiles.

    Args:
        units: the unit of each tile, by its name: its own name to draw tiles, that of its block to draw blocks (see
            `units_of`).
        resamples: their number, B.
        seed: of the random generator.

    Raises:
        ValueError: if there are no tiles.

    >>> drawn = draw({"a": "left", "b": "left", "c": "right"}, resamples=100)
    >>> drawn.names, drawn.n_units, np.unique(drawn.weights_bn, axis=0).tolist()
    (('a', 'b', 'c'), 2, [[0.0, 0.0, 2.0], [1.0, 1.0, 1.0], [2.0, 2.0, 0.0]])
    """
    if not units:
        msg = "There are no tiles to draw from."
        raise ValueError(msg)
    names = tuple(sorted(units))
    labels, unit_n = np.unique([units[name] for name in names], return_inverse=True)
    n_units = len(labels)
    times_bu = np.random.default_rng(seed).multinomial(n_units, np.full(n_units, 1 / n_units), resamples)
    return Resampling(names, times_bu[:, unit_n].astype(np.float64), n_units)


def intervals(counts: Counts, function: Function, resampling: Resampling) -> dict[str, Interval]:
    """Return each value of the function over all tiles, with its percentile interval.

    Resamples without a defined value (such as the recall of a class that is on none of their tiles) do not count for
    its interval. With a single unit all resamples are the same, so there is no interval.

    Args:
        counts: of one method.
        function: from sums to values; takes and returns arrays with any leading axes.
        resampling: of the same tiles.

    Raises:
        ValueError: the tiles differ.

    >>> counts = Counts(("a", "b"), {"found": np.array([1, 3]), "true": np.array([2, 4])})
    >>> recall = lambda sums: {"recall": sums["found"] / sums["true"]}
    >>> intervals(counts, recall, draw({"a": "a", "b": "b"}))["recall"]
    Interval(value=0.6666666666666666, low=0.5, high=0.75)
    """
    _check_same("counted", counts.names, "drawn", resampling.names)
    values = function(counts.total())
    return _intervals(values, function(resampled(counts, resampling)), resampling)


def differences(counts: Counts, baseline: Counts, function: Function, resampling: Resampling) -> dict[str, Interval]:
    """Return the difference of two methods in each value that both have, with paired intervals.

    Both use the same resamples, so tiles that are difficult for both do not widen the intervals.

    Args:
        counts: of the method.
        baseline: of the method to compare it with.
        function: as for `intervals`.
        resampling: of the tiles of both.

    Raises:
        ValueError: the tiles differ.

    >>> method, baseline = (Counts(("a", "b"), {"found": np.array(found)}) for found in ([3, 5], [1, 3]))
    >>> differences(method, baseline, lambda sums: {"found": sums["found"]}, draw({"a": "a", "b": "b"}))["found"]
    Interval(value=4.0, low=4.0, high=4.0)
    """
    _check_same("counted for one method", counts.names, "counted for the other", baseline.names)
    _check_same("counted", counts.names, "drawn", resampling.names)
    value, other = function(counts.total()), function(baseline.total())
    value_b, other_b = (function(resampled(both, resampling)) for both in (counts, baseline))
    shared = [name for name in value if name in other]
    return _intervals(
        {name: value[name] - other[name] for name in shared},
        {name: value_b[name] - other_b[name] for name in shared},
        resampling,
    )


def _check_same(what: str, names: tuple[str, ...], other: str, others: tuple[str, ...]) -> None:
    if names == others:
        return
    only, missing = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    found = f"{len(only)} only {what} ({', '.join(only[:5])}), {len(missing)} only {other} ({', '.join(missing[:5])})"
    msg = f"Intervals need the same tiles in the same order: {found if only or missing else 'the order differs'}."
    raise ValueError(msg)


def resampled(counts: Counts, resampling: Resampling) -> dict[str, NDArray]:
    """Return the sums over each resample, (B, ...).

    Args:
        counts: of one method.
        resampling: of the same tiles, in the same order.
    """
    return {name: np.tensordot(resampling.weights_bn, column, 1) for name, column in counts.columns.items()}


def _intervals(
    values: Mapping[str, Any], values_b: Mapping[str, NDArray], resampling: Resampling
) -> dict[str, Interval]:
    found = {}
    for name, value in values.items():
        defined_b = values_b[name][~np.isnan(values_b[name])]
        low, high = np.nan, np.nan
        if resampling.n_units > 1 and len(defined_b):
            low, high = np.percentile(defined_b, PERCENTILES)
        found[name] = Interval(float(value), float(low), float(high))
    return found
