"""What models with discriminators share: two optimisers, their schedule, clipping, and averages of the generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ihc2he.build import build
from ihc2he.errors import ConfigError, require_setting
from ihc2he.losses.adversarial import check_mode
from ihc2he.models.task import Task


class AdversarialTask(Task):
    """A model that is trained by manual optimisation against discriminators; its settings are kept as attributes.

    Args:
        optimizer: node of a `torch.optim.Optimizer` without its parameters.
        lr_discriminator: learning rate of the discriminators; the optimiser's own where None.
        n_epochs: epochs at the full learning rate.
        n_epochs_decay: epochs over which it then falls linearly towards 0.
        adversarial: `lsgan`, `bce`, `hinge` or `wgan_gp`.
        label_smoothing: one-sided, of the discriminators' target for real images; `lsgan` and `bce`.
        ema_decay: of an exponential moving average of the generators; 0 is off.
        gradient_clip_val: largest norm of the gradients, per optimiser; None is off.
        compile: compile the networks in place, kept as `compiles`.

    Raises:
        ConfigError: for a setting outside its range, an unknown loss, or settings that do not go together.
    """

    def __init__(
        self,
        optimizer: Mapping[str, Any],
        *,
        lr_discriminator: float | None,
        n_epochs: int,
        n_epochs_decay: int,
        adversarial: str,
        label_smoothing: float,
        ema_decay: float,
        gradient_clip_val: float | None,
        compile: bool,  # noqa: A002
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer, self.lr_discriminator = optimizer, lr_discriminator
        self.n_epochs, self.n_epochs_decay = n_epochs, n_epochs_decay
        self.adversarial, self.label_smoothing = adversarial, label_smoothing
        self.ema_decay, self.gradient_clip_val = ema_decay, gradient_clip_val
        self.compiles = compile
        self._check_settings()

    def _check_settings(self) -> None:
        check_mode(self.adversarial)
        for name in ("n_epochs", "n_epochs_decay"):
            require_setting("model", name, epochs := getattr(self, name), epochs >= 0, "0 or more")
        for name in ("label_smoothing", "ema_decay"):
            require_setting("model", name, share := getattr(self, name), 0 <= share < 1, "from 0 to below 1")
        clip = self.gradient_clip_val
        require_setting("model", "gradient_clip_val", clip, clip is None or clip > 0, "above 0")
        smoothing, loss = self.label_smoothing, self.adversarial
        if smoothing and loss not in ("lsgan", "bce"):
            msg = f"label_smoothing={smoothing} has no meaning for adversarial={loss}; set it to 0."
            raise ConfigError(msg)
        if self.compiles and loss == "wgan_gp":
            msg = "compile=true cannot differentiate the penalty of adversarial=wgan_gp twice; set compile=false."
            raise ConfigError(msg)

    @property
    def judges(self) -> Sequence[nn.Module]:
        """The discriminators."""
        raise NotImplementedError

    @property
    def averages(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """The averaged generators, each with the one that is trained; none where `ema_decay` is 0."""
        return ()

    def setup(self, stage: str) -> None:
        """Refuse clipping where gradients are scaled."""
        if stage == "fit" and self.gradient_clip_val is not None and self.trainer.precision == "16-mixed":
            msg = "gradient_clip_val would clip the scaled gradients of trainer.precision=16-mixed; use bf16-mixed."
            raise ConfigError(msg)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:
        """Return one optimiser for the discriminators and one for all else, with the linear decay of each."""
        judges = [p for network in self.judges for p in network.parameters()]
        apart = {id(p) for p in chain(judges, *(average.parameters() for average, _ in self.averages))}
        node = dict(self.optimizer)
        opt_g = build(node, Optimizer, params=[p for p in self.parameters() if id(p) not in apart])
        if self.lr_discriminator is not None:
            node["lr"] = self.lr_discriminator
        opt_d = build(node, Optimizer, params=judges)
        return [opt_g, opt_d], [LambdaLR(opt, self._lr_factor) for opt in (opt_g, opt_d)]

    def _lr_factor(self, epoch: int) -> float:
        decayed = max(0, epoch + 1 - self.n_epochs)
        return max(0.0, 1.0 - decayed / (self.n_epochs_decay + 1))

    def step(self, optimizer: Any) -> None:
        """Clip the gradients, where asked, and step an optimiser."""
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, "norm")
        optimizer.step()

    def averaging(self) -> float:
        """Return the share of itself that an averaged generator keeps in this step: `ema_decay`."""
        return self.ema_decay

    @torch.no_grad()
    def update_averages(self) -> None:
        """Move the averaged generators towards those that are trained."""
        # Not torch's AveragedModel: it begins with a copy of the first step, asks the device at every step whether it
        # has begun, and has other names of weights.
        average = get_ema_multi_avg_fn(self.averaging())
        for averaged, online in self.averages:
            average(list(averaged.parameters()), list(online.parameters()), 0)
            for kept, new in zip(averaged.buffers(), online.buffers(), strict=True):
                kept.copy_(new)

    def on_train_start(self) -> None:
        """Set the learning rates of the schedule, which a resumed run may have lengthened."""
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            for group, lr in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = lr * self._lr_factor(scheduler.last_epoch)

    def on_train_epoch_end(self) -> None:
        """Step both learning-rate schedulers, which manual optimisation leaves to the module."""
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            scheduler.step()
