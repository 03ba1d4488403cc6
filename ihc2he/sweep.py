"""What a sweep leaves: `sweep.csv`, a row per job, and `mean_sd.csv` over the jobs that repeat one setting.

With an `optimized_metric` also `best.txt`, the best job's command line, and `sweep.png`, all jobs in one picture.
Imports neither torch nor Lightning, since Hydra loads it for every command line.
"""

from __future__ import annotations

import csv
import json
import logging
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite, isnan, log10
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
OF_SWEEPS = ("hparams_search=", "launcher=")  # overrides that a single run has no use for


class SweepTables(Callback):
    """Notes in each job's folder what it was and how it ended, and writes what the sweep leaves after each.

    Not at the end alone, which a sweep with a failing job never reaches.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder that a sampler keeps its study in."""
        Path(config.paths.outputs).mkdir(parents=True, exist_ok=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the job, so that one that is killed has a row too."""
        _note(config, "started")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how the job ended, and write the tables."""
        result = job_return._return_value  # the public property raises it where it is an error
        if job_return.status == JobStatus.COMPLETED:
            _note(config, "finished", result)
        else:
            _note(config, one_line(result))
        if config.hydra.mode == RunMode.MULTIRUN:
            write_tables(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the tables once more, since jobs that ended at the same moment may not have seen each other."""
        folder = Path(config.hydra.sweep.dir)
        write_tables(folder)
        log.info("Sweep: %s", folder / "sweep.csv")
        if (folder / "best.txt").is_file():
            log.info("%s", (folder / "best.txt").read_text(encoding="utf-8").strip())


def _note(config: DictConfig, status: str, value: float | None = None) -> None:
    """Write a sweep's job down as `job.json`, which jobs on other machines can do too."""
    hydra = config.hydra
    if hydra.mode != RunMode.MULTIRUN:
        return
    overrides = [str(override) for override in hydra.overrides.task]
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    own = [argument for folder in folders for argument in ("--config-dir", folder)]
    kept = [override for override in overrides if not override.startswith(OF_SWEEPS)]
    kept.sort(key=lambda override: not override.startswith("experiment="))  # samplers put it last
    note = {
        "job": hydra.job.num,
        "overrides": dict(override.lstrip("+~").partition("=")[::2] for override in overrides),
        "command": shlex.join(["python", "-m", "ihc2he.train", *own, *kept]),
        "status": status,
        "metric": config.optimized_metric,
        "lowest": str(hydra.sweeper.get("direction", "maximize")).endswith("minimize"),  # which value is the best
        "value": value,
    }
    with complete(Path(hydra.runtime.output_dir) / "job.json") as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def write_tables(folder: Path) -> None:
    """Write `sweep.csv`; `mean_sd.csv` where jobs repeat a setting; `best.txt` and `sweep.png` where they have values.

    Args:
        folder: of the sweep; every job's folder below it has a `job.json`, and a `test.csv` where it was tested.
    """
    jobs = []
    for file in folder.rglob("job.json"):
        jobs.append(json.loads(file.read_text(encoding="utf-8")) | {"metrics": _metrics(file.with_name("test.csv"))})
    jobs.sort(key=lambda job: job["job"])
    rows = []
    for job in jobs:
        optimized = {job["metric"]: job["value"]} if job["metric"] else {}
        rows.append({"job": job["job"], **job["overrides"], "status": job["status"], **optimized, **job["metrics"]})
    write_csv(folder / "sweep.csv", rows)
    if means := mean_sd(jobs):
        write_csv(folder / "mean_sd.csv", means)
    if judged := [job for job in jobs if job["value"] is not None and isfinite(job["value"])]:
        with complete(folder / "best.txt") as temporary:
            temporary.write_text(best(judged), encoding="utf-8")
        if len(numbers := varied_numbers(judged)) > 1:
            with complete(folder / "sweep.png") as temporary:
                _parallel_coordinates(temporary, numbers, judged)


def best(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Return the command line of the best job, below a comment that says how good it is.

    Args:
        jobs: mappings with `job`, `command`, `metric`, `lowest` and a finite `value`, one at least.

    >>> jobs = [{"job": i, "command": f"run lr={i}", "metric": "val/f1", "lowest": False, "value": i} for i in (1, 2)]
    >>> print(best(jobs), end="")
    # val/f1 2, the highest of 2 jobs: job 2
    run lr=2
    """
    lowest = jobs[0]["lowest"]
    job = (min if lowest else max)(jobs, key=lambda job: job["value"])
    which = "lowest" if lowest else "highest"
    comment = f"# {job['metric']} {job['value']:.6g}, the {which} of {len(jobs)} jobs: job {job['job']}"
    return f"{comment}\n{job['command']}\n"


def varied_numbers(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the overrides that are numbers in all jobs and not the same in all, each with its values.

    >>> varied_numbers([{"overrides": {"lr": lr, "seed": "1", "tta": "true"}} for lr in ("1e-3", "2e-3")])
    {'lr': [0.001, 0.002]}
    """
    found = {}
    for key in jobs[0]["overrides"]:
        try:
            values = [float(job["overrides"][key]) for job in jobs]
        except (KeyError, ValueError):
            continue
        if len(set(values)) > 1:
            found[key] = values
    return found


def _parallel_coordinates(
    file: Path, numbers: Mapping[str, Sequence[float]], jobs: Sequence[Mapping[str, Any]]
) -> None:
    """Draw a line per job over an axis per number, coloured by the job's value, which is the last axis."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = {**numbers, jobs[0]["metric"]: [job["value"] for job in jobs]}
    heights = [_heights(values) for values in axes.values()]
    figure = Figure(figsize=(2 + 1.8 * len(axes), 4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for line in sorted(zip(*heights, strict=True), key=lambda line: line[-1]):  # the highest on top
        ax.plot(line, color=colormaps["viridis"](line[-1]), alpha=0.8)
    ax.vlines(range(len(axes)), 0, 1, color="black", linewidth=0.8)
    for x, values in enumerate(axes.values()):
        ax.text(x, 1.03, f"{max(values):.4g}", ha="center", va="bottom")
        ax.text(x, -0.03, f"{min(values):.4g}", ha="center", va="top")
    ax.set(xticks=range(len(axes)), xlim=(-0.5, len(axes) - 0.5), ylim=(-0.12, 1.12), yticks=[])
    ax.set_xticklabels([key.replace(".", ".\n") for key in axes])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.savefig(file, dpi=120)


def _heights(values: Sequence[float]) -> list[float]:
    """Return values from 0 for the least to 1 for the greatest, by their logarithms where they span a factor of 20."""
    if min(values) > 0 and max(values) / min(values) >= 20:
        values = [log10(value) for value in values]
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


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
