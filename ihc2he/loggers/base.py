"""Loggers with explicit arguments, so that a misspelt one is noticed, and that survive a resumed run."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ihc2he.errors import ConfigError
from ihc2he.files import write_csv
from ihc2he.loggers.lineage import outputs

log = logging.getLogger(__name__)

STEP = "trainer/global_step"  # what Lightning calls W&B's x axis; the same number as in the column step of metrics.csv


def logged_step(trainer: Trainer) -> int:
    """Return the step at which the Trainer logs scalars at present.

    That is batches of one process so far, or optimiser steps where the Trainer accumulates; `trainer.global_step` is
    ahead of it by one during a validation, and counts otherwise where a module accumulates by itself.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


class _AppendingWriter(ExperimentWriter):
    """Lightning's writer, which deletes the `metrics.csv` of a run that is resumed; this one goes on in it."""

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            content = file.read_bytes()
            os.truncate(file, content.rfind(b"\n") + 1)  # a killed run may have left half a line
            with file.open(newline="", encoding="utf-8") as stream:
                self.metrics_keys = next(csv.reader(stream), [])


def forget_rows(file: Path, step: int) -> None:
    """Drop from a `metrics.csv` what was logged at a step or later, for a run that takes those steps again."""
    if not file.is_file():
        return
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = [row for row in reader if (row["step"] or "").isdigit() and int(row["step"]) < step]
        write_csv(file, rows, reader.fieldnames)


class Csv(CSVLogger):
    """Scalars as `metrics.csv` in the run's folder; a resumed run goes on in the same file.

    Args:
        save_dir: the run's folder.
        flush_logs_every_n_steps: rows are written this often, and at the end.
    """

    def __init__(self, save_dir: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer behind this logger."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]

    def log_hyperparams(self, params: Any = None) -> None:
        """Write nothing: `config.yaml` of the run holds them."""


class Wandb(WandbLogger):
    """Weights & Biases; offline, with one line that says so, where nobody is logged in.

    The id of the run follows from its folder, so that a resumed run continues its curves. What the run leaves in the
    folder becomes artifacts: bundles as they are, checkpoints as a reference to their file. Online, `inputs` among the
    hyperparameters (see `ihc2he.loggers.lineage.inputs`) are declared as such; offline W&B cannot.

    Args:
        save_dir: the run's folder.
        project: of W&B.
        name: of the run; the end of its folder's path where None.
        group: joins runs, for instance those of a sweep.
        tags: shown beside the run.
        entity: user or team.
        offline: None decides by whether an API key is there.
        notes: free text.
        log_checkpoints: send the checkpoints too, which are large.

    Attributes:
        summaries: what the run's summary keeps of a key, or of those below it, instead of the last value: `min`, `max`
            or `mean`.
    """

    _open: ClassVar[Any] = None  # the run that this process has started last

    def __init__(
        self,
        save_dir: str,
        project: str = "ihc2he",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        offline: bool | None = None,
        notes: str | None = None,
        log_checkpoints: bool = False,
    ) -> None:
        if offline is None:
            offline = _offline_by_environment()
        super().__init__(
            name=name or Path(save_dir).name,
            save_dir=save_dir,
            id=run_id(save_dir),
            project=project,
            group=group,
            tags=tags,
            entity=entity,
            notes=notes,
            mode="offline" if offline else os.environ.get("WANDB_MODE", "online"),  # which may be `disabled`
            resume=None if offline else "allow",
        )
        self._wandb_init.pop("anonymous", None)  # Lightning still gives it, and W&B then warns that it means nothing
        self._can_declare = not offline
        self._log_checkpoints = log_checkpoints
        self._known: set[str] = set()  # hashes of the artifacts of this run
        self._defined: set[str] = set()
        self.summaries = {"throughput": "mean", "throughput/gpu_memory_gb": "max"}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run behind this logger; one that an earlier job of this process has left open is ended first."""
        if self._experiment is None:
            if Wandb._open is not None:
                Wandb._open.finish()
            Wandb._open = super().experiment
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration, and declare the run's inputs where W&B is online."""
        super().log_hyperparams(params)
        if self._can_declare:
            for found in params.get("inputs", []):
                self._add(found, self.experiment.use_artifact)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values; a NaN of which the best is kept is left out, for W&B would count it as the best ever after."""
        for key in metrics.keys() - self._defined:  # one by one: which of several patterns holds is left to chance
            self._defined.add(key)
            if kept := self._summary_of(key):
                self.experiment.define_metric(key, step_metric=STEP, summary=kept)
        shown = {key: value for key, value in metrics.items() if not (_is_nan(value) and self._summary_of(key))}
        super().log_metrics(shown, step)

    def _summary_of(self, key: str) -> str | None:
        return self.summaries.get(key) or self.summaries.get(key.rpartition("/")[0])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Log what the run has left as artifacts; end a failed run as failed."""
        if self._experiment is None:
            return
        if status != "success":
            self._experiment.finish(exit_code=1)
            return
        for found in outputs(str(self.save_dir)):
            self._add(found, self.experiment.log_artifact)

    def _add(self, found: Mapping[str, Any], declare: Callable[..., Any]) -> None:
        """Hand an artifact to W&B, once; that this fails is no reason to lose a training."""
        if found["hash"] in self._known or not Path(found["path"]).exists():
            return
        self._known.add(found["hash"])
        try:
            declare(_artifact(found, self._log_checkpoints), aliases=_aliases(found))
        except Exception as error:
            log.warning("W&B did not take the %s %s (%s); run.json names it.", found["kind"], found["path"], error)


def run_id(folder: str | Path) -> str:
    """Return W&B's id of the run in a folder."""
    return hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]


def _artifact(found: Mapping[str, Any], whole: bool) -> Any:
    """Return the artifact of an input or output: equal contents give the same version of it, whichever run adds them.

    Args:
        found: an entry of `inputs` or `outputs`.
        whole: send a checkpoint, instead of a reference to it.
    """
    import wandb

    path, facts = Path(found["path"]), {"hash": found["hash"], "made_by": found["made_by"]}
    if found["kind"] == "bundle":
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        artifact = wandb.Artifact(_plain(path.name), "model", metadata=config | facts)
        artifact.add_dir(str(path), policy="immutable", skip_cache=True)  # no copies of it in the user's home
    elif found["kind"] == "checkpoint":
        owner = f"-{run_id(found['made_by'])}" if found["made_by"] else ""
        artifact = wandb.Artifact(f"checkpoint{owner}", "checkpoint", metadata=facts)
        if whole:
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        else:
            artifact.add_reference(path.as_uri())
    else:
        artifact = wandb.Artifact(_plain(path.parent.name), "dataset", metadata=facts)
        artifact.add_reference(path.as_uri(), checksum=False)  # it may have many GB
        with artifact.new_file("hash.txt") as file:  # so another store at the same place is another version
            file.write(str(found["hash"]))
    return artifact


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _aliases(found: Mapping[str, Any]) -> list[str]:
    role = Path(found["path"]).stem.partition("_")[0]
    return ["latest", role] if found["kind"] == "checkpoint" and role in ("best", "last") else ["latest"]


def _plain(name: str) -> str:
    """Return a name with the characters that W&B takes."""
    return re.sub(r"[^\w.-]", "_", name)


def _offline_by_environment() -> bool:
    """Return whether W&B has to work offline, and say so once where that was nobody's choice."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode == "offline"
    import wandb

    if wandb.login(prompt=False, verify=False):
        return False
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        log.info("W&B: nobody is logged in, so the run is kept offline; send it later with `wandb sync`.")
    return True


class TensorBoard(TensorBoardLogger):
    """TensorBoard event files in `tensorboard/` of the run's folder; needs `pip install ihc2he[tensorboard]`.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        try:
            super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            msg = "logger=tensorboard needs TensorBoard: pip install 'ihc2he[tensorboard]'"
            raise ConfigError(msg) from error
