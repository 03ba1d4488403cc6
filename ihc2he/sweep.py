"""Tables of a sweep: `sweep.csv`, a row per job, and `mean_sd.csv` over the jobs that repeat one setting.

Imports neither torch nor Lightning, since Hydra loads it for every command line.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ihc2he.explain import one_line
from ihc2he.files import complete, write_csv

log = logging.getLogger(__name__)

REPETITIONS = ("data.split", "seed")  # jobs that differ in these alone repeat one setting


class SweepTables(Callback):
    """Notes in each job's folder what it was and how it ended, and writes the tables of the sweep after each.

    Not at the end alone, which a sweep with a failing job never reaches.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the job, so that one that is killed has a row too."""
        _note(config, "started")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how the job ended, and write the tables."""
        error = job_return._return_value  # the public property raises it
        _note(config, "finished" if job_return.status == JobStatus.COMPLETED else one_line(error))
        if config.hydra.mode == RunMode.MULTIRUN:
            write_tables(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the tables once more, since jobs that ended at the same moment may not have seen each other."""
        write_tables(Path(config.hydra.sweep.dir))
        log.info("Sweep: %s", Path(config.hydra.sweep.dir) / "sweep.csv")


def _note(config: DictConfig, status: str) -> None:
    """Write a sweep's job down as `job.json`, which jobs on other machines can do too."""
    if config.hydra.mode != RunMode.MULTIRUN:
        return
    settings = dict(str(override).lstrip("+~").partition("=")[::2] for override in config.hydra.overrides.task)
    note = {"job": config.hydra.job.num, "overrides": settings, "status": status}
    with complete(Path(config.hydra.runtime.output_dir) / "job.json") as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def write_tables(folder: Path) -> None:
    """Write `sweep.csv`, and `mean_sd.csv` where jobs repeat one setting.

    Args:
        folder: of the sweep; every job's folder below it has a `job.json`, and a `test.csv` where it was tested.
    """
    jobs = []
    for file in folder.rglob("job.json"):
        jobs.append(json.loads(file.read_text(encoding="utf-8")) | {"metrics": _metrics(file.with_name("test.csv"))})
    jobs.sort(key=lambda job: job["job"])
    rows = [{"job": job["job"], **job["overrides"], "status": job["status"], **job["metrics"]} for job in jobs]
    write_csv(folder / "sweep.csv", rows)
    if means := mean_sd(jobs):
        write_csv(folder / "mean_sd.csv", means)


def _metrics(file: Path) -> dict[str, float]:
    """Return the values of a `test.csv` by `metric` or `metric/group`; none where there is no such file."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {"/".join(filter(None, (row["metric"], row["group"]))): float(row["value"]) for row in rows}


def mean_sd(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation of every metric over the jobs that differ in `REPETITIONS` alone.

    Args:
        jobs: mappings with `overrides` and `metrics`.

    Returns:
        A row for each setting and metric: the overrides that tell settings apart, `metric`, `mean`, `sd` (of a sample,
        over n - 1; None for one value), and `n`, the jobs with a value. Empty where no job repeats another.

    >>> jobs = [{"overrides": {"seed": str(i)}, "metrics": {"bpq": 0.5 + i}} for i in range(3)]
    >>> mean_sd(jobs)
    [{'metric': 'bpq', 'mean': 1.5, 'sd': 1.0, 'n': 3}]
    """
    keys = dict.fromkeys(key for job in jobs for key in job["overrides"])
    varied = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    if not set(varied) & set(REPETITIONS):
        return []
    apart = [key for key in varied if key not in REPETITIONS]
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
