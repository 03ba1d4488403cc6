"""The summary of a run in W&B: best values, size, duration, and worst tiles."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.callbacks.bundles import best_keeper
from ihc2he.callbacks.panels import plain_name
from ihc2he.callbacks.results import Results
from ihc2he.callbacks.worst import ranking, worst
from ihc2he.files import read_csv
from ihc2he.images.decoding import read_image
from ihc2he.internals.lightning import logged_step
from ihc2he.loggers.base import Wandb
from ihc2he.nuclei.drawing import fitted

THUMBNAIL_PX = 640
_EXTREME = {"higher": "max", "lower": "min"}  # W&B's word for the best value


class Summaries(Callback):
    """Completes the summary of a W&B run; without W&B it does nothing.

    Validation metrics show their best value instead of the last one; `pl_module.cards` say which direction is better.
    The summary also has `best/<monitored metric>`, `best/epoch`, `parameters`, `device`, `seconds/<stage>`, and after a
    test the table `worst_tiles`. It is ranked by the monitored metric; for a pipeline by the F1 of its pages of tiles.
    If the test has made a picture of a tile, the table shows it.

    Args:
        n_worst: number of rows of that table.
    """

    def __init__(self, n_worst: int = 16) -> None:
        self.n_worst = n_worst
        self._started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say which metrics are better high and which low; of one that is best between, the last value stays."""
        better = {f"val/{key}": card.better for key, card in pl_module.cards.items()}
        for callback in trainer.checkpoint_callbacks:
            if monitor := getattr(callback, "monitor", None):
                better[monitor] = "higher" if callback.mode == "max" else "lower"  # type: ignore[attr-defined]
        for logger in _of_wandb(trainer):
            logger.summaries |= {key: _EXTREME[which] for key, which in better.items() if which in _EXTREME}

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Complete the summary, after a stage that has not failed."""
        device = trainer.strategy.root_device
        facts: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "world_size": trainer.world_size,
            f"seconds/{getattr(stage, 'value', stage)}": round(time.perf_counter() - self._started, 2),
        }
        keeper = best_keeper(trainer) if stage == "fit" else None
        if keeper is not None:
            facts[f"best/{keeper.monitor}"] = float(keeper.best_model_score)  # type: ignore[arg-type]
            if epoch := re.search(r"epoch(\d+)", Path(keeper.best_model_path).name):
                facts["best/epoch"] = int(epoch[1])
        for logger in _of_wandb(trainer):
            logger.experiment.summary.update(facts)
            if stage == "test":
                self._log_worst(trainer, pl_module, logger)

    def _log_worst(self, trainer: Trainer, pl_module: Any, logger: Wandb) -> None:
        folder = next((callback.dirpath for callback in trainer.callbacks if isinstance(callback, Results)), None)  # type: ignore[attr-defined]
        if folder is None or not (rows := read_csv(folder / "results.csv")):
            return
        if (found := ranking(trainer, pl_module, rows[0])) is None:
            return
        files = _pictures(folder / "images")
        columns = list(dict.fromkeys(["picture", "name", "group", found.column, *rows[0]]))
        numbers = {column for column in columns[3:] if all(_is_number(row[column]) for row in rows)}
        table = []
        for row in worst(rows, found.column, found.better, self.n_worst, found.group):
            file = files.get(row["name"].replace("/", "_")) or files.get(plain_name(row["name"]))
            values = [_value(row[column], column in numbers) for column in columns[1:]]
            table.append([file and _thumbnail(file), *values])
        if table:
            logger.log_table("worst_tiles", columns, table, step=logged_step(trainer))


def _of_wandb(trainer: Trainer) -> list[Wandb]:
    found = [logger for logger in trainer.loggers if isinstance(logger, Wandb)]
    return found if trainer.is_global_zero else []


def _pictures(folder: Path) -> dict[str, Path]:
    """Return the pictures that a test has left, by the plain name of their tile."""
    files = [*sorted(folder.glob("test/*.png")), *sorted(folder.glob("worst/*.png"))]
    return {file.stem.partition("_")[2]: file for file in files}


def _thumbnail(file: Path) -> Any:
    import wandb

    return wandb.Image(fitted(read_image(file), 0, THUMBNAIL_PX)[0], file_type="jpg")


def _is_number(text: str) -> bool:
    """Return whether a cell of a CSV file may stand in a column of numbers: an empty one may."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _value(text: str, is_number: bool) -> float | str | None:
    return None if not text else float(text) if is_number else text
