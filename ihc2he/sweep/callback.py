"""Results of a sweep: `report.html`, `sweep.csv` with a row per job, and `mean_sd.csv` over jobs that repeat a setting.

With an `optimized_metric` there are also `best.txt` (the best job's command line), `sweep.png` (all jobs) and
`importance.png` (how much of the metric's variance each setting explains). At the end of an Optuna search these three
show all trials of its study, including those of earlier sweeps.
Imports neither torch nor Lightning, since Hydra loads it for every command line.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ihc2he.config import config_dir_arguments
from ihc2he.explain import one_line
from ihc2he.files import write_text
from ihc2he.internals.hydra import outcome
from ihc2he.sweep.tables import ended, jobs_of, judge, write_tables
from ihc2he.typed import unquoted

log = logging.getLogger(__name__)

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
        result = outcome(job_return)
        if job_return.status == JobStatus.COMPLETED:
            pruned = Path(config.hydra.runtime.output_dir, "pruned.txt").is_file()
            _note(config, "pruned" if pruned else "finished", result)
        else:
            _note(config, one_line(result))
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.sweep.dir)
            write_tables(folder)
            _write_report(folder)
            log.info("%s", _so_far(folder))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the tables again, because jobs that ended at the same time may have missed each other."""
        folder = Path(config.hydra.sweep.dir)
        write_tables(folder)
        judge(folder, _trials(config, jobs_of(folder)), "trial", f"study {config.hydra.sweeper.get('study_name')}")
        log.info("Report: %s", _write_report(folder))
        log.info("%s", _so_far(folder))
        if (folder / "best.txt").is_file():
            log.info("%s", (folder / "best.txt").read_text(encoding="utf-8").splitlines()[1])


def _write_report(folder: Path) -> Path:
    from ihc2he.report.page import write_report  # it needs what no command line needs at its start

    return write_report(folder)


def _so_far(folder: Path) -> str:
    """Return how the jobs of a sweep ended, where its table is, and which job is the best."""
    text = f"Sweep: {ended(jobs_of(folder))}: {folder / 'sweep.csv'}"
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
    pairs = (override.lstrip("+~").partition("=")[::2] for override in kept)
    return {
        "overrides": {key: unquoted(value) for key, value in pairs},
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
        "better": _better(config),
        "value": value,
    }
    write_text(Path(hydra.runtime.output_dir) / "job.json", json.dumps(note, indent=2) + "\n")


def _better(config: DictConfig) -> str:
    """Return the direction of the metric: that of its card, which the run has noted, or else that of the search."""
    direction = config.hydra.sweeper.get("direction")  # a grid has none
    searched = "lower" if str(direction).endswith("minimize") else "higher"
    file = Path(config.hydra.runtime.output_dir) / "run.json"
    known = json.loads(file.read_text(encoding="utf-8")).get("better") if file.is_file() else None
    if known and direction and known != searched:
        log.warning("hydra.sweeper.direction=%s, but of %s %s is better: the search goes the wrong way. Pass the other "
                    "direction and a new hydra.sweeper.study_name, or choose another metric.",
                    direction, config.optimized_metric, known)  # fmt: skip
    return known or searched
