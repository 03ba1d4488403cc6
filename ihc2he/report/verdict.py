"""Which method of a comparison is the best, by how much, and whether that can be told from chance.

Only F1 is judged. Intervals are 95 % intervals of a bootstrap; where there are some over tiles and over blocks of
tiles, the wider one counts, and a difference is claimed only if it excludes 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from ihc2he.files import read_csv
from ihc2he.metrics.bootstrap import RESAMPLES, Counts, Resampling, differences, draw, units_of
from ihc2he.metrics.ratios import ratio
from ihc2he.report.parts import brief, parsed

METRIC, TITLE = "f1", "F1"
FEW = 10  # blocks, below which an interval over them is rough
MOST = 6  # methods in a sentence


class Estimate(NamedTuple):
    """A value with its interval, NaN if there is none, and over what that is."""

    value: float
    low: float
    high: float
    over: str

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Return the interval in words."""
        if isnan(self.low):
            return "no interval"
        return f"95 % interval {brief(self.low)} to {brief(self.high)} over {self.over}"


class Comparison:
    """The F1 of the methods of a comparison, and the paired differences between any two.

    Args:
        run_dir: folder with `comparison.csv`; also `results.csv` and `config.yaml`, for differences.

    Attributes:
        methods: the best first; those whose F1 is not a number are left out.
        ceilings: those of them that were given the true H&E.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "config.yaml"
        rows = [row for row in read_csv(run_dir / "comparison.csv") if row["metric"] == METRIC]
        self._rows = {row["method"]: row for row in rows if isfinite(parsed(row["value"]))}
        self._tiles: dict[str, list[dict[str, str]]] = {}
        for row in read_csv(run_dir / "results.csv"):
            if row.get("n_found"):
                self._tiles.setdefault(row["group"], []).append(row)
        self.methods = sorted(self._rows, key=lambda method: -parsed(self._rows[method]["value"]))
        self.ceilings = {method for method, row in self._rows.items() if row.get("role") == "ceiling"}
        self._order = list(self._rows)

    @cached_property
    def _model(self) -> Mapping[str, Any]:
        """The configuration of the pipeline; empty without one."""
        return (OmegaConf.select(OmegaConf.load(self._path), "model") if self._path.is_file() else None) or {}

    @property
    def candidates(self) -> list[str]:
        """The methods that a user could use, the best first."""
        return [method for method in self.methods if method not in self.ceilings]

    @property
    def reference(self) -> str:
        """The method that others are compared with: the first of `model.against`, or without translation, or at all."""
        named = [method for method in self._model.get("against") or () if method in self._rows]
        plain = [method for method in self._order if self._rows[method].get("role") == "none"]
        return [*named, *plain, *self._order][0]

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return max((int(row["n"]) for row in self._rows.values()), default=0)

    @cached_property
    def blocks(self) -> dict[str, str]:
        """The block of each tile; none if it is not known, or if every tile is its own."""
        rows = next(iter(self._tiles.values()), [])
        found = units_of({row["name"]: row.get("block", "") for row in rows})
        return found if len({*found.values()}) < len(found) else {}

    @property
    def n_blocks(self) -> int:
        """Number of blocks; 0 without any."""
        return len({*self.blocks.values()})

    @property
    def n_points(self) -> int:
        """Number of keypoints."""
        return sum(int(row["n_true"]) for row in next(iter(self._tiles.values()), []))

    def estimate(self, method: str) -> Estimate:
        """Return the F1 of a method."""
        row = self._rows[method]
        ends = [(row["low"], row["high"]), (row.get("blocks_low", ""), row.get("blocks_high", ""))]
        return self._wider(parsed(row["value"]), [(parsed(low), parsed(high)) for low, high in ends])

    def difference(self, method: str, other: str) -> Estimate | None:
        """Return the F1 of a method minus that of another, paired over tiles; None if their tiles are not known."""
        if not {method, other} <= self._tiles.keys():
            return None
        own, base = (_counts(self._tiles[name]) for name in (method, other))
        if own.names != base.names:
            return None
        found = [differences(own, base, _f1, drawn)[METRIC] for drawn in self._drawn]
        if not found:
            value = _f1(own.total())[METRIC] - _f1(base.total())[METRIC]
            return self._wider(float(value), [])
        return self._wider(found[0].value, [(one.low, one.high) for one in found])

    @cached_property
    def _drawn(self) -> list[Resampling]:
        """Resamples of tiles, and of blocks if there are some; as in the tables of the test."""
        resamples, seed = self._model.get("resamples", RESAMPLES), self._model.get("seed", 0)
        names = [row["name"] for row in next(iter(self._tiles.values()))]
        units = [{name: name for name in names}, self.blocks]
        return [draw(unit, resamples, seed) for unit in units if unit and resamples]

    def _wider(self, value: float, ends: Sequence[tuple[float, float]]) -> Estimate:
        over = (f"{self.n_tiles} tiles", f"{self.n_blocks or 'their'} blocks")
        known = [(*pair, what) for pair, what in zip(ends, over, strict=False) if isfinite(pair[0])]
        widest = max(known, key=lambda one: one[1] - one[0], default=(np.nan, np.nan, ""))
        return Estimate(value, *widest)


def _counts(rows: Sequence[Mapping[str, str]]) -> Counts:
    """Return what was matched, true and found on each tile, from the table of tiles."""
    rows = sorted(rows, key=lambda row: row["name"])
    true, pred = (np.array([int(row[key]) for row in rows]) for key in ("n_true", "n_found"))
    recall = np.nan_to_num([parsed(row["recall"]) for row in rows])
    columns = {"tp": np.rint(recall * true), "true": true, "pred": pred}
    return Counts(tuple(row["name"] for row in rows), columns)


def _f1(sums: Mapping[str, Any]) -> dict[str, Any]:
    return {METRIC: ratio(2 * sums["tp"], sums["true"] + sums["pred"])}


def sentences(found: Comparison) -> list[str]:
    """Return which method is the best, by how much, how the others compare, and what this rests on."""
    best, *others = found.candidates or found.methods
    if not others:
        return [f"{best} found nuclei with an {TITLE} of {_value(found, best)}.", _basis(found)]
    against = found.reference if found.reference in others else others[0]
    said = [_headline(found, best, against), _others(found, best, against), _basis(found)]
    return [sentence for sentence in said if sentence]


def _value(found: Comparison, method: str) -> str:
    own = found.estimate(method)
    return brief(own.value) if isnan(own.low) else f"{brief(own.value)} ({own})"


def _headline(found: Comparison, best: str, other: str) -> str:
    """Return the difference of the best method from another in a sentence that claims no more than its interval."""
    one, two = (brief(found.estimate(method).value) for method in (best, other))
    named = other if other == found.reference else f"{other}, the next best,"
    difference = found.difference(best, other)
    if difference is None or isnan(difference.low):
        return f"{best} has an {TITLE} of {one} and {named} of {two}; there is no interval of the difference."
    if difference.is_clear:
        more = f"{brief(difference.value)} more {TITLE}"
        return f"{best} found {more} than {named} ({difference}): {one} instead of {two}."
    return (
        f"{best} and {named} cannot be told apart: {TITLE} {one} and {two}, a difference of {brief(difference.value)} "
        f"({difference})."
    )


def _others(found: Comparison, best: str, against: str) -> str:
    """Return from which of the other methods the best one can be told apart."""
    others = [method for method in found.candidates if method not in (best, against)]
    known = {method: found.difference(best, method) for method in others}
    clear = [method for method, own in known.items() if own is not None and own.is_clear]
    open_ = [method for method, own in known.items() if own is not None and not own.is_clear and not isnan(own.low)]
    parts = []
    if clear:
        parts.append(f"{best} is above {_listed(clear)}")
    if open_:
        parts.append(f"{best} cannot be told apart from {_listed(open_)}")
    return f"{'; '.join(parts)}." if parts else ""


def _listed(names: Sequence[str]) -> str:
    """Return names in words, not more than a few.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(names) > MOST:
        return f"{', '.join(names[:MOST])} and {len(names) - MOST} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _basis(found: Comparison) -> str:
    """Return on which tiles a comparison was made, and what has to be kept in mind."""
    parts = [f"Measured on {found.n_tiles} tiles"]
    if found.n_points:
        parts[0] += f" with {found.n_points:,} keypoints"
    if found.n_blocks == 1:
        parts.append("They are all of one block and resemble each other, so intervals over tiles are too narrow")
    elif found.n_blocks:
        parts[0] += f", in {found.n_blocks} blocks of neighbouring tiles"
        if found.n_blocks < FEW:
            parts.append("Intervals over so few blocks are rough")
    if len(found.candidates) > 2:
        parts.append(
            f"The best of {len(found.candidates)} methods was picked on these same tiles, which flatters it: expect "
            "less on other tiles"
        )
    if found.ceilings:
        values = _listed([f"{brief(found.estimate(method).value)} ({method})" for method in sorted(found.ceilings)])
        parts.append(f"With the true H&E, which only simulated tissue has, {TITLE} is {values}")
    return ". ".join(parts) + "."
