"""A small pix2pix: paired translation of IHC to H&E (Isola et al., CVPR 2017)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.models.translation.module import Node, StainTranslation
from ihc2he.stain import Stain


class Pix2Pix(StainTranslation):
    """One generator, and a discriminator that sees the IHC beside the H&E; needs `data.paired=true`."""

    g_ihc2he: nn.Module
    d_he: nn.Module

    def __init__(
        self,
        generator: Node,
        discriminator: Node,
        optimizer: Mapping[str, Any],
        lambda_l1: float = 100.0,
        n_epochs: int = 100,
        n_epochs_decay: int = 100,
        metrics: list[str] | None = None,
    ) -> None:
        super().__init__(
            {"ihc2he": generator}, {"he": discriminator}, optimizer,
            n_epochs=n_epochs, n_epochs_decay=n_epochs_decay, metrics=metrics,
        )  # fmt: skip
        self.lambda_l1 = lambda_l1

    def generator_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[Stain, Tensor]]:
        made = self.g_ihc2he(batch["ihc"])
        losses = {
            "g_he": self.adversarial_loss("he", torch.cat([batch["ihc"], made], 1)),
            "l1": self.lambda_l1 * F.l1_loss(made.float(), batch["he"]),
        }
        return losses, {"he": made}

    def discriminator_losses(self, batch: dict[str, Any], made: dict[Stain, Tensor]) -> dict[str, Tensor]:
        real, fake = (torch.cat([batch["ihc"], he], 1) for he in (batch["he"], made["he"]))
        return {"d_he": self.discriminator_loss(self.d_he, real, fake)}


class PairDiscriminator(nn.Sequential):
    """Logits of patches of two images, (N, 6, H, W)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(
            nn.Conv2d(6, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, padding=1),
        )  # fmt: skip
