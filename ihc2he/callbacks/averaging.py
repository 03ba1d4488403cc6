"""Averaged weights: what is validated, tested and exported is a moving average of the weights that are trained."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ihc2he.errors import require_setting


class AveragedWeights(WeightAveraging):
    """Keeps an exponential moving average of weights and batch statistics, which stands in for them in evaluation.

    Checkpoints hold the average as the model's weights, and beside it what is needed to continue exactly.

    Args:
        decay: share of the average that is kept in each step.

    Raises:
        ConfigError: for a share that is not from 0 to below 1.
    """

    def __init__(self, decay: float = 0.99) -> None:
        require_setting("callbacks.average", "decay", decay, 0 <= decay < 1, "from 0 to below 1")
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights, but before the first step, when there is none."""
        if not trainer.sanity_checking:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        if not trainer.sanity_checking:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the weights that are trained, if they are; a test uses the average, which is already loaded."""
        if trainer.training:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
