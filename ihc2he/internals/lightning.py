"""Private parts of Lightning that are used here: hooks of optimisers, counters of loops, and how it saves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers.logger import rank_zero_experiment

__all__ = ["rank_zero_experiment"]

CHATTY = ("lightning.pytorch", "lightning.fabric")  # its loggers, which have their own handlers


def count_no_steps(optimizer: Any) -> None:
    """Keep the steps of an optimiser out of `trainer.global_step`, which would count each optimiser's.

    Lightning sets its hooks again before every training step, so call this in every step.

    Args:
        optimizer: as `self.optimizers()` returns it, in manual optimisation.
    """
    optimizer._on_before_step = optimizer._on_after_step = lambda: None


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return the Trainer that a module is attached to, or None."""
    try:
        return module.trainer
    except RuntimeError:  # Lightning raises it if there is none
        return None


def shares_batch_statistics(trainer: Trainer) -> bool:
    """Return whether `sync_batchnorm` is on: whether layers were or will be replaced."""
    return getattr(trainer.strategy, "_layer_sync", None) is not None  # strategies of one device have none


def logged_step(trainer: Trainer) -> int:
    """Return the step at which the Trainer currently logs scalars.

    This is the number of batches of one process so far, or of optimiser steps if the Trainer accumulates.
    `trainer.global_step` is one more during a validation, and differs if a module accumulates by itself.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def next_step(checkpoint: Mapping[str, Any]) -> int:
    """Return the first step that a run logs when it continues from a checkpoint with this content."""
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]["current"]
    within_an_epoch = batches["completed"] < batches["ready"]  # the step is counted when the checkpoint is written
    return loops["epoch_loop.state_dict"]["_batches_that_stepped"] + within_an_epoch


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Return the number of complete epochs in the content of a checkpoint."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def knows_progress(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether the content of a checkpoint says how far the training was."""
    return "epoch_progress" in checkpoint["loops"].get("fit_loop", ())


def started_processes(trainer: Trainer) -> list[Any]:
    """Return the list of processes that the Trainer has started for other devices and watches; it may be empty."""
    return getattr(trainer.strategy.launcher, "procs", [])  # only one kind of launcher has some


def silence() -> None:
    """Hide warnings of Lightning about itself, about continued runs, and about those with nothing left to do."""
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "Total length of .* across ranks is zero")
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")


class ProgressBar(RichProgressBar):
    """Lightning's bar with epochs counted from 1: in the second of two it says 2/2, not 1/1."""

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs or -1
        return f"Epoch {current_epoch + 1}" + (f"/{last}" if last > 0 else "")


class Saving(ModelCheckpoint):
    """A ModelCheckpoint that can save at any time, with a hook after saving."""

    def may_save(self, trainer: Trainer) -> bool:
        """Return whether a checkpoint of this step makes sense: while training, once for each step."""
        return not self._should_skip_saving_checkpoint(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """Save a checkpoint; only for one that monitors nothing."""
        self._save_topk_checkpoint(trainer, {})

    def after_save(self, trainer: Trainer) -> None:
        """Do nothing; called on every rank after each checkpoint."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.after_save(trainer)
