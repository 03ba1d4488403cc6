"""Log lines on the progress of a training, for runs without a terminal that could show a progress bar."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

FIRST_WORD_S = 60  # after which a first epoch says how far it is; then at twice that time, and so on


class EpochLines(Callback):
    """Logs a line per epoch, with losses, validation and the time left, where standard output is no terminal.

    An epoch that lasts longer than a minute, the first of this process, says how far it is before it ends.
    """

    def __init__(self) -> None:
        self._speaks = False
        self._began = 0.0  # the present epoch
        self._next_word: float | None = None  # seconds into it; None: nothing more is said of this epoch
        self._batches = 0  # of it, in this process

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether anybody would see a progress bar."""
        self._speaks = trainer.is_global_zero and not sys.stdout.isatty()
        self._next_word = FIRST_WORD_S

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._began, self._batches = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say how far a long first epoch is."""
        self._batches += 1
        seconds = time.monotonic() - self._began
        if not self._speaks or self._next_word is None or seconds < self._next_word:
            return
        self._next_word = 2 * seconds
        total = float(trainer.num_training_batches)
        left = f", about {_duration(seconds / self._batches * (total - batch_idx - 1))} left of it" if total > 0 else ""
        of = f" of {total:.0f}" if total < float("inf") else ""
        log.info("Epoch %d%s: batch %d%s%s", trainer.current_epoch + 1, _of(trainer), batch_idx + 1, of,
                 left if of else "")  # fmt: skip

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
