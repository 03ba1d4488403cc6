"""A classifier of tiles on any encoder.

Shape suffixes: b = batch, s = stains, c = channels, h, w = height, width, k = classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import ConfigError


class TileClassifier(nn.Module):
    """The mean of an encoder's deepest map, and a linear layer; each stain goes through the same encoder.

    Args:
        encoder: node or module of an encoder of `ihc2he.models.segmentation.encoders`; it gets images in [0, 1].
        classes: their number.
        stains: number of stains: an image has three channels for each.
        dropout: share of the features that are dropped in training.

    Raises:
        ConfigError: for less than two classes.
    """

    def __init__(
        self, encoder: Mapping[str, Any] | nn.Module, classes: int, stains: int = 1, dropout: float = 0.2
    ) -> None:
        super().__init__()
        if classes < 2:
            msg = f"model.classes: found {classes}, expected two or more. Pass for instance model.classes=[low,high]."
            raise ConfigError(msg)
        self.stains = stains
        made: Any = build(encoder, nn.Module)
        self.encoder = made
        self.last = nn.Identity()  # the map that Grad-CAM looks at
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(stains * made.channels[-1], classes)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return the logits (N, K) of images in [-1, 1], (N, 3 x stains, H, W)."""
        batch, _, height, width = x_bchw.shape
        x_bchw = x_bchw.reshape(batch * self.stains, 3, height, width) / 2 + 0.5
        features_bc = self.last(self.encoder(x_bchw)[-1]).mean((-2, -1))
        logits_bk: Tensor = self.head(self.dropout(features_bc.reshape(batch, -1)))
        return logits_bk


def mixed(x_bchw: Tensor, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Return each image blended with another of the batch, the number of the other, and the share of its own.

    Zhang et al., mixup, ICLR 2018.

    Args:
        x_bchw: images.
        alpha: of the Beta distribution that the share is drawn from, above 0.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other_b = torch.randperm(len(x_bchw), device=x_bchw.device)
    return share * x_bchw + (1 - share) * x_bchw[other_b], other_b, share
