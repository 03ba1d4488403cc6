"""A light U-Net as a LightningModule, for learned centres or HoVer maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import ConfigError
from ihc2he.losses.centres import centre_losses
from ihc2he.losses.hover import REFERENCE_LOSSES, hover_losses
from ihc2he.models.segmentation.module import NucleiSegmenter
from ihc2he.models.segmentation.networks import UNet
from ihc2he.nuclei.decoders.base import Decoder
from ihc2he.nuclei.decoders.centres import CentresDecoder
from ihc2he.nuclei.decoders.hover import HoverDecoder


class UNetSegmenter(NucleiSegmenter):
    """Finds nuclei by learned centres or by HoVer maps; see `NucleiSegmenter` for the batches.

    Args:
        encoder: node or module, see `ihc2he.models.segmentation.encoders`. A module is not saved in `hparams`.
        decoder: node or object of a `CentresDecoder` or a `HoverDecoder`, which also says what the loss is.
        optimizer: see `NucleiSegmenter`.
        width: of the U-Net, see `UNet`.
        options: of `NucleiSegmenter`, the keyword-only ones.

    Raises:
        ConfigError: see `NucleiSegmenter`; or for another decoder.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | nn.Module,
        decoder: Mapping[str, Any] | Decoder,
        optimizer: Mapping[str, Any],
        width: int = 16,
        **options: Any,
    ) -> None:
        made = build(decoder, Decoder)  # type: ignore[type-abstract]
        if not isinstance(made, CentresDecoder | HoverDecoder):
            msg = (
                f"model.decoder: {type(self).__name__} has losses for centres and hover, not for "
                f"{type(made).__name__}. Derive from NucleiSegmenter and write `terms`."
            )
            raise ConfigError(msg)
        channels = made.channels(len(options.get("classes") or ()))
        node = {"_target_": "ihc2he.models.segmentation.networks.UNet", "encoder": encoder, "width": width}
        network = node if isinstance(encoder, Mapping) else UNet(encoder, channels, width)
        super().__init__(network, decoder, optimizer, **options)

    def terms(self, maps: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss by name."""
        if isinstance(self.decoder, CentresDecoder):
            return centre_losses(maps, targets)
        return hover_losses(maps, targets, REFERENCE_LOSSES)
