"""Random numbers of a training step that follow from the step alone."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SeedSteps(Callback):
    """Seeds torch's global generator before every training step, by (seed, step, rank).

    Dropout, gradient penalties and whatever else draws from it are so the same in a run that was continued in the
    middle of an epoch, and differ between ranks.

    Args:
        seed: of the run, below 2^32.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed for this step."""
        step = trainer.fit_loop.total_batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(self.seed << 32 | step % 2**32)  # steps of neighbouring seeds never meet
