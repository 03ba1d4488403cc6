"""A generator that is local: a pixel of its image depends on a neighbourhood of known size, and on nothing else.

Shape suffixes: b = batch, c = channel, h, w = height, width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.errors import ConfigError
from ihc2he.models.translation.cyclegan.networks import ReflectionPad

_SLOPE = 0.2  # of LeakyReLU


class LocalUNet(nn.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015) without normalisation of features, from one stain to the other.

    Instance normalisation makes every pixel depend on the whole image, so that windows of a slide do not fit together.
    Without it (as in Ui2i, arXiv 2505.20746) windows that overlap by twice the `halo` give exactly the whole. Weights
    start as in He et al., ICCV 2015, because nothing rescales what layers give.

    With depth d a pixel sees 8 * 2^d - 5 px up and left and 7 * 2^d - 4 px down and right at most: 59 and 52 at the
    depth of 3.

    Args:
        width: channels at full size; each halving of the size doubles them.
        depth: halvings.

    Attributes:
        halo: px, the farthest that a pixel sees.
        stride: px, by multiples of which windows have to be apart.

    Raises:
        ConfigError: for a width or depth below 1.
    """

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        if min(width, depth) < 1:
            msg = f"width and depth have to be at least 1, found {width} and {depth}."
            raise ConfigError(msg)
        self.stride = 2**depth
        self.halo = 8 * self.stride - 5
        widths = [width * 2**i for i in range(depth + 1)]
        self.encoder = nn.ModuleList([_block(3, width)])
        self.decoder = nn.ModuleList()
        for fine, coarse in pairwise(widths):
            down = nn.Sequential(*_convolution(fine, coarse, stride=2))
            self.encoder.append(nn.Sequential(down, _block(coarse, coarse)))
            self.decoder.insert(0, _block(fine + coarse, fine))
        last = nn.Conv2d(width, 3, 3)
        self.last = nn.Sequential(ReflectionPad(1), last, nn.Tanh())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, _SLOPE, nonlinearity="leaky_relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has one
        nn.init.normal_(last.weight, 0, 0.02)  # or tanh would begin at its ends

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return the translated images.

        Args:
            x_bchw: (N, 3, H, W) in [-1, 1]; sides of at least twice the stride. Where they are no multiples of the
                stride, the image is padded by reflection and the result cropped back.

        Returns:
            (N, 3, H, W) in [-1, 1].
        """
        h, w = x_bchw.shape[-2:]
        bottom, right = -h % self.stride, -w % self.stride
        if bottom or right:
            x_bchw = F.pad(x_bchw, (0, right, 0, bottom), mode="reflect")
        features = []
        for block in self.encoder:
            x_bchw = block(x_bchw)
            features.append(x_bchw)
        for block, skip_bchw in zip(self.decoder, reversed(features[:-1]), strict=True):
            x_bchw = F.interpolate(x_bchw, scale_factor=2.0, mode="nearest")
            x_bchw = block(torch.cat([x_bchw, skip_bchw], 1))
        return self.last(x_bchw)[..., :h, :w]


def _convolution(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    return [ReflectionPad(1), nn.Conv2d(c_in, c_out, 3, stride=stride), nn.LeakyReLU(_SLOPE, True)]


def _block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(c_in, c_out), *_convolution(c_out, c_out))
