"""Which checkpoints a run keeps, and the end of a run whose losses are no longer numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ihc2he.errors import Ihc2heError

log = logging.getLogger(__name__)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, the state after the last complete epoch, from which a run continues exactly.

    Args:
        dirpath: folder of the checkpoints.
        every_n_epochs: how often it is written.
    """

    def __init__(self, dirpath: str, every_n_epochs: int = 1) -> None:
        super().__init__(
            dirpath,
            filename="last",
            every_n_epochs=every_n_epochs,
            save_top_k=1,
            save_on_train_epoch_end=True,  # after the schedulers have stepped, unlike at the end of validation
            enable_version_counter=False,
        )


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best validation metric; where that metric is not logged, says so and keeps none.

    Args:
        dirpath: folder of the checkpoints.
        monitor: a logged key.
        mode: `min` or `max`.
        save_top_k: how many of the best to keep.
    """

    def __init__(self, dirpath: str, monitor: str, mode: str, save_top_k: int = 1) -> None:
        super().__init__(
            dirpath,
            filename="best_epoch{epoch:03d}",  # no '=', which the command line cannot take
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._said = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where the metric is among the best."""
        if trainer.sanity_checking:
            return
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        elif not self._said:
            self._said = True
            known = sorted(key for key in trainer.callback_metrics if key.startswith("val/"))
            log.warning("'%s' is not logged, so no best checkpoint is kept, only the last. Logged: %s.",
                        self.monitor, ", ".join(known) or "nothing")  # fmt: skip


class TrainingDivergedError(Ihc2heError):
    """A loss became NaN or infinite."""


class StopOnNaN(Callback):
    """Ends a run whose loss or weights are no longer finite, before a checkpoint can be made of it.

    Steps only remember on the device whether the loss was finite; the answer is fetched every `every_n_steps` batches
    and before checkpoints. The weights are looked at there too, for the last step may have spoilt them.

    Args:
        every_n_steps: batches between two looks.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._finite: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember whether the loss is finite."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        finite = torch.isfinite(loss.detach()).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._look(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before images of broken weights are judged, and the best checkpoint chosen."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the epoch's checkpoint is written."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule | None = None) -> None:
        finite, self._finite = self._finite, None
        weights = pl_module.parameters() if pl_module else ()
        if (finite is None or bool(finite)) and all(bool(p.isfinite().all()) for p in weights):
            return
        paths = [Path(getattr(callback, "best_model_path", "")) for callback in trainer.checkpoint_callbacks]
        good = max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
        kept = f"The last good checkpoint is {good}." if good else "No checkpoint had been written yet."
        msg = (
            f"The loss became NaN or infinite in epoch {trainer.current_epoch}, by step {trainer.global_step}. "
            f"{kept} Continue from it with a smaller model.optimizer.lr, or with model.gradient_clip_val=1."
        )
        raise TrainingDivergedError(msg)
