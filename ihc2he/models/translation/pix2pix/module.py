"""pix2pix for stain translation (Isola et al., CVPR 2017), paired, in one direction, with losses for misaligned pairs.

Tiles of neighbouring sections show the same structures but not the same cells, so an L1 loss at full resolution blurs.
The pyramid loss (Liu et al., CVPR Workshops 2022) compares coarser images, and ASP (Li et al., MICCAI 2023) contrasts
patches and trusts those most that resemble each other. Images: (N, 3, H, W) floats in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.errors import ConfigError
from ihc2he.losses.patchnce import trust_in_pairs
from ihc2he.losses.pyramid import pyramid_l1
from ihc2he.models.translation.contrast import PatchContrast
from ihc2he.models.translation.module import Node, StainTranslation, direction_to, require
from ihc2he.stain import Stain


class Pix2Pix(StainTranslation):
    """One generator, and a discriminator that sees the source beside the made or the real image.

    The default arguments are pix2pix; the terms for misaligned pairs are off. Differs from the reference: the generator
    steps before the discriminator, and dropout is off when images are translated.

    Args:
        generator: node or module.
        discriminator: of six channels.
        optimizer: as in `StainTranslation`.
        to: the stain that is made, `he` or `ihc`.
        lambda_l1: weight of the L1 loss at full resolution.
        lambda_pyramid: weight of the L1 loss of each octave below it; 0 leaves it out.
        octaves: how many.
        lambda_asp: weight of the contrast of the made image with its partner; 0 leaves it out. The trust in the pairs
            falls in the epochs of the decay.
        lambda_nce: weight of the contrast of the made image with its source, as in CUT; 0 leaves it out.
        layers: whose features both contrasts compare, by index in the generator's `model`.
        n_patches: places per image and layer.
        temperature: of the contrasts.
        width: features of a patch.
        seed: of the places.
        options: of `StainTranslation`, the keyword-only ones.

    Raises:
        ConfigError: for a value outside its range, an unknown loss or metric, or data without pairs.
    """

    def __init__(
        self,
        generator: Node,
        discriminator: Node,
        optimizer: Mapping[str, Any],
        to: Stain = "he",
        lambda_l1: float = 100.0,
        lambda_pyramid: float = 0.0,
        octaves: int = 3,
        lambda_asp: float = 0.0,
        lambda_nce: float = 0.0,
        layers: Sequence[int] = (0, 4, 8, 12, 16),
        n_patches: int = 256,
        temperature: float = 0.07,
        width: int = 256,
        adversarial: str = "bce",
        seed: int = 0,
        **options: Any,
    ) -> None:
        weights = {"l1": lambda_l1, "pyramid": lambda_pyramid, "asp": lambda_asp, "nce": lambda_nce}
        for name, weight in weights.items():
            require(f"lambda_{name}", weight, weight >= 0, "0 or more")
        require("octaves", octaves, octaves >= 1, "1 or more")
        direction = direction_to(to)
        super().__init__(
            {direction: generator},
            {to: discriminator},
            optimizer=optimizer,
            adversarial=adversarial,
            **options,
        )
        self.lambda_l1, self.lambda_pyramid, self.octaves = lambda_l1, lambda_pyramid, octaves
        self.lambda_asp, self.lambda_nce, self.seed = lambda_asp, lambda_nce, seed
        if lambda_asp or lambda_nce:
            self.contrast = PatchContrast(self.generators[direction], layers, n_patches, temperature, width)

    @property
    def terms(self) -> dict[str, float]:
        """The weights of the terms that are on."""
        weights = {
            "adversarial": 1.0,
            "l1": self.lambda_l1,
            "pyramid": self.lambda_pyramid,
            "asp": self.lambda_asp,
            "nce": self.lambda_nce,
        }
        return {name: weight for name, weight in weights.items() if weight}

    def setup(self, stage: str) -> None:
        """Refuse to train on data whose stains do not show the same place."""
        super().setup(stage)
        if stage == "fit" and self.data.paired is False:
            msg = "model: pix2pix is trained on pairs. Pass data.paired=true with data=bci; other data has none."
            raise ConfigError(msg)

    def generator_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[Stain, Tensor]]:
        """Return the weighted terms of the generator's loss, and the made images."""
        (generator,) = self.generators.values()
        ((source, to),) = self.directions
        real = batch[to]
        made = generator(batch[source])
        losses = {f"g_{to}": self.adversarial_loss(to, torch.cat([batch[source], made], 1))}
        if self.lambda_l1:
            losses["l1"] = self.lambda_l1 * F.l1_loss(made.float(), real)
        if self.lambda_pyramid:
            losses["pyramid"] = self.lambda_pyramid * pyramid_l1(made, real, self.octaves)
        if self.lambda_nce:
            losses["nce"] = self.lambda_nce * self.contrast(generator, batch[source], made, self.draws)
        if self.lambda_asp:
            trust = trust_in_pairs(self.current_epoch, self.n_epochs, self.n_epochs_decay)
            losses["asp"] = self.lambda_asp * self.contrast(generator, real, made, self.draws, trust=trust)
        return losses, {to: made}

    def discriminator_losses(self, batch: dict[str, Any], made: dict[Stain, Tensor]) -> dict[str, Tensor]:
        """Return the loss of the discriminator, which sees each image beside its source."""
        ((source, to),) = self.directions
        real, fake = (torch.cat([batch[source], image], 1) for image in (batch[to], made[to]))
        return {f"d_{to}": self.discriminator_loss(self.discriminators[to], real, fake)}
