"""The residual networks of WGAN-GP (Gulrajani et al., NeurIPS 2017), as in the authors' code for 64 px.

Differs in the levels, which are added to the latent vector and to the critic's image as channels; tiles of 128 px have
one more block of the largest width.
Shape suffixes: b = batch, c = channel, h, w = height, width, d = latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ihc2he.models.generation.blocks import (
    BatchNorm,
    DownBlock,
    PlanesDiscriminator,
    UpBlock,
    doublings,
    multiples,
    normalise_spectrum,
    one_hot,
)


class WganGenerator(nn.Module):
    """A linear layer to 4x4 px, residual blocks, and a 3x3 convolution with tanh.

    Args:
        latent_size: of the latent vector.
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the last block.
    """

    def __init__(self, latent_size: int, n_classes: int, size: int = 64, width: int = 64) -> None:
        super().__init__()
        self.n_classes = n_classes
        widths = [width * m for m in reversed(multiples(doublings(size), 8))]
        self.linear = nn.Linear(latent_size + n_classes, 16 * widths[0])
        pairs = zip([widths[0], *widths], widths, strict=False)
        self.blocks = nn.ModuleList(UpBlock(c_in, c_out) for c_in, c_out in pairs)
        self.last = nn.Sequential(BatchNorm(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())
        initialise(self)

    def forward(self, z_bd: Tensor, label_b: Tensor) -> Tensor:
        """Return (N, 3, size, size) in [-1, 1] for (N, d) normal latents and (N,) levels."""
        x_bchw = self.linear(torch.cat([z_bd, one_hot(label_b, self.n_classes, z_bd)], 1)).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x_bchw = block(x_bchw, label_b)
        return self.last(x_bchw)


class WganCritic(PlanesDiscriminator):
    """A 3x3 convolution, residual blocks with layer normalisation, and a linear layer.

    The penalty is one per image, so images of a batch must not influence each other: there is no batch normalisation.

    Args:
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the first layer.
        spectral_norm: normalise the weights' spectrum, which then takes the place of layer normalisation.
    """

    def __init__(self, n_classes: int, size: int = 64, width: int = 64, spectral_norm: bool = False) -> None:
        super().__init__()
        self.n_classes = n_classes
        widths = [width * m for m in multiples(doublings(size), 8)]
        outs = [*widths[1:], widths[-1]]
        layers: list[nn.Module] = [nn.Conv2d(3 + n_classes, width, 3, padding=1)]
        layers += [DownBlock(c_in, c_out, norm=not spectral_norm) for c_in, c_out in zip(widths, outs, strict=True)]
        self.model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * widths[-1], 1))
        initialise(self)
        if spectral_norm:
            normalise_spectrum(self)


def initialise(net: nn.Module) -> None:
    """Draw weights uniformly by He et al. (ICCV 2015), those of skips and linear layers by Glorot; biases are 0."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
