"""Loggers with explicit arguments, so that a misspelt one is noticed, and that survive a resumed run."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from ihc2he.errors import ConfigError

log = logging.getLogger(__name__)


class _AppendingWriter(ExperimentWriter):
    """Lightning's writer, which deletes the `metrics.csv` of a run that is resumed; this one goes on in it."""

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            content = file.read_bytes()
            os.truncate(file, content.rfind(b"\n") + 1)  # a killed run may have left half a line
            with file.open(newline="", encoding="utf-8") as stream:
                self.metrics_keys = next(csv.reader(stream), [])


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

    The id of the run follows from its folder, so that a resumed run continues its curves.

    Args:
        save_dir: the run's folder.
        project: of W&B.
        name: of the run; the end of its folder's path where None.
        group: joins runs, for instance those of a sweep.
        tags: shown beside the run.
        entity: user or team.
        offline: None decides by whether an API key is there.
        notes: free text.
    """

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
    ) -> None:
        if offline is None:
            offline = _offline_by_environment()
        run_id = hashlib.sha256(str(Path(save_dir).resolve()).encode()).hexdigest()[:16]
        super().__init__(
            name=name or Path(save_dir).name,
            save_dir=save_dir,
            id=run_id,
            project=project,
            group=group,
            tags=tags,
            entity=entity,
            notes=notes,
            mode="offline" if offline else "online",
            resume=None if offline else "allow",
        )
        self._wandb_init.pop("anonymous", None)  # Lightning still gives it, and W&B then warns that it means nothing


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
            super().__init__(save_dir, name="tensorboard", version="")
        except ModuleNotFoundError as error:
            msg = "logger=tensorboard needs TensorBoard: pip install 'ihc2he[tensorboard]'"
            raise ConfigError(msg) from error
