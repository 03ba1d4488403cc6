"""How fast a training runs, and whether it waits for its data."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ihc2he.internals.lightning import logged_step


class Throughput(Callback):
    """Logs images per second, the share of the time that passes between steps, and the memory of a GPU.

    Each row, one per `log_every_n_steps` of the Trainer, stands for the steps since the one before; those up to the
    first, in which kernels are chosen and processes start, are left out, and so are validation, checkpoints and the
    turn of an epoch. Only the clock is read: the loggers' own look at the losses makes the CPU wait for a GPU, once
    per row, so a row begins and ends with nothing left to compute.

    Logged keys: `throughput/images_per_second`, of all ranks together, a pair of crops counting once;
    `throughput/data_wait`, 0 to 1, of a GPU an upper bound, since it may be busy while the CPU waits; and on a GPU
    `throughput/gpu_memory_gb`, the most that tensors have occupied so far on the first one, 1e9 bytes.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._row: int | None = None  # the step at which the present row began
        self._images = 0
        self._seconds = self._waiting = 0.0
        self._started = 0.0  # the present step
        self._ended: float | None = None  # the step before; None where something else has come between
        self._warm = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training."""
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Close the row of the steps before, where it is complete, and count the images of this one."""
        now = time.perf_counter()
        if self._ended is not None:
            self._seconds += now - self._ended
            self._waiting += now - self._ended
        self._close(trainer)
        self._started = now
        self._images += _size(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the end of the step."""
        self._ended = time.perf_counter()
        self._seconds += self._ended - self._started

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out what happens until the next step."""
        self._ended = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out what happens until the next step."""
        self._ended = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out what happens until the next step."""
        self._ended = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the last row, where it is complete."""
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        """Log the present row and begin the next where the loggers have just had a step."""
        step, every = logged_step(trainer), trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or step % every or step == self._row:
            return
        if self._warm:
            self._log(trainer, step - 1)
        self._warm = self._row is not None
        self._row, self._images, self._seconds, self._waiting = step, 0, 0.0, 0.0

    def _log(self, trainer: Trainer, step: int) -> None:
        values = {
            "throughput/images_per_second": self._images * trainer.world_size / self._seconds,
            "throughput/data_wait": self._waiting / self._seconds,
        }
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["throughput/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        for logger in trainer.loggers:
            logger.log_metrics(values, step)


def _size(batch: Any) -> int:
    """Return the number of images in a batch: the length of its first tensor."""
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else [batch]
    return next((len(value) for value in values if isinstance(value, Tensor)), 0)
