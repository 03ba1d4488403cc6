"""What models of stain translation share: generators by direction, two optimisers, averages, evaluation, exports.

A model of your own derives from `StainTranslation`, names its networks and returns the losses of its generators. Images
are (N, 3, H, W) floats in [-1, 1].
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import require_setting
from ihc2he.internals.lightning import count_no_steps, trainer_of
from ihc2he.losses import adversarial as gan
from ihc2he.metrics.cards import Card
from ihc2he.models.adversarial import AdversarialTask
from ihc2he.models.task import Export, Scores
from ihc2he.models.translation.evaluation import TranslationEvaluation
from ihc2he.models.translation.pool import ImagePool
from ihc2he.models.translation.starting import start_from
from ihc2he.ranks import from_all_ranks
from ihc2he.stain import STAINS, Stain

log = logging.getLogger(__name__)

require = partial(require_setting, "model")

Direction = Literal["ihc2he", "he2ihc"]
Node = Mapping[str, Any] | nn.Module

DIRECTIONS: dict[Direction, tuple[Stain, Stain]] = {"ihc2he": ("ihc", "he"), "he2ihc": ("he", "ihc")}
_MAKES: dict[Stain, Direction] = {to: direction for direction, (_, to) in DIRECTIONS.items()}


class StainTranslation(AdversarialTask):
    """Generators that translate IHC to H&E, or back, or both, and discriminators that judge what they make.

    A subclass gives the networks to `__init__` and overrides `generator_losses`; a discriminator that sees more than
    images of its stain needs `discriminator_losses` too. Networks that are trained with the generators are assigned as
    usual, after `super().__init__`. A constructor that takes `**options` and hands them on has all that follow
    `pools` here as arguments of its own. The arguments become `hparams`, without those that are modules.

    Batches are dicts: `ihc` and `he`, and for evaluation `name`, `group` and `paired` besides (see
    `ihc2he.data.translation`). `global_step` counts steps of the generators.

    Args:
        generators: by direction, a node or a module; nodes are built and modules are copied. They become `g_ihc2he`
            and `g_he2ihc`.
        discriminators: likewise, by the stain that they judge. They become `d_ihc` and `d_he`.
        optimizer: node of a `torch.optim.Optimizer` without its parameters.
        pools: histories of made images by stain, from which the discriminators see some.
        lr_discriminator: learning rate of the discriminators; the optimiser's own where None.
        n_epochs: epochs at the full learning rate.
        n_epochs_decay: epochs over which it then falls linearly towards 0.
        adversarial: `lsgan`, `bce`, `hinge` or `wgan_gp`.
        lambda_gp: weight of the gradient penalty of `wgan_gp` against the critic's loss, as published.
        label_smoothing: one-sided, of the discriminators' target for real images; `lsgan` and `bce`.
        ema_decay: of an exponential moving average of the generators, which then evaluates and is exported; 0 is off.
        gradient_clip_val: largest norm of the gradients, per optimiser; None is off.
        accumulate: batches per optimiser step.
        channels_last: memory format of the networks.
        compile: compile the networks in place.
        metrics: names from `ihc2he.metrics.fidelity.CARDS`, computed on pairs.
        features: feature network of FID and KID: `inception`, a node of an `nn.Module`, or None to leave them out.
        init: trained weights to start from: a checkpoint, a bundle (folder or hub id), or a run's folder of bundles.

    Raises:
        ConfigError: for a value outside its range, an unknown loss or metric, or smoothing with a loss that has no
            target.
    """

    if_inverted = "Restart with another seed"  # what a user can do where the stains look inverted
    seed = 0  # of `draws`

    def __init__(
        self,
        generators: Mapping[Direction, Node],
        discriminators: Mapping[Stain, Node],
        optimizer: Mapping[str, Any],
        pools: Mapping[Stain, ImagePool] | None = None,
        *,
        lr_discriminator: float | None = None,
        n_epochs: int = 100,
        n_epochs_decay: int = 100,
        adversarial: str = "lsgan",
        lambda_gp: float = 10.0,
        label_smoothing: float = 0.0,
        ema_decay: float = 0.0,
        gradient_clip_val: float | None = None,
        accumulate: int = 1,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002
        metrics: list[str] | None = None,
        features: str | Mapping[str, Any] | None = None,
        init: str | None = None,
    ) -> None:
        super().__init__(
            optimizer,
            lr_discriminator=lr_discriminator,
            n_epochs=n_epochs,
            n_epochs_decay=n_epochs_decay,
            adversarial=adversarial,
            label_smoothing=label_smoothing,
            ema_decay=ema_decay,
            gradient_clip_val=gradient_clip_val,
            compile=compile,
        )
        require("accumulate", accumulate, accumulate >= 1, "1 or more")
        with warnings.catch_warnings(action="ignore"):  # of modules; a checkpoint holds plain values only
            self.save_hyperparameters(ignore=["generators", "discriminators", "pools"], logger=False)
        for name in [name for name, given in self.hparams.items() if isinstance(given, nn.Module)]:
            del self.hparams[name]
        self.lambda_gp, self.accumulate = lambda_gp, accumulate
        self.channels_last, self._init = channels_last, init
        self._nodes = dict(generators)
        self._judges = tuple(discriminators)
        for direction, node in generators.items():
            self.add_module(f"g_{direction}", _network(node))
        for stain, node in discriminators.items():
            self.add_module(f"d_{stain}", _network(node))
        self.g_ema = nn.ModuleDict()
        if ema_decay > 0:
            for direction, network in self.generators.items():
                self.g_ema[f"g_{direction}"] = copy.deepcopy(network).requires_grad_(False)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.pools = dict(pools or {})
        self.draws = np.random.default_rng(0)  # of a training step, by (seed, epoch, batch): equal in all processes
        self.evaluation = TranslationEvaluation(metrics or [], features, tuple(to for _, to in self.directions))

    # ------------------------------------------------------------------ networks

    @property
    def directions(self) -> list[tuple[Stain, Stain]]:
        """The stains that each generator reads and makes, in their order."""
        return [DIRECTIONS[direction] for direction in self._nodes]

    @property
    def generators(self) -> dict[Direction, nn.Module]:
        """The trained generators by direction."""
        return {direction: self.get_submodule(f"g_{direction}") for direction in self._nodes}

    @property
    def discriminators(self) -> dict[Stain, nn.Module]:
        """The discriminators by the stain that they judge."""
        return {stain: self.get_submodule(f"d_{stain}") for stain in self._judges}

    @property
    def judges(self) -> list[nn.Module]:
        """The discriminators."""
        return list(self.discriminators.values())

    @property
    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        """The averaged generators, each with the one that is trained."""
        return [(average, self.get_submodule(name)) for name, average in self.g_ema.items()]

    @property
    def requires_checkpoint(self) -> bool:
        """Whether evaluation without a checkpoint would judge random weights."""
        return True

    @torch.no_grad()
    def translate(self, x_bchw: Tensor, to: Stain) -> Tensor:
        """Return images translated to a stain, by the averaged generator where `ema_decay` is on.

        Args:
            x_bchw: (N, 3, H, W) in [-1, 1], of the other stain.
            to: `he` or `ihc`, a stain that one of the generators makes.

        Returns:
            (N, 3, H, W) in [-1, 1], float32.
        """
        return self.generator(to)(self._in_format(x_bchw.to(self.dtype))).float()

    def generator(self, to: Stain) -> nn.Module:
        """Return the generator that makes a stain: the averaged one where there is one."""
        name = f"g_{_MAKES[to]}"
        return self.g_ema[name] if name in self.g_ema else self.get_submodule(name)

    @property
    def terms(self) -> dict[str, float]:
        """The weights of the terms of the generators' loss by name, without those that are off, for bundles."""
        return {}

    def exports(self) -> dict[str, Export]:
        """Return a translator for each direction, as `g_ihc2he` and `g_he2ihc`.

        `halo` is how far a pixel of its image sees, px; None: everywhere.
        """
        exports = {}
        for direction, node in self._nodes.items():
            source, to = DIRECTIONS[direction]
            network = self.generator(to)
            info = {
                "module": None if isinstance(node, nn.Module) else node,
                "role": "translator",
                "stain_in": STAINS[source],
                "stain_out": STAINS[to],
                "value_range": [-1.0, 1.0],
                "halo": getattr(network, "halo", None),
                "terms": self.terms,
            }
            exports[f"g_{direction}"] = Export(network, info)
        return exports

    def _in_format(self, x_bchw: Tensor) -> Tensor:
        return x_bchw.contiguous(memory_format=torch.channels_last) if self.channels_last else x_bchw

    # ------------------------------------------------------------------ losses

    def generator_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[Stain, Tensor]]:
        """Return the weighted terms of the generators' loss by name, scalars, and the made images by stain.

        Args:
            batch: of training, `ihc` and `he` in the networks' memory format.
        """
        raise NotImplementedError

    def adversarial_loss(self, stain: Stain, made_bchw: Tensor) -> Tensor:
        """Return the loss of a generator whose images the discriminator of a stain judges; scalar."""
        return gan.generator_loss(self.discriminators[stain](made_bchw), self.adversarial)

    def discriminator_losses(self, batch: dict[str, Any], made: dict[Stain, Tensor]) -> dict[str, Tensor]:
        """Return the terms of the discriminators' loss by name, scalars: of real images, and of made or older ones.

        Args:
            batch: of training.
            made: what `generator_losses` has returned, detached.
        """
        losses = {}
        for stain, discriminator in self.discriminators.items():
            fake = self.pools[stain].query(made[stain]) if stain in self.pools else made[stain]
            losses[f"d_{stain}"] = self.discriminator_loss(discriminator, batch[stain], fake)
        return losses

    def discriminator_loss(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of a discriminator; scalar.

        Args:
            discriminator: what is trained.
            real: what it should take for real.
            fake: what it should not, of the same shape, detached.
        """
        real_logits, fake_logits = gan.together(discriminator, real, fake)
        loss = gan.discriminator_loss(real_logits, fake_logits, self.adversarial, self.label_smoothing)
        if self.adversarial == "wgan_gp":
            loss = loss + 0.5 * self.lambda_gp * gan.gradient_penalty(discriminator, real, fake)  # half, as the loss
        return loss

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Compile in place, where asked, and give the pools of each rank their own stream of random numbers."""
        if self.compiles:
            for network in (*self.generators.values(), *self.discriminators.values()):
                network.compile()
        super().setup(stage)
        if stage == "fit":
            for pool in self.pools.values():
                pool.generator.manual_seed(pool.seed + len(self.pools) * self.global_rank)

    def on_fit_start(self) -> None:
        """Load the weights of `init`, unless a checkpoint or an earlier training has brought others."""
        if self._init is not None and self.trainer.ckpt_path is None:
            networks = {f"g_{direction}": [network] for direction, network in self.generators.items()}
            for name, averaged in self.g_ema.items():
                networks[name].append(averaged)
            judges = {f"d_{stain}": [network] for stain, network in self.discriminators.items()}
            nodes = {f"g_{direction}": node for direction, node in self._nodes.items()}
            start_from(self._init, networks | judges, nodes, self.data.mpp)
        self._init = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Step the generators, then the discriminators on the same made images; return the sum of their losses."""
        opt_g, opt_d = self.optimizers()  # type: ignore[attr-defined]
        count_no_steps(opt_d)
        self.draws = np.random.default_rng((self.seed, self.current_epoch, batch_idx))
        batch = batch | {stain: self._in_format(batch[stain]) for stain in STAINS}
        if batch_idx % self.accumulate == 0:
            opt_g.zero_grad()
            opt_d.zero_grad()

        with self.toggled_optimizer(opt_g):
            losses, made = self.generator_losses(batch)
            loss_g = torch.stack(list(losses.values())).sum()
            self._backward_and_step(loss_g, opt_g, batch_idx)
        if len(self.g_ema) and self._is_step(batch_idx):
            self.update_averages()

        with self.toggled_optimizer(opt_d):
            losses_d = self.discriminator_losses(batch, {stain: image.detach() for stain, image in made.items()})
            loss_d = torch.stack(list(losses_d.values())).sum()
            self._backward_and_step(loss_d, opt_d, batch_idx)

        shown = {"train/loss_g": loss_g, "train/loss_d": loss_d}
        self.log_dict({k: v.detach() for k, v in shown.items()}, prog_bar=True)
        self.log_dict({f"train/loss_{k}": v.detach() for k, v in (losses | losses_d).items()})
        return (loss_g + loss_d).detach()

    def _is_step(self, batch_idx: int) -> bool:
        return (batch_idx + 1) % self.accumulate == 0 or self.trainer.is_last_batch

    def _backward_and_step(self, loss: Tensor, optimizer: Any, batch_idx: int) -> None:
        self.manual_backward(loss / self.accumulate)
        if self._is_step(batch_idx):
            self.step(optimizer)

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        """Return the per-image results of a batch of whole tiles, as `rows`."""
        return {"rows": self._evaluate(batch)}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        """Return the per-image results of a batch of whole tiles, as `rows`."""
        return {"rows": self._evaluate(batch)}

    def _evaluate(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return self.evaluation.update(batch, {to: self.translate(batch[source], to) for source, to in self.directions})

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics and raise the alarm where the stains look inverted."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and raise the alarm where the stains look inverted."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        values = self.evaluation.compute_and_reset()
        # The ranks agree already; without sync_dist the Trainer would warn of each key.
        self.log_dict({f"{stage}/{key}": value for key, value in values.items()}, sync_dist=True)
        if not self.trainer.sanity_checking and (found := self.evaluation.inverted(values)):
            log.warning("INVERTED STAINS: %s. %s; do not use these weights.", found, self.if_inverted)

    @property
    def cards(self) -> Mapping[str, Card]:
        """The name cards of the logged metrics."""
        return self.evaluation.cards

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        """Return, for each image of a batch, the pictures to look at with their titles; (3, H, W) in [-1, 1]."""
        columns: dict[str, Tensor] = {}
        for source, to in self.directions:
            made = self.translate(batch[source], to)
            columns |= {STAINS[source]: batch[source], f"made {STAINS[to]}": made, f"real {STAINS[to]}": batch[to]}
            if (to, source) in self.directions:
                columns[f"{STAINS[source]} again"] = self.translate(made, source)
        return [[(title, images[i]) for title, images in columns.items()] for i in range(len(batch["ihc"]))]

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the image pools of all ranks."""
        if self.pools:
            checkpoint["image_pools"] = from_all_ranks({stain: pool.state_dict() for stain, pool in self.pools.items()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore this rank's image pools; a rank that the checkpoint does not know starts with empty ones."""
        if not self.pools:
            return
        saved, trainer = checkpoint.get("image_pools", []), trainer_of(self)
        if trainer is not None and trainer.training and len(saved) != trainer.world_size:
            log.warning(
                "The checkpoint is of %d processes, and this run has %d: image pools that are missing start empty, "
                "others are dropped. The run goes on, but not as the other would have done.",
                len(saved), trainer.world_size,
            )  # fmt: skip
        if self.global_rank < len(saved):
            for stain, pool in self.pools.items():
                pool.load_state_dict(saved[self.global_rank][stain])


def direction_to(to: Stain) -> Direction:
    """Return the direction that makes a stain.

    Raises:
        ConfigError: if there is no such stain.

    >>> direction_to("he")
    'ihc2he'
    """
    require("to", to, to in _MAKES, " or ".join(_MAKES))
    return _MAKES[to]


def _network(node: Node) -> nn.Module:
    return copy.deepcopy(node) if isinstance(node, nn.Module) else build(node, nn.Module)
