"""Learned centres and foreground: a light U-Net as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.losses.centres import centre_losses
from ihc2he.models.segmentation.module import NucleiSegmenter
from ihc2he.models.segmentation.networks import UNet
from ihc2he.nuclei.decoders.centres import CentresDecoder


class CentresSegmenter(NucleiSegmenter):
    """Finds nuclei by their centres; see `NucleiSegmenter` for the batches.

    Args:
        encoder: node or module, see `ihc2he.models.segmentation.encoders`. A module is not saved in `hparams`.
        decoder: node or object of a `CentresDecoder`.
        optimizer: see `NucleiSegmenter`, likewise those not named here.
        scheduler: likewise.
        classes: likewise.
        width: channels of the U-Net at stride 1.
        lr_encoder: likewise.
        window: likewise.
        overlap: likewise.
        tta: likewise.
        ensemble: likewise.
        workers: likewise.
        channels_last: likewise.
        compile: likewise.

    Raises:
        ConfigError: see `NucleiSegmenter`.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | nn.Module,
        decoder: Mapping[str, Any] | CentresDecoder,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        width: int = 16,
        lr_encoder: float | None = None,
        window: int = 256,
        overlap: int = 64,
        tta: bool = False,
        ensemble: Sequence[str] = (),
        workers: int = 2,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002
    ) -> None:
        channels = build(decoder, CentresDecoder).channels(len(classes or ()))
        node = {"_target_": "ihc2he.models.segmentation.networks.UNet", "encoder": encoder, "width": width}
        network = node if isinstance(encoder, Mapping) else UNet(encoder, channels, width)
        super().__init__(
            network, decoder, optimizer, scheduler, classes, lr_encoder, window, overlap, tta, ensemble, workers,
            channels_last, compile,
        )  # fmt: skip

    def terms(self, maps: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss by name."""
        return centre_losses(maps, targets)
