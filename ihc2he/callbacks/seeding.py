"""Random numbers of a training step that depend only on the step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SeedSteps(Callback):
    """Seeds torch's global generator before every training step, by (seed, step, rank).

    So dropout, gradient penalties and so on are the same in a run that was continued in the middle of an epoch, and
    they differ between ranks.

    Args:
        seed: of the run, below 2^32.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed for this step."""
        step = trainer.fit_loop.total_batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(self.seed << 32 | step % 2**32)  # runs with neighbouring seeds never share a seed
