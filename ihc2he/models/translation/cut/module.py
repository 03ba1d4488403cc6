"""CUT and FastCUT for stain translation (Park et al., ECCV 2020), unpaired and in one direction.

A patch of the made image has to resemble the same place of its source more than other places of it, in features of the
generator's own layers. So no second generator is needed to keep the content. Images: (N, 3, H, W) floats in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ihc2he.losses.adversarial import together
from ihc2he.models.translation.contrast import PatchContrast
from ihc2he.models.translation.module import Node, StainTranslation, direction_to, require
from ihc2he.stain import Stain


class CUT(StainTranslation):
    """One generator that keeps the content by contrast of patches, and one discriminator.

    The default arguments are CUT; `conf/model/fastcut.yaml` has those of FastCUT. One thing differs from the reference:
    the generator steps before the discriminator, as in CycleGAN, and not after it.

    Args:
        generator: with its layers in a Sequential `model`, as `ResnetGenerator` has them.
        discriminator: of the stain that is made.
        optimizer: as in `StainTranslation`.
        to: the stain that is made, `he` or `ihc`.
        lambda_gan: weight of the adversarial loss.
        lambda_nce: weight of the contrast.
        identity: half of the contrast is for images of the stain that is made, which should stay as they are.
        flip_equivariance: mirror half of the batches left to right before the generator.
        layers: whose features are compared, by index in the generator's `model`.
        n_patches: places per image and layer.
        temperature: of the contrast.
        width: features of a patch.
        seed: of the places and the mirroring.
        options: of `StainTranslation`, the keyword-only ones.

    Raises:
        ConfigError: for a value outside its range, an unknown loss or metric, or a generator without such layers.
    """

    if_inverted = "Raise model.lambda_nce or restart with another seed"

    def __init__(
        self,
        generator: Node,
        discriminator: Node,
        optimizer: Mapping[str, Any],
        to: Stain = "he",
        n_epochs: int = 200,
        n_epochs_decay: int = 200,
        lambda_gan: float = 1.0,
        lambda_nce: float = 1.0,
        identity: bool = True,
        flip_equivariance: bool = False,
        layers: Sequence[int] = (0, 4, 8, 12, 16),
        n_patches: int = 256,
        temperature: float = 0.07,
        width: int = 256,
        seed: int = 0,
        **options: Any,
    ) -> None:
        require("lambda_gan", lambda_gan, lambda_gan >= 0, "0 or more")
        require("lambda_nce", lambda_nce, lambda_nce > 0, "above 0")
        direction = direction_to(to)
        super().__init__(
            {direction: generator},
            {to: discriminator},
            optimizer=optimizer,
            n_epochs=n_epochs,
            n_epochs_decay=n_epochs_decay,
            **options,
        )
        self.lambda_gan, self.lambda_nce = lambda_gan, lambda_nce
        self.identity, self.flip_equivariance, self.seed = identity, flip_equivariance, seed
        self.contrast = PatchContrast(self.generators[direction], layers, n_patches, temperature, width)

    @property
    def terms(self) -> dict[str, float]:
        """The weights of the terms that are on."""
        weights = {"adversarial": self.lambda_gan, "nce": self.lambda_nce}
        return {name: weight for name, weight in weights.items() if weight}

    def generator_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[Stain, Tensor]]:
        """Return the weighted terms of the generator's loss, and the made images."""
        (generator,) = self.generators.values()
        ((source, to),) = self.directions
        flipped = self.flip_equivariance and self.draws.random() < 0.5
        given = [batch[stain] for stain in ((source, to) if self.identity else (source,))]
        made = together(generator, *(x_bchw.flip(-1) if flipped else x_bchw for x_bchw in given))
        losses = {f"g_{to}": self.lambda_gan * self.adversarial_loss(to, made[0])}
        for stain, real, fake in zip((source, to), given, made, strict=False):
            contrast = self.contrast(generator, real, fake, self.draws, flipped)
            losses[f"nce_{stain}"] = self.lambda_nce / len(given) * contrast
        return losses, {to: made[0]}
