"""The speed of a training, and whether it waits for data."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ihc2he.internals.lightning import logged_step


class Throughput(Callback):
    """Logs images per second, the share of time between steps, and the memory of a GPU.

    There is one row per `log_every_n_steps` of the Trainer, for the steps since the last row. Not counted are the steps
    up to the first row, in which kernels are chosen and processes start, and validation, checkpoints and the change of
    epochs. The callback only reads the clock. Once per row the loggers read the losses, which makes the CPU wait for
    the GPU, so the GPU is idle at the beginning and end of a row.

    Logged keys: `throughput/images_per_second`, of all ranks together; a pair of crops counts once.
    `throughput/data_wait`, 0 to 1; on a GPU an upper bound, because it may be busy while the CPU waits. On a GPU also
    `throughput/gpu_memory_gb`, the peak memory of tensors on the first GPU so far, in 1e9 bytes.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._row: int | None = None  # the first step of the current row
        self._images = 0
        self._seconds = self._waiting = 0.0
        self._started = 0.0  # the current step
        self._ended: float | None = None  # the previous step; None if something else happened in between
        self._warm = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset after an earlier training."""
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the row of the previous steps if it is complete, and count the images of this step."""
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
        """Log the last row if it is complete."""
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        """Log the current row and begin the next one, if the loggers have just logged a step."""
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
