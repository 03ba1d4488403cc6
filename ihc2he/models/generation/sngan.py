"""SNGAN with a projection discriminator (Miyato et al. and Miyato and Koyama, both ICLR 2018), as in their code.

The residual networks for 64 px and 128 px: in the generator a scale and a shift per level, in the discriminator
spectral normalisation and the inner product with an embedding of the level.
Shape suffixes: b = batch, c = channel, h, w = height, width, d = latent size.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from ihc2he.models.generation.blocks import (
    BatchNorm,
    DownBlock,
    UpBlock,
    Verdict,
    doublings,
    multiples,
    normalise_spectrum,
)


class SnganGenerator(nn.Module):
    """A linear layer to 4x4 px, residual blocks with normalisation by level, and a 3x3 convolution with tanh.

    Args:
        latent_size: of the latent vector.
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the last block; the first has 16 times as many.
    """

    def __init__(self, latent_size: int, n_classes: int, size: int = 64, width: int = 64) -> None:
        super().__init__()
        n = doublings(size)
        widths = [width * m for m in reversed(multiples(n, 16))]
        first = width * min(2**n, 16)
        self.linear = nn.Linear(latent_size, 16 * first)
        pairs = zip([first, *widths], widths, strict=False)
        self.blocks = nn.ModuleList(UpBlock(c_in, c_out, n_classes) for c_in, c_out in pairs)
        self.last = nn.Sequential(BatchNorm(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())
        initialise(self)

    def forward(self, z_bd: Tensor, label_b: Tensor) -> Tensor:
        """Return (N, 3, size, size) in [-1, 1] for (N, d) normal latents and (N,) levels."""
        x_bchw = self.linear(z_bd).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x_bchw = block(x_bchw, label_b)
        return self.last(x_bchw)


class SnganDiscriminator(nn.Module):
    """Residual blocks, a sum over places, and a linear layer plus the projection on the level's embedding.

    The blocks halve the side as often as `doublings(size)` says, but at most to 2 px for 64 px and to 4 px from 128 px
    on, where a last block keeps the side, as in the authors' code.

    Args:
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the first block; the last has up to 16 times as many.
        spectral_norm: normalise the weights' spectrum.
    """

    def __init__(self, n_classes: int, size: int = 64, width: int = 64, spectral_norm: bool = True) -> None:
        super().__init__()
        n = doublings(size)
        widths = [width * m for m in multiples(n + 1, 16)]
        blocks = [DownBlock(3, width, first=True)]
        for i in range(1, n + 1):
            blocks.append(DownBlock(widths[i - 1], widths[i], down=i < n or size < 128))
        self.model = nn.Sequential(*blocks, nn.ReLU())
        self.linear = nn.Linear(widths[-1], 1)
        self.embedding = nn.Embedding(n_classes, widths[-1])
        initialise(self)
        if spectral_norm:
            normalise_spectrum(self)

    def forward(self, x_bchw: Tensor, label_b: Tensor) -> Verdict:
        """Return the verdict on (N, 3, size, size) tiles of (N,) levels."""
        h_bc = self.model(x_bchw).sum((2, 3))
        projection_b = torch.einsum("bc,bc->b", self.embedding(label_b), h_bc)
        return Verdict(self.linear(h_bc).flatten() + projection_b)


def initialise(net: nn.Module) -> None:
    """Draw weights uniformly by Glorot and Bengio, those of 3x3 convolutions in blocks by sqrt(2) larger."""
    for block in net.modules():
        for name, layer in block.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                inner = isinstance(block, UpBlock | DownBlock) and name != "skip"
                is_table = isinstance(layer, nn.Embedding) and not isinstance(net, SnganDiscriminator)
                if is_table:  # the scales and shifts of levels, which begin as 1 and 0
                    continue
                nn.init.xavier_uniform_(layer.weight, sqrt(2) if inner else 1.0)
                if not isinstance(layer, nn.Embedding):
                    assert layer.bias is not None
                    nn.init.zeros_(layer.bias)
