"""Optimisers with a learning rate of their own for the backbone, and schedules that may be one cycle of all steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from ihc2he.build import build
from ihc2he.config import locate
from ihc2he.errors import ConfigError


def parameter_groups(network: nn.Module, encoder: nn.Module, lr_encoder: float | None) -> list[dict[str, Any]]:
    """Return the parameters of a network, those of its encoder apart.

    Args:
        network: with the encoder in it.
        encoder: perhaps without parameters.
        lr_encoder: its learning rate; None: the optimiser's.
    """
    own = list(encoder.parameters())
    known = {id(parameter) for parameter in own}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in network.parameters() if id(parameter) not in known]}
    ]
    if own:
        groups.append({"params": own, **({} if lr_encoder is None else {"lr": lr_encoder})})
    return groups


def scheduled(optimizer: Optimizer, node: Mapping[str, Any], trainer: Trainer) -> Any:
    """Return an optimiser and its schedule, as `configure_optimizers` does.

    Args:
        optimizer: its learning rates are the peaks of a cycle.
        node: of a learning-rate scheduler, stepped each epoch; a `OneCycleLR` is stepped each batch.
        trainer: which has the steps that are left.
    """
    if locate(node["_target_"]) is not OneCycleLR:
        return [optimizer], [build(node, LRScheduler, optimizer=optimizer)]
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps, _ = _steps_left(trainer)
    cycle = build(node, OneCycleLR, optimizer=optimizer, max_lr=peaks, total_steps=steps)
    return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def check_cycles(trainer: Trainer) -> None:
    """Check, at the start of a training, that its learning-rate cycles are as long as the training.

    Raises:
        ConfigError: if one would end earlier, because a continued run was made longer.
    """
    cycles = [config.scheduler for config in trainer.lr_scheduler_configs]
    for cycle in [cycle for cycle in cycles if isinstance(cycle, OneCycleLR)]:
        wanted, per_epoch = _steps_left(trainer)
        left = cycle.total_steps - cycle.last_epoch
        if wanted - left >= per_epoch:  # less is the part of an epoch before the checkpoint
            msg = (
                f"model.scheduler: the cycle of the continued run has {left} steps left, and "
                f"trainer.max_epochs={trainer.max_epochs} makes {wanted}. Continue with the former number of epochs, "
                "or begin another run."
            )
            raise ConfigError(msg)


def _steps_left(trainer: Trainer) -> tuple[int, int]:
    """Return the steps from the start of this epoch to the end of the training, and those of an epoch.

    They are counted by epochs where there is a number of them, because two phases may have other batches.
    """
    steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs or -1
    if epochs < 1:
        return steps - trainer.global_step, 1
    per_epoch = math.ceil(steps / epochs)
    return min(steps, per_epoch * (epochs - trainer.current_epoch)), per_epoch
