"""Networks whose features KID, FID, precision and the like are computed in; none of them needs a hub.

Shape suffixes: b = batch, c = channel, h, w = height, width, d = features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.build import build


class RandomFeatures(nn.Module):
    """Means and deviations of the maps of a fixed network with random weights.

    Naeem et al. (ICML 2020) recommend random weights where images are unlike ImageNet. Values of different seeds,
    widths or tile sizes cannot be compared.

    Args:
        width: channels of the first of four convolutions; each next one has twice as many.
        seed: of the weights.
    """

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.convolutions = nn.ModuleList()
        c_in = 3
        for i in range(4):
            layer = nn.Conv2d(c_in, width * 2**i, 3, stride=2, padding=1).requires_grad_(False)
            layer.weight.normal_(0, (2 / (9 * c_in)) ** 0.5, generator=generator)
            layer.bias.zero_()  # type: ignore[union-attr]
            self.convolutions.append(layer)
            c_in = width * 2**i

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return (N, 30 width) features of images in [0, 1]."""
        features = []
        x_bchw = 4 * x_bchw - 2
        for layer in self.convolutions:
            x_bchw = F.relu(layer(x_bchw))
            features += [x_bchw.mean((2, 3)), x_bchw.flatten(2).std(2, unbiased=False)]
        return torch.cat(features, 1)


class EncoderFeatures(nn.Module):
    """Means of the deepest maps of an encoder, with its pretrained weights.

    Args:
        encoder: node of an encoder of `ihc2he.models.segmentation.encoders`.

    Raises:
        ConfigError: if its weights are not available.
    """

    def __init__(self, encoder: Mapping[str, Any]) -> None:
        super().__init__()
        network: Any = build(encoder, nn.Module)
        network.load_pretrained()
        self.encoder, self.stride = network, network.stride
        self.requires_grad_(False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return (N, D) features of images in [0, 1]; the border is mirrored where a side does not fit the encoder."""
        h, w = x_bchw.shape[-2:]
        bottom, right = -h % self.stride, -w % self.stride
        return self.encoder(F.pad(x_bchw, (0, right, 0, bottom), mode="reflect"))[-1].mean((2, 3))
