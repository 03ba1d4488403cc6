"""HoVer-Net as a LightningModule: its network, weights, losses and the defaults of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import ConfigError
from ihc2he.losses.hover import REFERENCE_LOSSES, check_msge_axis, check_terms, hover_losses
from ihc2he.models.former import hover_node
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.segmentation.hovernet.weights import load_reference
from ihc2he.models.segmentation.module import NucleiSegmenter
from ihc2he.nuclei.decoders.hover import HoverDecoder


class HoverNetSegmenter(NucleiSegmenter):
    """Finds and classifies nuclei on H&E by HoVer maps; see `NucleiSegmenter` for the batches.

    Args:
        encoder: node or module, see `ihc2he.models.segmentation.encoders`. A module is not saved in `hparams`.
        optimizer: see `NucleiSegmenter`.
        classes: likewise.
        mode: `same`, `fast` or `original`, see `HoverNet`.
        width: channels of the decoders' finest skip; 256 in the reference.
        losses: weight of each term, see `ihc2he.losses.hover.TERMS`.
        msge_axis: `aligned` or `cross`, see `ihc2he.losses.hover.msge_loss`.
        weights: a published checkpoint of the reference to start from, in the model's mode and with as many types, in
            its order; `init` takes that of PanNuke by the names of its types.
        keep_unmarked: of the decoder, if none is given; the reference does not.
        decoder: node or object of a `HoverDecoder`.
        options: of `NucleiSegmenter`, the keyword-only ones.

    Raises:
        ConfigError: for an unknown mode, loss or axis, no loss at all, an overlap that does not fit the window, or both
            `weights` and `init`.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | nn.Module,
        optimizer: Mapping[str, Any],
        classes: Sequence[str] | None = None,
        mode: str = "same",
        width: int = 256,
        losses: Mapping[str, float] | None = None,
        msge_axis: str = "aligned",
        weights: str | None = None,
        keep_unmarked: bool = True,
        decoder: Mapping[str, Any] | HoverDecoder | None = None,
        **options: Any,
    ) -> None:
        if weights and options.get("init"):
            msg = f"model.weights={weights} and model.init={options['init']}: expected one of them, to start from."
            raise ConfigError(msg)
        terms = dict(REFERENCE_LOSSES if losses is None else losses)
        check_terms(terms)
        if negative := [name for name, weight in terms.items() if weight < 0]:
            msg = f"model.losses.{negative[0]}={terms[negative[0]]}: expected 0 or more."
            raise ConfigError(msg)
        check_msge_axis(msge_axis)
        if not any(weight for term, weight in terms.items() if classes or not term.startswith("nc_")):
            msg = f"model.losses={terms}: nothing is left to train; give one term that applies a weight above 0."
            raise ConfigError(msg)
        own = hover_node(keep_unmarked) if decoder is None else decoder
        build(own, HoverDecoder)  # no other maps than this network's
        network = HoverNet(encoder, len(classes or ()), mode, width)
        super().__init__(network, own, optimizer, classes=classes, **options)
        self.losses = terms
        if isinstance(encoder, Mapping):
            self.network_node = {
                "_target_": "ihc2he.models.segmentation.hovernet.networks.HoverNet",
                "encoder": encoder,
                "n_types": len(self.classes),
                "mode": mode,
                "width": width,
            }

    @property
    def pretrained(self) -> bool:
        """Whether training starts from weights that are worth keeping."""
        return bool(self.hparams["weights"]) or super().pretrained

    @property
    def requires_checkpoint(self) -> bool:
        """Whether evaluation without a checkpoint would use random weights."""
        return self.hparams["weights"] is None and super().requires_checkpoint

    def load_start(self, stage: str) -> bool:
        """Load the published checkpoint, or what the base class does; return whether there were any."""
        if not self.hparams["weights"]:
            return super().load_start(stage)
        load_reference(self.network, self.hparams["weights"])
        return True

    def terms(self, maps: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss by name."""
        return hover_losses(maps, targets, self.losses, self.hparams["msge_axis"])
