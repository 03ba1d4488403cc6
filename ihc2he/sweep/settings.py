"""The settings of a sweep's jobs: which vary, and how much of the metric's variance goes with each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any


def varied(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the settings that differ between jobs, each with its text in every job.

    >>> varied([{"overrides": {"lr": lr, "seed": "1"}} for lr in ("1e-3", "2e-3")])
    {'lr': ['1e-3', '2e-3']}
    """
    keys = dict.fromkeys(key for job in jobs for key in job["overrides"])
    found = {key: [job["overrides"].get(key, "-") for job in jobs] for key in keys}
    return {key: texts for key, texts in found.items() if len(set(texts)) > 1}


def arm_of(row: Mapping[str, Any]) -> str:
    """Return the name of an arm: what a row of `study.csv` says before its metric.

    >>> arm_of({"study/gan": "none", "study/arm": "real", "data.case_share": "-", "metric": "kappa", "mean": 0.5})
    'none real'
    """
    columns = [*row]
    return " ".join(row[column] for column in columns[: columns.index("metric")] if row[column] != "-")


def numbers_of(texts: Sequence[str]) -> list[float]:
    """Return texts as numbers; none if one of them is not a finite number."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    return numbers if all(isfinite(number) for number in numbers) else []


def importance(settings: Mapping[str, Sequence[str]], values: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Return for each setting the share of the values' variance between its levels, and the share expected by chance.

    The share is eta squared for each setting alone: the sum of squares between its levels divided by the total. Levels
    are its values; if a number has more than four values, the lower, middle and upper third of the jobs. A setting that
    differs in every job is omitted, because it would explain everything. The share expected by chance is the mean over
    all ways to assign the values to the jobs, (levels - 1) / (jobs - 1).

    Args:
        settings: the text of each setting in every job.
        values: of the jobs.

    >>> importance({"tta": ["true", "true", "false", "false"], "n": ["1", "2", "1", "2"]}, [1, 1, 3, 3])
    {'tta': (1.0, 0.3333333333333333), 'n': (0.0, 0.3333333333333333)}
    """
    total = sum((value - fmean(values)) ** 2 for value in values)
    found = {}
    for key, texts in settings.items():
        levels: dict[Any, list[float]] = defaultdict(list)
        for level, value in zip(_levels(texts), values, strict=True):
            levels[level].append(value)
        if total > 0 and 1 < len(levels) < len(values):
            between = sum(len(own) * (fmean(own) - fmean(values)) ** 2 for own in levels.values())
            found[key] = (between / total, (len(levels) - 1) / (len(values) - 1))
    return found


def _levels(texts: Sequence[str]) -> Sequence[Any]:
    """Return the values, or for many numbers the third that each is in; equal numbers are in the same third."""
    numbers = numbers_of(texts)
    if len(set(numbers)) <= 4:
        return texts
    order = sorted(numbers)
    return [3 * order.index(number) // len(order) for number in numbers]
