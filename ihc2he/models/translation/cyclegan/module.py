"""CycleGAN for stain translation (Zhu et al., ICCV 2017), unpaired and in both directions.

The default arguments are the reference recipe. Images: (N, 3, H, W) floats in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.errors import ConfigError
from ihc2he.losses.adversarial import together
from ihc2he.losses.content import nuclear_loss, segmentation_loss
from ihc2he.models.task import required_mpp
from ihc2he.models.translation.contrast import PatchContrast
from ihc2he.models.translation.frozen import FrozenSegmenter
from ihc2he.models.translation.module import Node, StainTranslation, require
from ihc2he.models.translation.pool import ImagePool
from ihc2he.stain import Stain


class CycleGAN(StainTranslation):
    """Two generators and two discriminators that translate IHC to H&E and back without pairs.

    Args:
        generator: node or module; a node is built twice, a module is copied. Modules are not saved in `hparams`.
        discriminator: likewise.
        optimizer: as in `StainTranslation`.
        lambda_cycle: weight of the cycle loss.
        lambda_identity: weight of the identity loss, relative to `lambda_cycle`; 0 leaves it out.
        lambda_nuclear: weight of `nuclear_loss` between images and their translations, in both directions; 0 is off.
        nuclear_dab: how much DAB counts as nuclear stain in it: 1 for nuclear markers, 0 for others. It has no default,
            because the wrong one rewards what the term is to prevent.
        lambda_segmentation: weight of the segmentation loss, 0 is off: with S a frozen segmenter and b H&E that becomes
            F(b) and again G(F(b)), |S(G(F(b))) - S(b)| + |S(F(b)) - S(b)|.
        segmenter: S, a bundle or checkpoint that reads H&E and IHC.
        lambda_nce: weight of the contrast of patches between images and their translations, as in CUT, in both
            directions; 0 is off.
        nce_layers: whose features are compared, by index in the generator's `model`.
        pool_size: images in the history of fakes; 0 turns it off.
        seed: of the image pool, to which the rank is added, and of the places of patches.
        options: of `StainTranslation`, the keyword-only ones.

    Raises:
        ConfigError: for a value outside its range, an unknown loss or metric, or smoothing with a loss that has no
            target.
    """

    g_ihc2he: nn.Module
    g_he2ihc: nn.Module

    if_inverted = "Raise model.lambda_identity or restart with another seed"

    def __init__(
        self,
        generator: Node,
        discriminator: Node,
        optimizer: Mapping[str, Any],
        lambda_cycle: float = 10.0,
        lambda_identity: float = 0.5,
        lambda_nuclear: float = 0.0,
        nuclear_dab: float | None = None,
        lambda_segmentation: float = 0.0,
        segmenter: str | None = None,
        lambda_nce: float = 0.0,
        nce_layers: Sequence[int] = (0, 4, 8, 12, 16),
        pool_size: int = 50,
        seed: int = 0,
        **options: Any,
    ) -> None:
        require("lambda_cycle", lambda_cycle, lambda_cycle >= 0, "0 or more")
        require("lambda_identity", lambda_identity, lambda_identity >= 0, "0 or more")
        require("lambda_nuclear", lambda_nuclear, lambda_nuclear >= 0, "0 or more")
        require("nuclear_dab", nuclear_dab, nuclear_dab is None or nuclear_dab >= 0, "0 or more")
        if lambda_nuclear and nuclear_dab is None:
            msg = (
                f"model.lambda_nuclear={lambda_nuclear:g} needs model.nuclear_dab: 1 where the marker is in nuclei, as "
                "Ki-67 is, or 0 where it is not, as HER2 in BCI."
            )
            raise ConfigError(msg)
        require("lambda_segmentation", lambda_segmentation, lambda_segmentation >= 0, "0 or more")
        require("segmenter", segmenter, bool(segmenter) or not lambda_segmentation, "a bundle, for lambda_segmentation")
        require("lambda_nce", lambda_nce, lambda_nce >= 0, "0 or more")
        require("pool_size", pool_size, pool_size >= 0, "0 or more")
        super().__init__(
            {"ihc2he": generator, "he2ihc": generator},
            {"ihc": discriminator, "he": discriminator},
            optimizer=optimizer,
            pools={"ihc": ImagePool(pool_size, seed), "he": ImagePool(pool_size, seed + 1)},
            **options,
        )
        self.lambda_cycle, self.lambda_identity = lambda_cycle, lambda_identity
        self.lambda_nuclear, self.nuclear_dab = lambda_nuclear, nuclear_dab or 0.0
        self.lambda_segmentation, self.segmenter = lambda_segmentation, segmenter
        self.frozen: FrozenSegmenter | None = None
        self.lambda_nce, self.seed = lambda_nce, seed
        if lambda_nce:
            self.contrasts = nn.ModuleDict()
            for direction, network in self.generators.items():
                self.contrasts[direction] = PatchContrast(network, nce_layers, key="nce_layers")

    @property
    def terms(self) -> dict[str, float]:
        """The weights of the terms that are on."""
        weights = {
            "adversarial": 1.0,
            "cycle": self.lambda_cycle,
            "identity": self.lambda_cycle * self.lambda_identity,
            "nuclear": self.lambda_nuclear,
            "segmentation": self.lambda_segmentation,
            "nce": self.lambda_nce,
        }
        return {name: weight for name, weight in weights.items() if weight}

    def setup(self, stage: str) -> None:
        """Load the segmenter, if its term is on."""
        super().setup(stage)
        if stage == "fit" and self.lambda_segmentation:
            mpp = required_mpp(self.data, "model.lambda_segmentation")
            self.frozen = FrozenSegmenter(str(self.segmenter), mpp, self.trainer.strategy.root_device)

    def generator_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[Stain, Tensor]]:
        """Return the weighted terms of the generators' loss, and the fakes in both stains.

        What a generator can translate at one time goes through it as one batch: instance normalisation keeps the images
        apart, so the results are those of separate calls.
        """
        ihc, he = batch["ihc"], batch["he"]
        cycle, identity = self.lambda_cycle, self.lambda_cycle * self.lambda_identity
        own = identity > 0
        fake_he = self.g_ihc2he(ihc)
        fake_ihc, again_ihc, *same_ihc = together(self.g_he2ihc, he, fake_he, *([ihc] if own else []))
        again_he, *same_he = together(self.g_ihc2he, fake_ihc, *([he] if own else []))
        losses = {
            "cycle_ihc": cycle * F.l1_loss(again_ihc.float(), ihc),
            "cycle_he": cycle * F.l1_loss(again_he.float(), he),
            "g_he": self.adversarial_loss("he", fake_he),
            "g_ihc": self.adversarial_loss("ihc", fake_ihc),
        }
        if own:
            losses["identity_he"] = identity * F.l1_loss(same_he[0].float(), he)
            losses["identity_ihc"] = identity * F.l1_loss(same_ihc[0].float(), ihc)
        if self.lambda_nuclear:
            losses["nuclear_he"] = self.lambda_nuclear * nuclear_loss(ihc, fake_he, self.nuclear_dab)
            losses["nuclear_ihc"] = self.lambda_nuclear * nuclear_loss(fake_ihc, he, self.nuclear_dab)
        if self.frozen is not None:
            with torch.no_grad():
                expected = self.frozen(he)
            for name, made in (("again", again_he), ("ihc", fake_ihc)):
                term = segmentation_loss(self.frozen(made), expected)
                losses[f"segmentation_{name}"] = self.lambda_segmentation * term
        if self.lambda_nce:
            for direction, stain, made in (("ihc2he", "ihc", fake_he), ("he2ihc", "he", fake_ihc)):
                generator, contrast = self.get_submodule(f"g_{direction}"), self.contrasts[direction]
                losses[f"nce_{stain}"] = self.lambda_nce * contrast(generator, batch[stain], made, self.draws)
        return losses, {"ihc": fake_ihc, "he": fake_he}
