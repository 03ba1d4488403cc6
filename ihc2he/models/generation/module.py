"""One GAN for all: makes tiles of a given level; which GAN it is, networks, losses and settings say.

Tiles are (N, 3, S, S) floats in [-1, 1], levels (N,) numbers from 0.
Shape suffixes: b = batch, c = colour, h, w = height, width, d = latent size.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import ConfigError, did_you_mean, require_setting
from ihc2he.internals.lightning import count_no_steps
from ihc2he.losses import adversarial as gan
from ihc2he.metrics.cards import Card
from ihc2he.models.adversarial import AdversarialTask
from ihc2he.models.generation.blocks import Verdict
from ihc2he.models.generation.diffaugment import POLICIES, diff_augment
from ihc2he.models.generation.draws import Draws, between, latents
from ihc2he.models.generation.evaluation import GenerationEvaluation, collapsed, copies, shares
from ihc2he.models.generation.statistics import measure_statistics
from ihc2he.models.task import Export, Scores

log = logging.getLogger(__name__)

require = partial(require_setting, "model")

SHOWN = 8  # tiles in a row of the pictures


class Gan(AdversarialTask):
    """A generator of tiles by level, and a discriminator.

    Batches are dicts with `image` and `label`, and for evaluation `name` besides. A DataModule with a method
    `known_dataloader`, which gives the training tiles once and unchanged, lets the evaluation look for copies of them.
    `global_step` counts steps of the generator.

    The arguments become `hparams`. Whatever the number of processes, a step draws the same latent vectors.

    Args:
        generator: node of a network that maps (N, d) normal latents and (N,) levels to tiles; it is given
            `latent_size`, `n_classes` and `size` too.
        discriminator: node of a network that maps tiles and levels to a `Verdict`; it is given `n_classes` and `size`.
        optimizer: node of a `torch.optim.Optimizer` without its parameters.
        n_classes: levels.
        size: side of the tiles, px.
        latent_size: of the latent vector.
        adversarial: `bce`, `lsgan`, `hinge` or `wgan_gp`.
        lambda_gp: weight of the gradient penalty of `wgan_gp` against the critic's loss, as published.
        lambda_level: weight of the cross-entropy of the level, where the discriminator names it.
        label_smoothing: one-sided, of the discriminator's target for real tiles; `lsgan` and `bce`.
        d_steps: steps of the discriminator, each on a batch of its own, for each of the generator; counted over epochs.
        lr_discriminator: learning rate of the discriminator; the optimiser's own where None.
        n_epochs: epochs at the full learning rate.
        n_epochs_decay: epochs over which it then falls linearly towards 0.
        ema_decay: of an exponential moving average of the generator, which then evaluates and is exported; 0 is off. It
            rises to this value by (1 + step) / (10 + step), so that nothing is left of the random weights.
        diffaugment: changes of real and made tiles before the discriminator: `colour`, `translation`, `cutout`.
        gradient_clip_val: largest norm of the gradients, per optimiser; None is off.
        seed: of the latent vectors and other random numbers of training.
        channels_last: memory format of the networks.
        compile: compile the networks in place.
        metrics: names from `ihc2he.metrics.fidelity.CARDS`, of made tiles and the nearest real ones.
        features: network of KID, FID and the like: `inception`, a node of an `nn.Module`, or None to leave them out.

    Raises:
        ConfigError: for a value outside its range, an unknown loss, metric or change, or smoothing with a loss that has
            no target.
    """

    def __init__(
        self,
        generator: Mapping[str, Any],
        discriminator: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        *,
        n_classes: int = 4,
        size: int = 64,
        latent_size: int = 100,
        adversarial: str = "bce",
        lambda_gp: float = 10.0,
        lambda_level: float = 1.0,
        label_smoothing: float = 0.0,
        d_steps: int = 1,
        lr_discriminator: float | None = None,
        n_epochs: int = 100,
        n_epochs_decay: int = 0,
        ema_decay: float = 0.0,
        diffaugment: Sequence[str] = (),
        gradient_clip_val: float | None = None,
        seed: int = 0,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002
        metrics: list[str] | None = None,
        features: str | Mapping[str, Any] | None = None,
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
        for name, least, value in (
            ("n_classes", 1, n_classes), ("latent_size", 1, latent_size), ("d_steps", 1, d_steps), ("seed", 0, seed),
            ("lambda_gp", 0, lambda_gp), ("lambda_level", 0, lambda_level),
        ):  # fmt: skip
            require(name, value, value >= least, f"{least} or more")
        for name in diffaugment:
            if name not in POLICIES:
                msg = f"model.diffaugment: there is no '{name}'.{did_you_mean(name, POLICIES)}"
                raise ConfigError(msg)
        with warnings.catch_warnings(action="ignore"):
            self.save_hyperparameters(logger=False)
        self.d_steps, self.lambda_gp, self.lambda_level = d_steps, lambda_gp, lambda_level
        self.n_classes, self.size, self.latent_size = n_classes, size, latent_size
        self.diffaugment, self.seed, self.channels_last = diffaugment, seed, channels_last
        common = {"n_classes": n_classes, "size": size}
        self._node = {**generator, "latent_size": latent_size, **common}
        self.generator = build(self._node, nn.Module)
        self.discriminator = build({**discriminator, **common}, nn.Module)
        self.g_ema: nn.Module | None = None
        if ema_decay > 0:
            self.g_ema = copy.deepcopy(self.generator).requires_grad_(False)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.draws = Draws((seed,))  # of a training step
        self.evaluation = GenerationEvaluation(metrics or [], features)

    # ------------------------------------------------------------------ networks

    @property
    def judges(self) -> list[nn.Module]:
        """The discriminator."""
        return [self.discriminator]

    @property
    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        """The averaged generator with the one that is trained, where there is one."""
        return [] if self.g_ema is None else [(self.g_ema, self.generator)]

    @property
    def requires_checkpoint(self) -> bool:
        """Whether evaluation without a checkpoint would judge random weights."""
        return True

    @property
    def levels(self) -> list[str]:
        """The names of the levels, of the DataModule."""
        return list(self.data.classes)

    @torch.no_grad()
    def make(self, z_bd: Tensor, label_b: Tensor) -> Tensor:
        """Return tiles, by the averaged generator where `ema_decay` is on, as in evaluation.

        Args:
            z_bd: (N, d) normal latent vectors.
            label_b: (N,) levels.

        Returns:
            (N, 3, S, S) in [-1, 1], float32.
        """
        network = self.generator if self.g_ema is None else self.g_ema
        return network(z_bd.to(self.device).to(self.dtype), label_b.to(self.device)).float()

    def exports(self) -> dict[str, Export]:
        """Return the generator, as `generator`."""
        info = {
            "module": self._node,
            "role": "generator",
            "value_range": [-1.0, 1.0],
            "classes": self.levels,
            "size": self.size,
            "latent_size": self.latent_size,
            "adversarial": self.adversarial,
            "trained_on": list(self.data.trained_on),
        }
        return {"generator": Export(self.generator if self.g_ema is None else self.g_ema, info)}

    # ------------------------------------------------------------------ losses

    def _changed(self, x_bchw: Tensor) -> Tensor:
        """Return tiles as the discriminator sees them."""
        if self.channels_last:
            x_bchw = x_bchw.contiguous(memory_format=torch.channels_last)
        return diff_augment(x_bchw, self.diffaugment, self.draws)

    def _judge(self, x_bchw: Tensor, label_b: Tensor) -> Verdict:
        verdict = self.discriminator(x_bchw, label_b)
        return verdict if isinstance(verdict, Verdict) else Verdict(*verdict)

    def _fake(self, label_b: Tensor) -> Tensor:
        z_bd = self.draws.normal(len(label_b), self.latent_size).to(self.device).to(self.dtype)
        return self.generator(z_bd, label_b)

    def discriminator_losses(self, real_bchw: Tensor, label_b: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the discriminator's loss by name, scalars.

        Args:
            real_bchw: real tiles.
            label_b: their levels; as many tiles of the same levels are made.
        """
        with torch.no_grad():
            fake_bchw = self._fake(label_b)
        real_bchw, fake_bchw = self._changed(real_bchw), self._changed(fake_bchw)
        # One after the other, as is usual: batch normalisation must not mix real and made tiles.
        real, fake = self._judge(real_bchw, label_b), self._judge(fake_bchw, label_b)
        losses = {"d": gan.discriminator_loss(real.logits_b, fake.logits_b, self.adversarial, self.label_smoothing)}
        if self.adversarial == "wgan_gp":
            mix_b = self.draws.uniform(len(label_b))
            penalty = gan.gradient_penalty(
                lambda x_bchw: self.discriminator(x_bchw, label_b)[0], real_bchw, fake_bchw, mix_b=mix_b
            )
            losses["penalty"] = 0.5 * self.lambda_gp * penalty  # half, as the loss of the critic
        if real.levels_bk is not None and fake.levels_bk is not None:
            both = [F.cross_entropy(verdict.levels_bk.float(), label_b) for verdict in (real, fake)]  # type: ignore[union-attr]
            losses["d_level"] = self.lambda_level * 0.5 * (both[0] + both[1])
        return losses

    def generator_losses(self, label_b: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the generator's loss by name, scalars.

        Args:
            label_b: levels of the tiles to make.
        """
        verdict = self._judge(self._changed(self._fake(label_b)), label_b)
        losses = {"g": gan.generator_loss(verdict.logits_b, self.adversarial)}
        if verdict.levels_bk is not None:
            losses["g_level"] = self.lambda_level * F.cross_entropy(verdict.levels_bk.float(), label_b)
        return losses

    # ------------------------------------------------------------------ training

    def averaging(self) -> float:
        """Return `ema_decay`, or less in the first steps."""
        return min(self.ema_decay, (1 + self.global_step) / (10 + self.global_step))

    def setup(self, stage: str) -> None:
        """Compile in place, where asked, and check that the data has these levels and this size."""
        super().setup(stage)
        if self.compiles:
            self.generator.compile()
            self.discriminator.compile()
        levels = self.levels
        if levels and len(levels) != self.n_classes:
            msg = f"model.n_classes={self.n_classes}: the data has {len(levels)} levels: {', '.join(levels)}."
            raise ConfigError(msg)

    def on_train_start(self) -> None:
        """Set the learning rates, and refuse epochs in which the generator would not step."""
        super().on_train_start()
        if (n := self.trainer.num_training_batches) < self.d_steps:
            msg = (
                f"model.d_steps={self.d_steps}: an epoch has only {n} batches, so the generator would not step in it. "
                "Pass a larger data.samples_per_epoch or a smaller data.batch_size."
            )
            raise ConfigError(msg)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Step the discriminator, and the generator after every `d_steps` batches; return the sum of their losses."""
        opt_g, opt_d = self.optimizers()  # type: ignore[attr-defined]
        count_no_steps(opt_d)
        real_bchw, label_b = batch["image"], batch["label"]
        self._check_tiles(real_bchw)
        self.draws = Draws((self.seed, self.current_epoch, batch_idx), self.global_rank, self.trainer.world_size)
        losses = self._descend(opt_d, partial(self.discriminator_losses, real_bchw, label_b), "train/loss_d")
        if (self.trainer.fit_loop.epoch_loop.total_batch_idx + 1) % self.d_steps == 0:
            losses += self._descend(opt_g, partial(self.generator_losses, label_b), "train/loss_g")
            self.update_averages()
        return losses

    def _descend(self, optimizer: Any, terms: Any, name: str) -> Tensor:
        """Step one optimiser by the sum of its terms, which is logged with them and returned."""
        with self.toggled_optimizer(optimizer):
            optimizer.zero_grad()
            losses = terms()
            loss = torch.stack(list(losses.values())).sum()
            self.manual_backward(loss)
            self.step(optimizer)
        self.log(name, loss.detach(), prog_bar=True)
        if len(losses) > 1:
            self.log_dict({f"train/loss_{key}": value.detach() for key, value in losses.items() if key not in "gd"})
        return loss.detach()

    def _check_tiles(self, x_bchw: Tensor) -> None:
        if x_bchw.shape[1:] != (3, self.size, self.size):
            c, h, w = x_bchw.shape[1:]
            msg = (
                f"model.size={self.size}: the tiles have {h}x{w} px and {c} channels, expected {self.size}x{self.size} "
                "and 3. Pass the same data.size and model.size, and one stain."
            )
            raise ConfigError(msg)

    # ------------------------------------------------------------------ evaluation

    def on_validation_start(self) -> None:
        """Measure the batch statistics of the averaged generator, so that the best checkpoint has them."""
        if self.g_ema is not None:
            measure_statistics(self.g_ema, self.latent_size, self.n_classes)

    on_test_start = on_validation_start

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        """Compare real tiles with as many made ones of the same levels."""
        self._check_tiles(batch["image"])
        self.evaluation.update(batch, self._counterparts(batch))
        named = zip(batch["name"], self._levels_of(batch), strict=True)
        return {"rows": [{"name": name, "group": level} for name, level in named]}

    test_step = validation_step

    def _levels_of(self, batch: dict[str, Any]) -> list[str]:
        levels = self.levels
        return [levels[label] for label in batch["label"].tolist()]

    def _counterparts(self, batch: dict[str, Any]) -> Tensor:
        """Return made tiles of the levels of real ones, always the same by name."""
        seeds = [(int(blake2b(name.encode(), digest_size=7).hexdigest(), 16),) for name in batch["name"]]
        return self.make(latents(seeds, self.latent_size), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and raise the alarm where training tiles were copied."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics; say which levels have collapsed, and raise the alarm where tiles were copied."""
        values = self._log_evaluation("test")
        if found := collapsed(values, self.levels):
            log.warning(
                "MODE COLLAPSE, or tiles unlike real ones where the precision is low: %s.",
                ", ".join(f"{level} ({shares(values, level)})" for level in found),
            )

    def _log_evaluation(self, stage: str) -> dict[str, float]:
        known = getattr(self.trainer.datamodule, "known_dataloader", None)  # type: ignore[attr-defined]
        if known is not None and not self.evaluation.knows_training:
            self.evaluation.know(known())
        values = self.evaluation.compute_and_reset(self.levels)
        # The ranks agree already; without sync_dist the Trainer would warn of each key.
        self.log_dict({f"{stage}/{key}": value for key, value in values.items()}, sync_dist=True)
        if found := copies(self.evaluation.rows):
            row = found[0]
            log.warning(
                "COPIES of training tiles: %d of %d made tiles. One of level %s is like %s, at %.2f of the distance to "
                "the nearest unseen tile. Train for a shorter time, or on more tiles.",
                len(found), len(self.evaluation.rows), row["group"], row["nearest_trained"], row["train_ratio"],
            )  # fmt: skip
        return values

    @property
    def cards(self) -> Mapping[str, Card]:
        """The name cards of the logged metrics."""
        return self.evaluation.cards

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The made tiles of the last evaluation with their nearest real ones, as `samples.csv`."""
        return {"samples.csv": self.evaluation.rows}

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        """Return, for each tile of a batch, itself and a made one of its level."""
        made = self._counterparts(batch)
        return [
            [(level, real), (f"made {level}", fake)]
            for level, real, fake in zip(self._levels_of(batch), batch["image"], made, strict=True)
        ]

    def pictures(self) -> dict[str, list[tuple[str, Tensor]]]:
        """Return eight samples of each level, and the way from one latent vector to another for each; rows of eight."""
        z_bd = latents([(self.seed, i) for i in range(SHOWN)], self.latent_size)
        way_bd = between(z_bd[0], z_bd[1], SHOWN)
        rows = {"samples": z_bd, "interpolations": way_bd}
        return {
            name: [
                (level, image)
                for label, level in enumerate(self.levels)
                for image in self.make(z, torch.full((SHOWN,), label))
            ]
            for name, z in rows.items()
        }
