"""Which checkpoints a run keeps, how they are written, and stopping when losses become NaN."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from ihc2he.callbacks.sigterm import hears_signals
from ihc2he.errors import Ihc2heError, require_setting
from ihc2he.files import complete
from ihc2he.internals.lightning import Saving

log = logging.getLogger(__name__)


class CheckpointError(Ihc2heError):
    """A checkpoint could not be written."""


class CompleteCheckpoints(TorchCheckpointIO):
    """Writes checkpoints under a temporary name first, so that they are complete under their own name; loads no code.

    Lightning's own class keeps the file in memory and moves it from the system's temporary folder. That folder may be
    on another disk, so a killed run can leave an incomplete file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: if it cannot be written, for instance because the disk is full; an older one is kept.
        """
        path = Path(path)
        try:
            with complete(path) as temporary, temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except (OSError, RuntimeError) as error:  # torch turns an OSError into a RuntimeError
            good = newest(path.parent.glob("[!.]*.ckpt"))
            kept = f"The last good checkpoint is {good}." if good else "No checkpoint had been written yet."
            found = next((line for line in str(error).splitlines() if line), type(error).__name__)
            free = shutil.disk_usage(path.parent).free / 1e9 if path.parent.is_dir() else 0.0
            msg = (
                f"{path} could not be written ({found}); {free:.1f} GB are free there. {kept} Make room, then continue."
            )
            raise CheckpointError(msg) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Return the content of a checkpoint without executing code from it."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def newest(paths: Iterable[Path]) -> Path | None:
    """Return the path whose file was written last, or None."""
    return max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime_ns, default=None)


class LastCheckpoint(Saving):
    """Keeps `last.ckpt`, from which a run continues exactly; written after and within each epoch, and on SIGTERM.

    After SIGTERM, which clusters send before they stop a job, the run finishes the current step (or validation), writes
    the checkpoint and ends. The checkpoint is never written while batches of a step are being accumulated, or between
    the last step of an epoch and its validation.

    Args:
        dirpath: folder of the checkpoints.
        every_n_epochs: how often it is written.
        every_n_steps: how often within an epoch; None = never.
    """

    def __init__(self, dirpath: str, every_n_epochs: int = 1, every_n_steps: int | None = None) -> None:
        super().__init__(
            dirpath,
            filename="last",
            every_n_epochs=every_n_epochs,
            save_top_k=1,
            save_on_train_epoch_end=True,  # after the schedulers have stepped, unlike at the end of validation
            enable_version_counter=False,
        )
        holds = every_n_steps is None or every_n_steps >= 1
        require_setting("callbacks.last", "every_n_steps", every_n_steps, holds, "1 or more, or null")
        self.every_n_steps = every_n_steps
        self._step = 0
        self._told = False  # this process got SIGTERM
        self._ending = False  # all processes agreed to stop, and the checkpoint is written
        self._handler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGTERM instead of Lightning, which would stop one rank in a step while others wait for it."""
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step
        self._told = self._ending = False
        if hears_signals():
            self._handler = signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        self._told = True

    def _unhear(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the run where the checkpoint for that has been written."""
        self._end()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint where it is due, or where any process was told to end."""
        before, self._step = self._step, trainer.global_step
        if before == self._step or trainer.is_last_batch:
            return
        due = self.every_n_steps is not None and self._step % self.every_n_steps == 0
        self._ending = trainer.strategy.reduce_boolean_decision(self._told, all=False)
        if (due or self._ending) and self.may_save(trainer) and is_finite(pl_module):
            self.save_now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint where it is due, or where any process was told to end."""
        self._ending = trainer.strategy.reduce_boolean_decision(self._told, all=False)
        if self._ending and self.may_save(trainer):
            self.save_now(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run where the checkpoint for that has been written."""
        self._end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop handling SIGTERM; end the run if SIGTERM came while the last epoch ended."""
        super().on_train_end(trainer, pl_module)
        self._unhear()
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop handling SIGTERM."""
        self._unhear()

    def _end(self) -> None:
        if self._ending:
            raise SIGTERMException

    def after_save(self, trainer: Trainer) -> None:
        """Write the log rows of the steps so far; they are not logged again."""
        for logger in trainer.loggers:
            logger.save()


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best validation metric; where it is not logged, or NaN, warns and keeps none.

    Args:
        dirpath: folder of the checkpoints.
        monitor: a logged key.
        mode: `min` or `max`.
        save_top_k: how many of the best to keep.
    """

    def __init__(self, dirpath: str, monitor: str, mode: str, save_top_k: int = 1) -> None:
        super().__init__(
            dirpath,
            filename="best_epoch{epoch:03d}",  # no '=', which the command line does not accept
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._said = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the metric is among the best."""
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(str(self.monitor))
        if value is not None and not value.isnan():  # where all are, Lightning would keep the first
            super().on_validation_end(trainer, pl_module)
        elif not self._said:
            self._said = True
            if value is not None:
                log.warning("'%s' is NaN in epoch %d, so it does not count for the best checkpoint.",
                            self.monitor, trainer.current_epoch)  # fmt: skip
                return
            known = sorted(key for key in trainer.callback_metrics if key.startswith("val/"))
            log.warning("'%s' is not logged, so only the last checkpoint is kept, not the best. Logged: %s.",
                        self.monitor, ", ".join(known) or "nothing")  # fmt: skip


def is_finite(module: nn.Module) -> bool:
    """Return whether all weights are finite."""
    return all(bool(weight.isfinite().all()) for weight in module.parameters())


class TrainingDivergedError(Ihc2heError):
    """A loss became NaN or infinite."""


class StopOnNaN(Callback):
    """Stops a run when its loss or weights are not finite, before they can be saved in a checkpoint.

    Each step stores on the device whether its loss was finite. This is read every `every_n_steps` batches and before
    checkpoints. The weights are checked then as well, because the last step may have damaged them.

    Args:
        every_n_steps: batches between two checks.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        require_setting("callbacks.stop_on_nan", "every_n_steps", every_n_steps, every_n_steps >= 1, "1 or more")
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
        """Check before the validation, which chooses the best checkpoint."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before the checkpoint of the epoch is written."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule | None = None) -> None:
        finite, self._finite = self._finite, None
        if (finite is None or bool(finite)) and (pl_module is None or is_finite(pl_module)):
            return
        good = newest(Path(getattr(callback, "best_model_path", "")) for callback in trainer.checkpoint_callbacks)
        kept = f"The last good checkpoint is {good}." if good else "No checkpoint had been written yet."
        automatic = trainer.lightning_module.automatic_optimization  # or the module clips by itself
        clip = "+trainer.gradient_clip_val=1" if automatic else "model.gradient_clip_val=1"
        msg = (
            f"The loss became NaN or infinite in epoch {trainer.current_epoch}, by step {trainer.global_step}. "
            f"{kept} Begin another run from it (ckpt_path=FILE) with {clip}, or from the start with "
            "a smaller model.optimizer.lr."
        )
        raise TrainingDivergedError(msg)
