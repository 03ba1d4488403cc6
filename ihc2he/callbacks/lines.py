"""Log lines on the progress of a run, where there is no terminal that could show a progress bar."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

log = logging.getLogger(__name__)

FIRST_WORD_S = 60  # after which something long says how far it is; then at twice that time, and so on
MOST_SILENCE_S = 600


class ProgressLines(Callback):
    """Logs how far a run is, where standard output is no terminal.

    A training gets a line per epoch, with losses, validation and the time left. The first epoch of this process, and a
    validation, test or prediction say how far they are if they last long: after 1, 2, 4 and 8 min, then every 10.
    """

    def __init__(self) -> None:
        self._speaks = False
        self._began = 0.0  # the present epoch, or validation, test or prediction
        self._next_word: float | None = None  # seconds into it; None: nothing more is said of this epoch
        self._batches = 0  # of it, in this process

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether anybody would see a progress bar."""
        self._start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._began, self._batches = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how far a long first epoch is."""
        epoch = f"Epoch {trainer.current_epoch + 1}{_of(trainer)}"
        self._count(epoch, batch_idx + 1, float(trainer.num_training_batches), " of it")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the epoch has brought."""
        if not self._speaks:
            return
        self._next_word = None
        seconds = time.monotonic() - self._began
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or -1
        left = f", about {_duration(seconds * (last - epoch))} left" if last > epoch else ""
        values = "".join(f", {key} {value:.4g}" for key, value in _shown(trainer).items())
        log.info("Epoch %d%s: %s%s%s", epoch, _of(trainer), _duration(seconds), left, values)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time, unless it is the validation of a training."""
        if _alone(trainer):
            self._start(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._start(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._start(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *of_batch: Any) -> None:
        """Say how far a long validation is."""
        if _alone(trainer):
            self._count("Validation", self._batches + 1, sum(trainer.num_val_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *of_batch: Any) -> None:
        """Say how far a long test is."""
        self._count("Test", self._batches + 1, sum(trainer.num_test_batches))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *of_batch: Any) -> None:
        """Say how far a long prediction is."""
        self._count("Prediction", self._batches + 1, sum(trainer.num_predict_batches))

    def _start(self, trainer: Trainer) -> None:
        self._speaks = trainer.is_global_zero and not sys.stdout.isatty()
        self._began, self._batches, self._next_word = time.monotonic(), 0, FIRST_WORD_S

    def _count(self, what: str, done: int, total: float, of_what: str = "") -> None:
        """Count a batch, and say how far it is where that is due."""
        self._batches += 1
        seconds = time.monotonic() - self._began
        if not self._speaks or self._next_word is None or seconds < self._next_word:
            return
        self._next_word = seconds + min(seconds, MOST_SILENCE_S)
        left = ""
        if 0 < total < float("inf"):
            left = f" of {total:.0f}, about {_duration(seconds / self._batches * (total - done))} left{of_what}"
        log.info("%s: batch %d%s", what, done, left)


def _alone(trainer: Trainer) -> bool:
    """Return whether a validation is no part of a training."""
    return trainer.state.fn == TrainerFn.VALIDATING


def _of(trainer: Trainer) -> str:
    return f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""


def _shown(trainer: Trainer) -> dict[str, float]:
    """Return what a progress bar would show, and what the checkpoints are chosen by."""
    monitored = {getattr(callback, "monitor", None) for callback in trainer.checkpoint_callbacks}
    chosen = {key: value for key, value in trainer.callback_metrics.items() if key in monitored}
    bar: dict[str, Any] = trainer.progress_bar_metrics
    shown = {key: value for key, value in bar.items() if key.startswith(("train/", "val/"))}
    return {key: float(value) for key, value in {**shown, **chosen}.items()}


def _duration(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> [_duration(seconds) for seconds in (4.2, 75, 3720, 90000)]
    ['4 s', '1 min 15 s', '1 h 2 min', '25 h 0 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
