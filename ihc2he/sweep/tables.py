"""The tables of a sweep: `sweep.csv`, a row per job, and `mean_sd.csv` over the jobs that repeat one setting.

Of jobs with a value also `best.txt`, the command line of the best one, and the pictures.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ihc2he.files import complete, read_csv, write_csv, write_text
from ihc2he.metrics.cards import badness
from ihc2he.sweep.pictures import bars, parallel_coordinates
from ihc2he.sweep.settings import importance, varied

KNOWN = ("started", "finished", "pruned")  # the status of a failed job says why
REPETITIONS = ("data.split", "seed")  # jobs that differ only in these repeat the same setting


def write_tables(folder: Path) -> None:
    """Write `sweep.csv`; `mean_sd.csv` if jobs repeat a setting; the best job and the pictures if they have values.

    Args:
        folder: of the sweep; every job's folder in it has a `job.json`, and a `test.csv` if it was tested.
    """
    jobs = jobs_of(folder)
    rows, valued = [], []
    for job in jobs:
        optimized = {job["metric"]: job["value"]} if job["metric"] else {}
        rows.append({"job": job["job"], **job["overrides"], "status": job["status"], **optimized, **job["metrics"]})
        known = {metric: value for metric, value in optimized.items() if value is not None}
        valued.append(job | {"metrics": known | job["metrics"]})
    write_csv(folder / "sweep.csv", rows)
    if means := mean_sd(valued):
        write_csv(folder / "mean_sd.csv", means)
    judge(folder, jobs)


def jobs_of(folder: Path) -> list[dict[str, Any]]:
    """Return the recorded jobs of a sweep in their order, each with its `folder` and the `metrics` of its test."""
    jobs = [
        json.loads(file.read_text(encoding="utf-8"))
        | {"folder": file.parent, "metrics": _metrics(file.with_name("test.csv"))}
        for file in folder.rglob("job.json")
    ]
    return sorted(jobs, key=lambda job: job["job"])


def ended(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Return how many jobs ended how.

    >>> ended([{"status": "finished"}, {"status": "started"}, {"status": "finished"}, {"status": "no such file"}])
    '2 finished, 1 started, 1 failed'
    """
    counts = Counter(job["status"] if job["status"] in KNOWN else "failed" for job in jobs)
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def _metrics(file: Path) -> dict[str, float]:
    """Return the values of a `test.csv` by `metric` or `metric/group`; none if there is no such file."""
    return {"/".join(filter(None, (row["metric"], row["group"]))): float(row["value"]) for row in read_csv(file)}


def judge(folder: Path, jobs: Sequence[Mapping[str, Any]], kind: str = "job", of: str = "this sweep") -> None:
    """Write `best.txt`, `sweep.png` and `importance.png` of the jobs, or trials, that have a value."""
    judged = [job for job in jobs if job["value"] is not None and isfinite(job["value"])]
    if not judged:
        return
    write_text(folder / "best.txt", best(judged, kind, of))
    about = f"{judged[0]['metric']} of {_counted(len(judged), kind)} of {of}"
    if settings := varied(judged):
        with complete(folder / "sweep.png") as temporary:
            parallel_coordinates(temporary, settings, judged, about)
    if shares := importance(settings, [job["value"] for job in judged]):
        with complete(folder / "importance.png") as temporary:
            bars(temporary, shares, about)


def best(jobs: Sequence[Mapping[str, Any]], kind: str = "job", of: str = "this sweep") -> str:
    """Return the command line of the best job, after a comment that says how good it is.

    Args:
        jobs: mappings with `job`, `command`, `metric`, `better` and a finite `value`, one at least.
        kind: what they are.
        of: what they belong to.

    >>> both = {"metric": "val/f1", "better": "higher"}
    >>> jobs = [{"job": i, "command": f"run lr={i}", "value": i, **both} for i in (1, 2)]
    >>> print(best(jobs), end="")
    # val/f1 2, the highest of 2 jobs of this sweep: job 2
    run lr=2
    """
    better = jobs[0]["better"]
    job = min(jobs, key=lambda job: badness(job["value"], better))
    which = {"higher": "highest", "lower": "lowest"}.get(better, better.replace("closest", "one closest"))
    among = f"the {which} of {_counted(len(jobs), kind)} of {of}: {kind} {job['job']}"
    return f"# {job['metric']} {job['value']:.6g}, {among}\n{job['command']}\n"


def _counted(number: int, kind: str) -> str:
    return f"{number} {kind}{'s' if number > 1 else ''}"


def mean_sd(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation of every metric over the jobs that differ only in `REPETITIONS`.

    Args:
        jobs: mappings with `overrides` and `metrics`.

    Returns:
        A row for each setting and metric: the overrides that differ, `metric`, `mean`, `sd` (of a sample, with n - 1;
        None for one value), and `n`, the number of jobs with a value. Empty if no job repeats another.

    >>> jobs = [{"overrides": {"seed": str(i)}, "metrics": {"bpq": 0.5 + i}} for i in range(3)]
    >>> mean_sd(jobs)
    [{'metric': 'bpq', 'mean': 1.5, 'sd': 1.0, 'n': 3}]
    """
    keys = varied(jobs)
    if not keys.keys() & set(REPETITIONS):
        return []
    apart = [key for key in keys if key not in REPETITIONS]
    settings: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    for job in jobs:
        settings[tuple(job["overrides"].get(key, "") for key in apart)].append(job["metrics"])
    rows = []
    for setting, tested in settings.items():
        for name in dict.fromkeys(name for metrics in tested for name in metrics):
            values = [metrics[name] for metrics in tested if name in metrics and not isnan(metrics[name])]
            mean, sd = fmean(values) if values else None, stdev(values) if len(values) > 1 else None
            named = dict(zip(apart, setting, strict=True))
            rows.append({**named, "metric": name, "mean": mean, "sd": sd, "n": len(values)})
    return rows
