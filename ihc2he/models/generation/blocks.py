"""Parts of the networks: residual blocks, normalisation by level, labels as channels, spectral normalisation.

Every generator maps (latents, levels) to tiles in [-1, 1], every discriminator (tiles, levels) to a `Verdict`.
Shape suffixes: b = batch, c = channel, h, w = height, width, d = latent size, k = levels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.errors import require_setting


class Verdict(NamedTuple):
    """What a discriminator says of tiles.

    Attributes:
        logits_b: how real each is, without sigmoid.
        levels_bk: logits of its level; None: the discriminator is told the level.
    """

    logits_b: Tensor
    levels_bk: Tensor | None = None


def doublings(size: int) -> int:
    """Return how often 4 px have to be doubled to give a side.

    Raises:
        ConfigError: if that is no whole number from 2 on.

    >>> doublings(64)
    4
    """
    n = size.bit_length() - 3
    require_setting("model", "size", size, n >= 2 and size == 4 << n, "a power of two from 16 px on, such as 64 or 128")
    return n


def multiples(n: int, largest: int) -> list[int]:
    """Return the channels of n resolutions from fine to coarse, as multiples of the width.

    >>> multiples(5, 8)
    [1, 2, 4, 8, 8]
    """
    return [min(2**i, largest) for i in range(n)]


def one_hot(label_b: Tensor, n_classes: int, like: Tensor) -> Tensor:
    """Return levels as (N, k) vectors of 0 and 1, in the type of another tensor."""
    return F.one_hot(label_b, n_classes).to(like.dtype)


def with_planes(x_bchw: Tensor, label_b: Tensor, n_classes: int) -> Tensor:
    """Return tiles with a further channel for each level, 1 everywhere in that of the tile's (Mirza and Osindero 2014).

    >>> with_planes(torch.zeros(1, 3, 2, 2), torch.tensor([1]), 2)[0, :, 0, 0].tolist()
    [0.0, 0.0, 0.0, 0.0, 1.0]
    """
    planes_bk = one_hot(label_b, n_classes, x_bchw)
    return torch.cat([x_bchw, planes_bk[:, :, None, None].expand(-1, -1, *x_bchw.shape[-2:])], 1)


class PlanesDiscriminator(nn.Module):
    """A discriminator that is told the level by further channels of the tile.

    Attributes:
        n_classes: levels.
        model: from tiles with these channels to a logit each.
    """

    n_classes: int
    model: nn.Module

    def forward(self, x_bchw: Tensor, label_b: Tensor) -> Verdict:
        """Return the verdict on (N, 3, size, size) tiles of (N,) levels."""
        return Verdict(self.model(with_planes(x_bchw, label_b, self.n_classes)).flatten())


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation, the same for all levels."""

    def forward(self, x_bchw: Tensor, label_b: Tensor | None = None) -> Tensor:
        """Return a tensor of the input's shape."""
        return super().forward(x_bchw)


class LevelBatchNorm(nn.Module):
    """Batch normalisation with a scale and a shift for each level (Dumoulin et al., ICLR 2017).

    Args:
        width: channels.
        n_classes: levels.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.scale, self.shift = nn.Embedding(n_classes, width), nn.Embedding(n_classes, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x_bchw: Tensor, label_b: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        scale, shift = (table(label_b)[:, :, None, None] for table in (self.scale, self.shift))
        return self.norm(x_bchw) * scale + shift


class UpBlock(nn.Module):
    """Two 3x3 convolutions, each after a normalisation and a ReLU, at twice the resolution; with a skip.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        n_classes: levels with a scale and a shift of their own; 0: all have the same.
    """

    def __init__(self, c_in: int, c_out: int, n_classes: int = 0) -> None:
        super().__init__()
        norms = [LevelBatchNorm(c, n_classes) if n_classes else BatchNorm(c) for c in (c_in, c_out)]
        self.norm1, self.norm2 = norms
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_bchw: Tensor, label_b: Tensor) -> Tensor:
        """Return a tensor of twice the height and width."""
        y_bchw = self.conv1(_doubled(F.relu(self.norm1(x_bchw, label_b))))
        return self.conv2(F.relu(self.norm2(y_bchw, label_b))) + self.skip(_doubled(x_bchw))


def _doubled(x_bchw: Tensor) -> Tensor:
    return F.interpolate(x_bchw, scale_factor=2.0, mode="nearest")


class DownBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU before each, and a mean of 2x2 px; with a skip.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        down: halve the resolution.
        first: the input is an image, so there is no ReLU before the first convolution.
        norm: normalise each image over all its channels before each ReLU (layer normalisation).
    """

    def __init__(self, c_in: int, c_out: int, down: bool = True, first: bool = False, norm: bool = False) -> None:
        super().__init__()
        hidden = c_out if first else c_in
        self.down = down
        self.conv1 = nn.Conv2d(c_in, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if down or c_in != c_out else nn.Identity()
        self.before1 = nn.Sequential() if first else _norm_relu(c_in, norm)
        self.before2 = _norm_relu(hidden, norm)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return a tensor of half the height and width, or of the same."""
        y_bchw = self.conv2(self.before2(self.conv1(self.before1(x_bchw))))
        y_bchw = y_bchw + self.skip(x_bchw)
        return F.avg_pool2d(y_bchw, 2) if self.down else y_bchw


def _norm_relu(width: int, norm: bool) -> nn.Sequential:
    return nn.Sequential(*([nn.GroupNorm(1, width)] if norm else []), nn.ReLU())


def normalise_spectrum(net: nn.Module) -> None:
    """Divide each weight of a network by its largest singular value (Miyato et al., ICLR 2018), in place."""
    for layer in list(net.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.utils.parametrizations.spectral_norm(layer)
