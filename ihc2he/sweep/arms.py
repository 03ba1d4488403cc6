"""What a study of classifiers found: each arm of a sweep, and each less a reference, with 95 % intervals.

Shape suffixes: r = trainings of one arm, g = groups of them, b = resamples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.experimental.callback import Callback
from numpy.typing import NDArray
from omegaconf import DictConfig

from ihc2he.errors import DataError
from ihc2he.files import complete, read_csv, write_csv
from ihc2he.metrics.bootstrap import PERCENTILES, Counts, Resampling, draw, resampled, units_of
from ihc2he.metrics.grading import count_rows, grading
from ihc2he.sweep.pictures import differences
from ihc2he.sweep.tables import REPETITIONS, jobs_of

log = logging.getLogger(__name__)

METRICS = ("balanced_accuracy", "kappa", "accuracy", "ece")
FIRST = METRICS[0]  # the one of the picture


class CompareArms(Callback):
    """Writes `study.csv` and `study.png` at the end of a sweep of classifiers that share their test tiles.

    Args:
        keys: overrides that make an arm.
        reference: values of some of them, which make the arm with which others are compared; of the others, both have
            the same value.
        seeds_together: how many successive seeds share a generator, and so are no independent trainings.
    """

    def __init__(self, keys: Sequence[str], reference: Mapping[str, str], seeds_together: int = 1) -> None:
        self.keys, self.seeds_together = [*keys], seeds_together
        self.reference = {key: str(value) for key, value in reference.items()}

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the jobs in the folder of the sweep, also those of earlier commands."""
        folder = Path(config.hydra.sweep.dir)
        rows = compare(folder, self.keys, self.reference, self.seeds_together)
        if not rows:
            log.warning("%s: no job has been tested, so there is nothing to compare.", folder)
            return
        write_csv(folder / "study.csv", rows)
        with complete(folder / "study.png") as temporary:
            differences(temporary, [row for row in rows if row["metric"] == FIRST], " ".join(self.reference.values()))
        log.info("Arms of the study: %s", folder / "study.csv")


class Arm(NamedTuple):
    """Trainings that differ only in `REPETITIONS`.

    Attributes:
        settings: the overrides that make the arm.
        repeats: of each training, the values of `REPETITIONS`.
        values: of each training, by metric.
        values_rb: the same of each resample of the cases, by metric; no resamples of a single case.
        groups: of each training, what it shares with others.
    """

    settings: dict[str, str]
    repeats: list[tuple[str, ...]]
    values: dict[str, NDArray[np.float64]]
    values_rb: dict[str, NDArray[np.float64]]
    groups: list[str]


def compare(
    folder: Path, keys: Sequence[str], reference: Mapping[str, str], seeds_together: int = 1
) -> list[dict[str, Any]]:
    """Return a row for each arm and metric: the mean of its trainings, and its difference from the reference.

    Intervals draw cases (see `units_of`) and groups of trainings with replacement; a difference draws the same of
    both. Only trainings with the same values of `REPETITIONS` are compared, `pairs` of them. A single case has no
    interval.

    Args:
        folder: of the sweep; every job's folder has `job.json`, and `results.csv` if it was tested.
        keys: see `CompareArms`.
        reference: see `CompareArms`.
        seeds_together: see `CompareArms`.

    Raises:
        DataError: if the jobs were tested on different tiles, or two of an arm have the same seed and split.
    """
    arms = _arms(folder, keys, seeds_together)
    rows = []
    for arm in arms:
        other = next((one for one in arms if one.settings == {**arm.settings, **reference}), None)
        for metric in METRICS:
            value_r, value_rb = arm.values[metric], arm.values_rb[metric]
            row: dict[str, Any] = dict(arm.settings)
            row |= {"metric": metric, "trainings": len(value_r), "mean": float(value_r.mean())}
            row |= {"sd": float(value_r.std(ddof=1)) if len(value_r) > 1 else None}
            row |= dict(zip(("low", "high"), _interval(value_rb, arm.groups), strict=True))
            rows.append(row | _less(arm, other, metric))
    return rows


def _less(arm: Arm, other: Arm | None, metric: str) -> dict[str, Any]:
    """Return the difference of an arm from another one in the trainings that both have."""
    shared = [repeat for repeat in arm.repeats if repeat in other.repeats] if other and other is not arm else []
    if not shared or other is None:
        return {"difference": None, "difference_low": None, "difference_high": None, "pairs": 0}
    own, others = ([one.repeats.index(repeat) for repeat in shared] for one in (arm, other))
    difference_r = arm.values[metric][own] - other.values[metric][others]
    low, high = _interval(
        arm.values_rb[metric][own] - other.values_rb[metric][others], [arm.groups[place] for place in own]
    )
    mean = float(difference_r.mean())
    return {"difference": mean, "difference_low": low, "difference_high": high, "pairs": len(shared)}


def _interval(value_rb: NDArray[np.float64], groups: Sequence[str]) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean over trainings, whose groups are drawn with replacement too."""
    if not value_rb.size:
        return None, None
    labels, group_r = np.unique(groups, return_inverse=True)
    n, resamples = len(labels), value_rb.shape[1]
    times_gb = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), resamples).T
    mean_b = np.average(value_rb, 0, times_gb[group_r])
    low, high = np.nanpercentile(mean_b, PERCENTILES)
    return float(low), float(high)


def _arms(folder: Path, keys: Sequence[str], seeds_together: int) -> list[Arm]:
    """Return the arms of all jobs that were tested."""
    jobs = [job for job in jobs_of(folder) if (job["folder"] / "results.csv").is_file()]
    grouped: dict[tuple[str, ...], list[tuple[tuple[str, ...], Counts]]] = {}
    units: dict[str, str] = {}
    for job in jobs:
        tested = read_csv(job["folder"] / "results.csv")
        cases = units_of({row["name"]: row["case"] for row in tested})
        if units and cases != units:
            msg = (
                f"{job['folder'] / 'results.csv'} has {len(cases)} tiles, not the {len(units)} of "
                f"{jobs[0]['folder'] / 'results.csv'}, or other cases. Arms need the same test: the same data, "
                "data.split, data.split_seed and data.test_fraction. Delete the folders of the jobs that differ."
            )
            raise DataError(msg)
        units = cases
        setting, repeat = (tuple(job["overrides"].get(key, "-") for key in some) for some in (keys, REPETITIONS))
        runs = grouped.setdefault(setting, [])
        if repeat in [known for known, _ in runs]:
            msg = (
                f"{job['folder']}: another job has the same {', '.join([*keys, *REPETITIONS])}, so it is no further "
                "training of this arm. Add the key that differs to hydra.callbacks.arms.keys, or delete one of them."
            )
            raise DataError(msg)
        runs.append((repeat, count_rows(tested)))
    if not jobs:
        return []
    drawn = draw(units)
    if drawn.n_units == 1:
        drawn = replace(drawn, weights_bn=drawn.weights_bn[:0])
    return [
        _arm(dict(zip(keys, setting, strict=True)), runs, drawn, seeds_together) for setting, runs in grouped.items()
    ]


def _arm(
    settings: dict[str, str], runs: Sequence[tuple[tuple[str, ...], Counts]], cases: Resampling, seeds_together: int
) -> Arm:
    totals = [grading(counts.total()) for _, counts in runs]
    drawn = [grading(resampled(counts, cases)) for _, counts in runs]
    return Arm(
        settings,
        [repeat for repeat, _ in runs],
        {metric: np.array([float(values[metric]) for values in totals]) for metric in METRICS},
        {metric: np.stack([values[metric] for values in drawn]) for metric in METRICS},
        [_group(repeat[REPETITIONS.index("seed")], seeds_together) for repeat, _ in runs],
    )


def _group(seed: str, seeds_together: int) -> str:
    """Return what trainings have in common that share a generator.

    >>> _group("7", 3), _group("7", 1)
    ('2', '7')
    """
    return str(int(seed) // seeds_together) if seed.isdecimal() else seed
