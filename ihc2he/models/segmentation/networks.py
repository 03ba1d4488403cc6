"""The base of networks that give maps of nuclei, and a light U-Net for the maps of any decoder.

Shape suffixes: b = batch, c = channel, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import ConfigError


class MapNetwork(nn.Module):
    """A network from images (N, 3, H, W) in [0, 1] to a dict of raw maps (N, C, h, w) by name.

    What only one map needs lies in modules of its name, with the convolution that gives it as the last. So a training
    can start from weights with other types.

    Attributes:
        channels: of each raw map, as the decoder needs them.
        margin: px by which the maps are smaller than the image on each side.
        stride: px, the least sides of an image.
    """

    channels: Mapping[str, int]
    margin: int = 0
    stride: int = 1

    @property
    def backbone(self) -> Any:
        """The part that may be pretrained and frozen, or None.

        It has the attribute `weights`, which is None if it starts from random ones, and the method
        `load_pretrained`.
        """
        return None


class UNet(MapNetwork):
    """A light U-Net (Ronneberger et al., MICCAI 2015) on any encoder.

    Args:
        encoder: node or module, see `ihc2he.models.segmentation.encoders`.
        channels: of each map that it gives.
        width: channels at the encoder's finest stride, and between that and stride 1; each coarser stride has twice as
            many.

    Raises:
        ConfigError: for a width below 1.
    """

    def __init__(self, encoder: Mapping[str, Any] | nn.Module, channels: Mapping[str, int], width: int = 16) -> None:
        super().__init__()
        if width < 1:
            msg = f"width={width}: expected 1 or more."
            raise ConfigError(msg)
        net: Any = build(encoder, nn.Module)
        self.encoder = net
        self.channels = dict(channels)
        self.stride = net.stride
        widths = [width * 2**i for i in range(len(net.channels))]
        self.lateral = nn.ModuleList([nn.Conv2d(c, n, 1) for c, n in zip(net.channels, widths, strict=True)])
        self.up = nn.ModuleList([_convolutions(deep + n, n) for n, deep in pairwise(widths)])
        self.last = nn.Sequential(*[_Doubling(width) for _ in range(getattr(net, "finest", 1).bit_length() - 1)])
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, n, 1) for name, n in self.channels.items()})

    @property
    def backbone(self) -> Any:
        """The encoder."""
        return self.encoder

    def forward(self, x_bchw: Tensor) -> dict[str, Tensor]:
        """Return the raw maps of images, of their size.

        Args:
            x_bchw: (N, 3, H, W) in [0, 1]; sides of at least the encoder's stride. If they are not multiples of it, the
                image is padded by reflection and the maps are cropped back.
        """
        h, w = x_bchw.shape[-2:]
        bottom, right = -h % self.stride, -w % self.stride
        if bottom or right:
            x_bchw = F.pad(x_bchw, (0, right, 0, bottom), mode="reflect")
        features = [lateral(skip) for lateral, skip in zip(self.lateral, self.encoder(x_bchw), strict=True)]
        deep_bchw = features[-1]
        for up, skip_bchw in zip(reversed(self.up), reversed(features[:-1]), strict=True):
            deep_bchw = F.interpolate(deep_bchw, scale_factor=2.0, mode="nearest")
            deep_bchw = up(torch.cat([deep_bchw, skip_bchw], 1))
        deep_bchw = self.last(deep_bchw)
        return {name: head(deep_bchw)[..., :h, :w] for name, head in self.heads.items()}


def _convolutions(c_in: int, c_out: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class _Doubling(nn.Module):
    """To twice the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = _convolutions(width, width)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.convolutions(F.interpolate(x_bchw, scale_factor=2.0, mode="nearest"))


def centre_crop(x_hw: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of a tensor, in its last two dimensions.

    >>> centre_crop(torch.arange(5).view(1, 5), 1, 3).tolist()
    [[1, 2, 3]]
    """
    top, left = (x_hw.shape[-2] - height) // 2, (x_hw.shape[-1] - width) // 2
    return x_hw[..., top : top + height, left : left + width]
