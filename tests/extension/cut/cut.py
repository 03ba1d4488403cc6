"""A small CUT: unpaired translation of IHC to H&E with one generator, by contrast of patches (Park et al., ECCV 2020).

A patch of the made image has to resemble the same place of its source more than other places of it, in features of the
generator's own layers. So no second generator is needed to keep the content.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.losses.adversarial import together
from ihc2he.models.translation.module import Node, StainTranslation, require
from ihc2he.stain import Stain


class CUT(StainTranslation):
    """One generator, one discriminator, and a small head for each layer whose features are compared.

    Args:
        generator: with its layers in a Sequential `model`, as `ResnetGenerator` has them.
        discriminator: of H&E.
        optimizer: as in `StainTranslation`, and so are all that are not described here.
        layers: indices of the layers of `model` that are compared.
        n_patches: places per image and layer.
        temperature: of the contrast.
        lambda_nce: weight of the contrast; half of it is for H&E that the generator should leave as it is.
        width: of the heads.
    """

    g_ihc2he: nn.Module

    def __init__(
        self,
        generator: Node,
        discriminator: Node,
        optimizer: Mapping[str, Any],
        n_epochs: int = 200,
        n_epochs_decay: int = 200,
        layers: list[int] | None = None,
        n_patches: int = 256,
        temperature: float = 0.07,
        lambda_nce: float = 1.0,
        width: int = 256,
        ema_decay: float = 0.0,
        metrics: list[str] | None = None,
    ) -> None:
        require("n_patches", n_patches, n_patches >= 2, "2 or more")
        require("temperature", temperature, temperature > 0, "above 0")
        super().__init__(
            {"ihc2he": generator},
            {"he": discriminator},
            optimizer,
            n_epochs=n_epochs,
            n_epochs_decay=n_epochs_decay,
            ema_decay=ema_decay,
            metrics=metrics,
        )
        self.layers = sorted(layers or [0, 4, 7, 10, 14])
        self.n_patches, self.temperature, self.lambda_nce = n_patches, temperature, lambda_nce
        with torch.no_grad():
            channels = [feature.shape[1] for feature in self._features(torch.zeros(1, 3, 64, 64))]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)) for c in channels
        )

    def generator_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[Stain, Tensor]]:
        """Return the terms of the loss, and the made H&E."""
        ihc, he = batch["ihc"], batch["he"]
        made, same = together(self.g_ihc2he, ihc, he)
        losses = {
            "g_he": self.adversarial_loss("he", made),
            "nce_ihc": 0.5 * self.lambda_nce * self._contrast(ihc, made),
            "nce_he": 0.5 * self.lambda_nce * self._contrast(he, same),
        }
        return losses, {"he": made}

    def _contrast(self, source: Tensor, made: Tensor) -> Tensor:
        """Return the loss by which each patch of the made images has to find its place in the source; scalar."""
        losses = []
        for head, one, other in zip(self.heads, self._features(source), self._features(made), strict=True):
            places = torch.randperm(one[0, 0].numel(), device=one.device)[: self.n_patches]
            key_bnd, query_bnd = (
                F.normalize(head(x.flatten(2)[..., places].transpose(1, 2)).float(), dim=-1) for x in (one, other)
            )
            similar_bnn = query_bnd @ key_bnd.detach().transpose(1, 2) / self.temperature
            right_bn = torch.arange(len(places), device=one.device).expand(len(source), -1)
            losses.append(F.cross_entropy(similar_bnn.flatten(0, 1), right_bn.flatten()))
        return torch.stack(losses).mean()

    def _features(self, x_bchw: Tensor) -> list[Tensor]:
        """Return what the layers make of images, each (N, C, H, W)."""
        found = []
        for i, layer in enumerate(self.g_ihc2he.model[: self.layers[-1] + 1]):
            x_bchw = layer(x_bchw)
            if i in self.layers:
                found.append(x_bchw)
        return found
