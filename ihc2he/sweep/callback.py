"""Results of a sweep: `sweep.csv` with a row per job, and `mean_sd.csv` over jobs that repeat the same setting.

With an `optimized_metric` there are also `best.txt` (the best job's command line), `sweep.png` (all jobs) and
`importance.png` (how much of the metric's variance each setting explains). At the end of an Optuna search these three
show all trials of its study, including those of earlier sweeps.
Imports neither torch nor Lightning, since Hydra loads it for every command line.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite, isnan, log10
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ihc2he.config import config_dir_arguments
from ihc2he.explain import one_line
from ihc2he.files import complete, write_csv

log = logging.getLogger(__name__)

REPETITIONS = ("data.split", "seed")  # jobs that differ only in these repeat the same setting
OF_SWEEPS = ("hparams_search=", "launcher=", "optimized_metric=", "callbacks.pruning")  # not useful for a single run


class SweepTables(Callback):
    """Records in each job's folder its settings and how it ended, and writes the results of the sweep after each job.

    Not only at the end, which a sweep with a failing job never reaches.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder for the sampler's study."""
        Path(config.paths.outputs).mkdir(parents=True, exist_ok=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record the job, so that a killed job has a row too."""
        _note(config, "started")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record how the job ended, and write the tables."""
        result = job_return._return_value  # the public property raises it if it is an error
        if job_return.status == JobStatus.COMPLETED:
            pruned = Path(config.hydra.runtime.output_dir, "pruned.txt").is_file()
            _note(config, "pruned" if pruned else "finished", result)
        else:
            _note(config, one_line(result))
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.sweep.dir)
            write_tables(folder)
            log.info("%s", _so_far(folder))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the tables again, because jobs that ended at the same time may have missed each other."""
        folder = Path(config.hydra.sweep.dir)
        write_tables(folder)
        _judge(folder, _trials(config, _jobs(folder)), "trial", f"study {config.hydra.sweeper.get('study_name')}")
        log.info("%s", _so_far(folder))
        if (folder / "best.txt").is_file():
            log.info("%s", (folder / "best.txt").read_text(encoding="utf-8").splitlines()[1])


def _so_far(folder: Path) -> str:
    """Return how the jobs of a sweep ended, where its table is, and which job is the best."""
    known = ("started", "finished", "pruned")  # the status of a failed job says why
    counts = Counter(job["status"] if job["status"] in known else "failed" for job in _jobs(folder))
    text = f"Sweep: {', '.join(f'{n} {status}' for status, n in counts.items())}: {folder / 'sweep.csv'}"
    file = folder / "best.txt"
    return f"{text}; best: {file.read_text(encoding='utf-8').splitlines()[0][2:]}" if file.is_file() else text


def _trials(config: DictConfig, jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials with a value in the database of an Optuna search; none without a database.

    Args:
        config: of the sweep.
        jobs: of the sweep; they have the name of the metric.
    """
    sweeper = config.hydra.sweeper
    if not sweeper.get("storage") or not jobs:
        return []
    import optuna

    study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    found = []
    for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        overrides = [f"{key}={value}" for key, value in {**trial.params, **trial.user_attrs}.items()]
        found.append({**jobs[0], **_description(config, overrides), "job": trial.number, "value": trial.value})
    return found


def _description(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings and the command line of a job with these overrides."""
    kept = [override for override in overrides if not override.lstrip("+~").startswith(OF_SWEEPS)]
    kept.sort(key=lambda override: not override.startswith("experiment="))  # samplers add it at the end
    return {
        "overrides": dict(override.lstrip("+~").partition("=")[::2] for override in kept),
        "command": shlex.join(["python", "-m", "ihc2he.train", *config_dir_arguments(config.hydra), *kept]),
    }


def _note(config: DictConfig, status: str, value: float | None = None) -> None:
    """Record a job of a sweep as `job.json`; jobs on other machines can do this too."""
    hydra = config.hydra
    if hydra.mode != RunMode.MULTIRUN:
        return
    note = {
        "job": hydra.job.num,
        **_description(config, [str(override) for override in hydra.overrides.task]),
        "status": status,
        "metric": config.optimized_metric,
        "lowest": str(hydra.sweeper.get("direction", "maximize")).endswith("minimize"),  # which value is the best
        "value": value,
    }
    with complete(Path(hydra.runtime.output_dir) / "job.json") as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def write_tables(folder: Path) -> None:
    """Write `sweep.csv`; `mean_sd.csv` if jobs repeat a setting; the best job and the pictures if they have values.

    Args:
        folder: of the sweep; every job's folder in it has a `job.json`, and a `test.csv` if it was tested.
    """
    jobs = _jobs(folder)
    rows = []
    for job in jobs:
        optimized = {job["metric"]: job["value"]} if job["metric"] else {}
        rows.append({"job": job["job"], **job["overrides"], "status": job["status"], **optimized, **job["metrics"]})
    write_csv(folder / "sweep.csv", rows)
    if means := mean_sd(jobs):
        write_csv(folder / "mean_sd.csv", means)
    _judge(folder, jobs)


def _jobs(folder: Path) -> list[dict[str, Any]]:
    """Return the recorded jobs of a sweep in their order, each with the `metrics` of its test."""
    files = folder.rglob("job.json")
    jobs = [json.loads(file.read_text()) | {"metrics": _metrics(file.with_name("test.csv"))} for file in files]
    return sorted(jobs, key=lambda job: job["job"])


def _judge(folder: Path, jobs: Sequence[Mapping[str, Any]], kind: str = "job", of: str = "this sweep") -> None:
    """Write `best.txt`, `sweep.png` and `importance.png` of the jobs, or trials, that have a value."""
    judged = [job for job in jobs if job["value"] is not None and isfinite(job["value"])]
    if not judged:
        return
    with complete(folder / "best.txt") as temporary:
        temporary.write_text(best(judged, kind, of), encoding="utf-8")
    about = f"{judged[0]['metric']} of {_counted(len(judged), kind)} of {of}"
    if settings := varied(judged):
        with complete(folder / "sweep.png") as temporary:
            _parallel_coordinates(temporary, settings, judged, about)
    if shares := importance(settings, [job["value"] for job in judged]):
        with complete(folder / "importance.png") as temporary:
            _bars(temporary, shares, about)


def best(jobs: Sequence[Mapping[str, Any]], kind: str = "job", of: str = "this sweep") -> str:
    """Return the command line of the best job, after a comment that says how good it is.

    Args:
        jobs: at least one mapping with `job`, `command`, `metric`, `lowest` and a finite `value`.
        kind: `job` or `trial`.
        of: the sweep or study, for the comment.

    >>> jobs = [{"job": i, "command": f"run lr={i}", "metric": "val/f1", "lowest": False, "value": i} for i in (1, 2)]
    >>> print(best(jobs), end="")
    # val/f1 2, the highest of 2 jobs of this sweep: job 2
    run lr=2
    """
    lowest = jobs[0]["lowest"]
    job = (min if lowest else max)(jobs, key=lambda job: job["value"])
    which = "lowest" if lowest else "highest"
    among = f"the {which} of {_counted(len(jobs), kind)} of {of}: {kind} {job['job']}"
    return f"# {job['metric']} {job['value']:.6g}, {among}\n{job['command']}\n"


def _counted(number: int, kind: str) -> str:
    return f"{number} {kind}{'s' if number > 1 else ''}"


def varied(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the settings that differ between jobs, each with its text in every job.

    >>> varied([{"overrides": {"lr": lr, "seed": "1"}} for lr in ("1e-3", "2e-3")])
    {'lr': ['1e-3', '2e-3']}
    """
    keys = dict.fromkeys(key for job in jobs for key in job["overrides"])
    found = {key: [job["overrides"].get(key, "-") for job in jobs] for key in keys}
    return {key: texts for key, texts in found.items() if len(set(texts)) > 1}


def _numbers(texts: Sequence[str]) -> list[float]:
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
    numbers = _numbers(texts)
    if len(set(numbers)) <= 4:
        return texts
    order = sorted(numbers)
    return [3 * order.index(number) // len(order) for number in numbers]


def _parallel_coordinates(
    file: Path, settings: Mapping[str, Sequence[str]], jobs: Sequence[Mapping[str, Any]], title: str
) -> None:
    """Draw one line per job and one axis per setting; the last axis and the colour are the job's value."""
    from matplotlib import colormaps

    values = [job["value"] for job in jobs]
    axes = [_axis(texts) for texts in settings.values()] + [_axis([repr(float(value)) for value in values])]
    names = [*settings, jobs[0]["metric"]]
    figure, ax = _canvas(2 + 1.9 * len(axes), 4.2)
    top = min(values) if jobs[0]["lowest"] else max(values)
    apart = [0.06 * (len(set(heights)) <= 4) for heights, _ in axes[:-1]]  # otherwise they would hide each other
    order = sorted(range(len(jobs)), key=lambda i: (values[i] == top, values[i]))  # the best in front
    for rank, i in enumerate(order):
        shift = (rank + 0.5) / len(jobs) - 0.5
        line = [heights[i] + part * shift for (heights, _), part in zip(axes, [*apart, 0], strict=True)]
        style = {"alpha": 1, "linewidth": 3} if values[i] == top else {"alpha": 0.7, "linewidth": 1.2}
        ax.plot(line, color=colormaps["viridis"](line[-1]), **style)
    ax.vlines(range(len(axes)), 0, 1, color="black", linewidth=0.8)
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    for x, (_, labels) in enumerate(axes):
        for height, label in labels.items():
            ax.text(x + 0.04, height, _short(label, 16), ha="left", va="center", fontsize=8, bbox=box)
    ax.set(xticks=range(len(axes)), xlim=(-0.3, len(axes) - 0.4), ylim=(-0.06, 1.06), yticks=[])
    ax.set_xticklabels([_folded(name) for name in names], fontsize=8)
    ax.set_title(f"{title}, the best one is thick", fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.savefig(file, dpi=120)


def _axis(texts: Sequence[str]) -> tuple[list[float], dict[float, str]]:
    """Return the heights of values on an axis from 0 to 1, and its labels by height.

    Numbers are at their values, or at their logarithms if they span a factor of 20; other values are evenly spaced.
    """
    numbers = _numbers(texts)
    if not numbers:
        levels = sorted(set(texts))
        heights = [levels.index(text) / max(len(levels) - 1, 1) for text in texts]
        labels = dict(zip(heights, texts, strict=True))
        return heights, labels if len(labels) <= 12 else {h: labels[h] for h in (0.0, 1.0)}
    scaled = [log10(n) for n in numbers] if min(numbers) > 0 and max(numbers) / min(numbers) >= 20 else numbers
    low, high = min(scaled), max(scaled)
    heights = [(value - low) / (high - low) if high > low else 0.5 for value in scaled]
    labels = {height: f"{number:.4g}" for height, number in zip(heights, numbers, strict=True)}
    return heights, labels if len(labels) <= 4 else {h: labels[h] for h in (0.0, 1.0)}


def _bars(file: Path, shares: Mapping[str, tuple[float, float]], title: str) -> None:
    """Draw a bar per setting, the longest on top, with a line at the length expected by chance."""
    ordered = sorted(shares, key=lambda key: shares[key])
    width = max(len(line) for key in ordered for line in _folded(key).splitlines())
    figure, ax = _canvas(5 + 0.08 * width, 1.4 + 0.45 * len(ordered))
    ax.barh(range(len(ordered)), [shares[key][0] for key in ordered], color="#3b6ea5", height=0.6)
    chance = [shares[key][1] for key in ordered]
    ends = ([y + d for y in range(len(ordered))] for d in (-0.4, 0.4))
    ax.vlines(chance, *ends, color="black", linewidth=2, label="expected by chance")
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the variance between a setting's levels (eta squared)", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_yticks(range(len(ordered)), [_folded(key) for key in ordered])
    ax.set_title(title, fontsize=9)
    ax.legend(fontsize=8, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure with a size in inches, without a display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _folded(name: str) -> str:
    r"""Return a dotted name on several lines if it is long, broken after dots, and after underscores in long parts.

    >>> _folded("model.discriminator.spectral_norm")
    'model.discriminator.\nspectral_norm'
    """
    parts = [piece for part in re.split(r"(?<=\.)", name)
             for piece in (re.split(r"(?<=_)", part) if len(part) > 24 else [part])]  # fmt: skip
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1] + part) > 24:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _short(text: str, most: int) -> str:
    """Return a text, without its middle if it is longer than a number of characters.

    >>> _short("a/long/path/to/some.ckpt", 12)
    'a/long...ckpt'
    """
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 3) :]}"


def _metrics(file: Path) -> dict[str, float]:
    """Return the values of a `test.csv` by `metric` or `metric/group`; none if there is no such file."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {"/".join(filter(None, (row["metric"], row["group"]))): float(row["value"]) for row in rows}


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
