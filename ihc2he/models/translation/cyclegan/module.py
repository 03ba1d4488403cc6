"""CycleGAN for stain translation (Zhu et al., ICCV 2017) as a LightningModule with manual optimisation.

The default arguments are the reference recipe. Images: (N, 3, H, W) floats in [-1, 1].
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ihc2he.build import build
from ihc2he.errors import ConfigError
from ihc2he.losses import adversarial as gan
from ihc2he.models.task import Export, Task
from ihc2he.models.translation.evaluation import Evaluation
from ihc2he.models.translation.pool import ImagePool
from ihc2he.ranks import from_all_ranks

log = logging.getLogger(__name__)

Stain = Literal["ihc", "he"]
Node = Mapping[str, Any] | nn.Module


class CycleGAN(Task):
    """Two generators and two discriminators that translate IHC to H&E and back without pairs.

    Batches are dicts: `ihc` and `he`, and for evaluation `name`, `group` and `paired` besides (see
    `ihc2he.data.stored`). `global_step` counts steps of the generators.

    Args:
        generator: node or module; a node is built twice, a module is copied. Modules are not saved in `hparams`.
        discriminator: likewise.
        optimizer: node of a `torch.optim.Optimizer` without its parameters.
        lr_discriminator: learning rate of the discriminators; the optimiser's own where None.
        n_epochs: epochs at the full learning rate.
        n_epochs_decay: epochs over which it then falls linearly towards 0.
        lambda_cycle: weight of the cycle loss.
        lambda_identity: weight of the identity loss, relative to `lambda_cycle`; 0 leaves it out.
        adversarial: `lsgan`, `bce`, `hinge` or `wgan_gp`.
        lambda_gp: weight of the gradient penalty of `wgan_gp`.
        label_smoothing: one-sided, of the discriminators' target for real images; `lsgan` and `bce`.
        pool_size: images in the history of fakes; 0 turns it off.
        ema_decay: of an exponential moving average of the generators, which then evaluates and is exported; 0 is off.
        gradient_clip_val: largest norm of the gradients, per optimiser; None is off.
        accumulate: batches per optimiser step.
        channels_last: memory format of the networks.
        compile: compile the networks in place.
        metrics: names from `ihc2he.metrics.fidelity.CARDS`, computed on pairs.
        features: feature network of FID and KID: `inception`, a node of an `nn.Module`, or None to leave them out.
        seed: of the image pool; the rank is added to it.

    Raises:
        ConfigError: for an unknown loss or metric, or smoothing with a loss that has no target.
    """

    @property
    def requires_checkpoint(self) -> bool:
        """Whether evaluation without a checkpoint would judge random weights."""
        return True

    def __init__(
        self,
        generator: Node,
        discriminator: Node,
        optimizer: Mapping[str, Any],
        lr_discriminator: float | None = None,
        n_epochs: int = 100,
        n_epochs_decay: int = 100,
        lambda_cycle: float = 10.0,
        lambda_identity: float = 0.5,
        adversarial: str = "lsgan",
        lambda_gp: float = 10.0,
        label_smoothing: float = 0.0,
        pool_size: int = 50,
        ema_decay: float = 0.0,
        gradient_clip_val: float | None = None,
        accumulate: int = 1,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002
        metrics: list[str] | None = None,
        features: str | Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        gan.check_mode(adversarial)
        for name, value, holds, expected in (
            ("n_epochs", n_epochs, n_epochs >= 0, "0 or more"),
            ("n_epochs_decay", n_epochs_decay, n_epochs_decay >= 0, "0 or more"),
            ("lambda_cycle", lambda_cycle, lambda_cycle >= 0, "0 or more"),
            ("lambda_identity", lambda_identity, lambda_identity >= 0, "0 or more"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "from 0 to below 1"),
            ("pool_size", pool_size, pool_size >= 0, "0 or more"),
            ("ema_decay", ema_decay, 0 <= ema_decay < 1, "from 0 to below 1"),
            ("gradient_clip_val", gradient_clip_val, gradient_clip_val is None or gradient_clip_val > 0, "above 0"),
            ("accumulate", accumulate, accumulate >= 1, "1 or more"),
        ):
            if not holds:
                msg = f"model.{name}={value}: expected {expected}."
                raise ConfigError(msg)
        if label_smoothing and adversarial not in ("lsgan", "bce"):
            msg = f"label_smoothing={label_smoothing} has no meaning for adversarial={adversarial}; set it to 0."
            raise ConfigError(msg)
        if compile and adversarial == "wgan_gp":
            msg = "compile=true cannot differentiate the penalty of adversarial=wgan_gp twice; set compile=false."
            raise ConfigError(msg)
        given = [
            name
            for name, net in (("generator", generator), ("discriminator", discriminator))
            if isinstance(net, nn.Module)
        ]
        self.save_hyperparameters(ignore=given, logger=False)
        self.automatic_optimization = False
        self.g_ihc2he, self.g_he2ihc = _two_of(generator)
        self.d_ihc, self.d_he = _two_of(discriminator)
        self.g_ema = nn.ModuleDict()
        if ema_decay > 0:
            for name in ("g_ihc2he", "g_he2ihc"):
                self.g_ema[name] = copy.deepcopy(getattr(self, name)).requires_grad_(False)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.pools = {"ihc": ImagePool(pool_size, seed), "he": ImagePool(pool_size, seed + 1)}
        self.evaluation = Evaluation(metrics or [], features)

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def translate(self, x_bchw: Tensor, to: Stain) -> Tensor:
        """Return images translated to a stain, by the averaged generator where `ema_decay` is on.

        Args:
            x_bchw: (N, 3, H, W) in [-1, 1], of the other stain.
            to: `he` or `ihc`.

        Returns:
            (N, 3, H, W) in [-1, 1], float32.
        """
        return self.generator(to)(self._in_format(x_bchw.to(self.dtype))).float()

    def generator(self, to: Stain) -> nn.Module:
        """Return the generator that makes a stain: the averaged one where there is one."""
        name = {"he": "g_ihc2he", "ihc": "g_he2ihc"}[to]
        return self.g_ema[name] if name in self.g_ema else getattr(self, name)

    def exports(self) -> dict[str, Export]:
        """Return what a bundle needs, by bundle name: the network and its description."""
        stains: dict[Stain, str] = {"ihc": "IHC", "he": "H&E"}
        directions: list[tuple[Stain, Stain]] = [("ihc", "he"), ("he", "ihc")]
        return {
            f"g_{source}2{to}": Export(
                self.generator(to),
                {
                    "module": self.hparams.get("generator"),
                    "role": "translator",
                    "stain_in": stains[source],
                    "stain_out": stains[to],
                    "value_range": [-1.0, 1.0],
                },
            )
            for source, to in directions
        }

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Compile in place, where asked, and give each rank its own pool stream."""
        if self.hparams["compile"]:
            for net in (self.g_ihc2he, self.g_he2ihc, self.d_ihc, self.d_he):
                net.compile()
        if stage == "fit":
            if self.hparams["gradient_clip_val"] is not None and self.trainer.precision == "16-mixed":
                msg = "gradient_clip_val would clip the scaled gradients of trainer.precision=16-mixed; use bf16-mixed."
                raise ConfigError(msg)
            seed = self.hparams["seed"] + 2 * self.global_rank
            self.pools["ihc"].generator.manual_seed(seed)
            self.pools["he"].generator.manual_seed(seed + 1)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:
        """Return one optimiser for both generators and one for both discriminators, with the linear decay of each."""
        node = dict(self.hparams["optimizer"])
        generators = [*self.g_ihc2he.parameters(), *self.g_he2ihc.parameters()]
        discriminators = [*self.d_ihc.parameters(), *self.d_he.parameters()]
        opt_g = build(node, Optimizer, params=generators)
        if self.hparams["lr_discriminator"] is not None:
            node["lr"] = self.hparams["lr_discriminator"]
        opt_d = build(node, Optimizer, params=discriminators)
        return [opt_g, opt_d], [LambdaLR(opt, self._lr_factor) for opt in (opt_g, opt_d)]

    def _lr_factor(self, epoch: int) -> float:
        decayed = max(0, epoch + 1 - self.hparams["n_epochs"])
        return max(0.0, 1.0 - decayed / (self.hparams["n_epochs_decay"] + 1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Step the generators, then the discriminators on the same fakes; return the sum of their losses."""
        opt_g, opt_d = self.optimizers()  # type: ignore[attr-defined]
        _step_silently(opt_d)
        ihc, he = self._in_format(batch["ihc"]), self._in_format(batch["he"])
        if batch_idx % self.hparams["accumulate"] == 0:
            opt_g.zero_grad()
            opt_d.zero_grad()

        with self.toggled_optimizer(opt_g):
            losses, fake_ihc, fake_he = self._generator_losses(ihc, he)
            loss_g = torch.stack(list(losses.values())).sum()
            self._backward_and_step(loss_g, opt_g, batch_idx)
        if len(self.g_ema) and self._is_step(batch_idx):
            self._update_ema()

        with self.toggled_optimizer(opt_d):
            losses_d = {
                "d_ihc": self._discriminator_loss(self.d_ihc, ihc, self.pools["ihc"].query(fake_ihc)),
                "d_he": self._discriminator_loss(self.d_he, he, self.pools["he"].query(fake_he)),
            }
            loss_d = losses_d["d_ihc"] + losses_d["d_he"]
            self._backward_and_step(loss_d, opt_d, batch_idx)

        shown = {"train/loss_g": loss_g, "train/loss_d": loss_d}
        self.log_dict({k: v.detach() for k, v in shown.items()}, prog_bar=True)
        self.log_dict({f"train/loss_{k}": v.detach() for k, v in (losses | losses_d).items()})
        return (loss_g + loss_d).detach()

    def _generator_losses(self, ihc: Tensor, he: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the weighted terms of the generators' loss, and the fakes in both stains.

        What a generator can translate at one time goes through it as one batch: instance normalisation keeps the images
        apart, so the results are those of separate calls.
        """
        hp = self.hparams
        cycle, identity = hp["lambda_cycle"], hp["lambda_cycle"] * hp["lambda_identity"]
        own = identity > 0
        fake_he = self.g_ihc2he(ihc)
        fake_ihc, again_ihc, *same_ihc = _together(self.g_he2ihc, he, fake_he, *([ihc] if own else []))
        again_he, *same_he = _together(self.g_ihc2he, fake_ihc, *([he] if own else []))
        losses = {
            "cycle_ihc": cycle * F.l1_loss(again_ihc.float(), ihc),
            "cycle_he": cycle * F.l1_loss(again_he.float(), he),
            "g_he": gan.generator_loss(self.d_he(fake_he), hp["adversarial"]),
            "g_ihc": gan.generator_loss(self.d_ihc(fake_ihc), hp["adversarial"]),
        }
        if own:
            losses["identity_he"] = identity * F.l1_loss(same_he[0].float(), he)
            losses["identity_ihc"] = identity * F.l1_loss(same_ihc[0].float(), ihc)
        return losses, fake_ihc, fake_he

    def _discriminator_loss(self, d: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        hp = self.hparams
        real_logits, fake_logits = _together(d, real, fake)
        loss = gan.discriminator_loss(real_logits, fake_logits, hp["adversarial"], hp["label_smoothing"])
        if hp["adversarial"] == "wgan_gp":
            loss = loss + hp["lambda_gp"] * gan.gradient_penalty(d, real, fake)
        return loss

    def _is_step(self, batch_idx: int) -> bool:
        return (batch_idx + 1) % self.hparams["accumulate"] == 0 or self.trainer.is_last_batch

    def _backward_and_step(self, loss: Tensor, optimizer: Any, batch_idx: int) -> None:
        self.manual_backward(loss / self.hparams["accumulate"])
        if not self._is_step(batch_idx):
            return
        if self.hparams["gradient_clip_val"] is not None:
            self.clip_gradients(optimizer, self.hparams["gradient_clip_val"], "norm")
        optimizer.step()

    @torch.no_grad()
    def _update_ema(self) -> None:
        for name, averaged in self.g_ema.items():
            online = getattr(self, name)
            torch._foreach_lerp_(list(averaged.parameters()), list(online.parameters()), 1 - self.hparams["ema_decay"])
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

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the per-image results of a batch of whole tiles, as `rows`."""
        return {"rows": self._evaluate(batch)}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the per-image results of a batch of whole tiles, as `rows`."""
        return {"rows": self._evaluate(batch)}

    def _evaluate(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        fake_he, fake_ihc = self.translate(batch["ihc"], "he"), self.translate(batch["he"], "ihc")
        return self.evaluation.update(batch, fake_he, fake_ihc)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics and raise the alarm where the stains look inverted."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        values = self.evaluation.compute_and_reset()
        # The ranks agree already; without sync_dist the Trainer would warn of each key.
        self.log_dict({f"{stage}/{key}": value for key, value in values.items()}, sync_dist=True)
        correlation = values.get("he/hematoxylin_correlation")
        if correlation is not None and correlation < 0 and not self.trainer.sanity_checking:
            log.warning(
                "INVERTED STAINS: hematoxylin of the made H&E correlates with that of its IHC at %.2f; below 0 means "
                "that nuclei and background have changed places. Raise model.lambda_identity or restart with another "
                "seed; do not use these weights.",
                float(correlation),
            )

    @property
    def cards(self) -> Mapping[str, Any]:
        """The name cards of the logged metrics: title, direction, protocol."""
        return self.evaluation.cards

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        """Return, for each image of a batch, the pictures to look at with their titles; (3, H, W) in [-1, 1]."""
        ihc, he = batch["ihc"], batch["he"]
        fake_he, fake_ihc = self.translate(ihc, "he"), self.translate(he, "ihc")
        columns = {
            "IHC": ihc, "made H&E": fake_he, "real H&E": he, "IHC again": self.translate(fake_he, "ihc"),
            "H&E": he, "made IHC": fake_ihc, "real IHC": ihc, "H&E again": self.translate(fake_ihc, "he"),
        }  # fmt: skip
        return [[(title, images[i]) for title, images in columns.items()] for i in range(len(ihc))]

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the image pools of all ranks."""
        own = {stain: pool.state_dict() for stain, pool in self.pools.items()}
        checkpoint["image_pools"] = from_all_ranks(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore this rank's image pools; a rank that the checkpoint does not know starts with empty ones."""
        pools = checkpoint.get("image_pools", [])
        rank = self.global_rank if self._trainer is not None else 0
        if getattr(self._trainer, "training", False) and len(pools) != self.trainer.world_size:
            log.warning(
                "The checkpoint is of %d processes, and this run has %d: image pools that are missing start empty, "
                "others are dropped. The run goes on, but not as the other would have done.",
                len(pools),
                self.trainer.world_size,
            )
        if rank < len(pools):
            for stain, state in pools[rank].items():
                self.pools[stain].load_state_dict(state)

    def _in_format(self, x_bchw: Tensor) -> Tensor:
        return x_bchw.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else x_bchw


def _together(net: nn.Module, *images: Tensor) -> tuple[Tensor, ...]:
    """Return what a network makes of several batches, which it sees as one."""
    return net(torch.cat(images)).split([len(image) for image in images])


def _two_of(node: Node) -> tuple[nn.Module, nn.Module]:
    if isinstance(node, nn.Module):
        return copy.deepcopy(node), copy.deepcopy(node)
    return build(node, nn.Module), build(node, nn.Module)


def _step_silently(optimizer: Any) -> None:
    """Keep an optimiser's steps out of `trainer.global_step`, which Lightning would count once per optimiser."""
    optimizer._on_before_step = optimizer._on_after_step = lambda: None
