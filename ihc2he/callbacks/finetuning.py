"""Training in two phases: first with a frozen encoder, then the whole network."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.errors import ConfigError
from ihc2he.internals.lightning import epochs_done

log = logging.getLogger(__name__)


class TwoPhases(Callback):
    """Keeps `pl_module.encoder` frozen for the first epochs, then trains the whole network.

    Frozen means that no weight has a gradient, and batch normalisation does not use or update statistics of the batch
    (in the reference implementation six weights and all running statistics still change). An encoder with random
    weights (`pl_module.pretrained` is False) is not frozen, and a log line says so. The phase depends only on the
    epoch, so a resumed run does the same.

    Args:
        frozen_epochs: length of the first phase; 0 = only the second phase.
        batch_size: of the second phase; None = that of the DataModule.
        restart: begin the second phase with a new optimiser and schedule, as the reference does.
    """

    def __init__(self, frozen_epochs: int = 50, batch_size: int | None = None, restart: bool = True) -> None:
        self.frozen_epochs = frozen_epochs
        self.batch_size = batch_size
        self.restart = restart

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Without a first phase, begin with the batch size of the second; say so if nothing can be frozen."""
        if not self.frozen_epochs:
            self._set_batch_size(trainer)
        elif not pl_module.pretrained:
            log.warning(
                "The encoder starts from random weights (model.encoder.weights=null), so it is not frozen in the first "
                "%d epochs: they train all of the network.",
                self.frozen_epochs,
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the batch size of the phase in which the run continues, before its loader is built."""
        if not trainer.training:
            return
        if epochs_done(checkpoint) >= self.frozen_epochs:
            self._set_batch_size(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Freeze or not; after the strategy has got the network, because it must know all weights."""
        self._freeze(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Freeze or not, and start the second phase at its epoch."""
        self._freeze(trainer, pl_module)
        if trainer.current_epoch == self.frozen_epochs > 0:
            trainer.reload_dataloaders_every_n_epochs = 0  # type: ignore[attr-defined]
            if self.restart:
                trainer.strategy.setup_optimizers(trainer)
            log.info("Epoch %d: the second phase begins; the encoder is trained too.", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the second phase, have the loader rebuilt with its batch size."""
        if trainer.current_epoch + 1 == self.frozen_epochs and self.batch_size is not None:
            self._set_batch_size(trainer)
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def _freeze(self, trainer: Trainer, pl_module: Any) -> None:
        frozen = trainer.current_epoch < self.frozen_epochs and pl_module.pretrained
        pl_module.encoder.requires_grad_(not frozen)
        pl_module.encoder.train(not frozen)

    def _set_batch_size(self, trainer: Trainer) -> None:
        if self.batch_size is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "batch_size"):
            msg = f"callbacks: batch_size={self.batch_size} of the second phase needs a DataModule with a batch_size."
            raise ConfigError(msg)
        data.batch_size = self.batch_size
