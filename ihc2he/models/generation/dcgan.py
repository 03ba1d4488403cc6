"""DCGAN (Radford et al., ICLR 2016), conditional by concatenated labels (Mirza and Osindero, 2014).

Sizes as in the authors' code: 4x4 kernels, 64 to 512 channels. Differs in the levels, which are added to the latent
vector and to the image as channels; tiles of 128 px have one more layer of 512 channels.
Shape suffixes: b = batch, c = channel, h, w = height, width, d = latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ihc2he.models.generation.blocks import (
    PlanesDiscriminator,
    doublings,
    multiples,
    normalise_spectrum,
    one_hot,
)


class DcganGenerator(nn.Module):
    """Transposed convolutions from 1 px to the tile, with batch normalisation and ReLU, and tanh at the end.

    Args:
        latent_size: of the latent vector.
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the last layer but one.
    """

    def __init__(self, latent_size: int, n_classes: int, size: int = 64, width: int = 64) -> None:
        super().__init__()
        self.n_classes = n_classes
        *rest, first = [width * m for m in multiples(doublings(size), 8)]
        layers = _up(latent_size + n_classes, first, stride=1, padding=0)
        c_in = first
        for c_out in reversed(rest):
            layers += _up(c_in, c_out)
            c_in = c_out
        layers += [nn.ConvTranspose2d(c_in, 3, 4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        initialise(self)

    def forward(self, z_bd: Tensor, label_b: Tensor) -> Tensor:
        """Return (N, 3, size, size) in [-1, 1] for (N, d) normal latents and (N,) levels."""
        z_bd = torch.cat([z_bd, one_hot(label_b, self.n_classes, z_bd)], 1)
        return self.model(z_bd[:, :, None, None])


def _up(c_in: int, c_out: int, stride: int = 2, padding: int = 1) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(c_in, c_out, 4, stride=stride, padding=padding, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(True)]


class DcganDiscriminator(PlanesDiscriminator):
    """Strided convolutions down to one logit, with LeakyReLU, and batch normalisation but in the first layer.

    Args:
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the first layer.
        spectral_norm: normalise the weights' spectrum, which then takes the place of batch normalisation.
    """

    def __init__(self, n_classes: int, size: int = 64, width: int = 64, spectral_norm: bool = False) -> None:
        super().__init__()
        self.n_classes = n_classes
        layers: list[nn.Module] = []
        c_in = 3 + n_classes
        for i, c_out in enumerate(width * m for m in multiples(doublings(size), 8)):
            layers.append(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(c_out)] if i and not spectral_norm else []
            layers.append(nn.LeakyReLU(0.2, True))
            c_in = c_out
        layers.append(nn.Conv2d(c_in, 1, 4, bias=False))
        self.model = nn.Sequential(*layers)
        initialise(self)
        if spectral_norm:
            normalise_spectrum(self)


def initialise(net: nn.Module) -> None:
    """Draw weights from N(0, 0.02), scales of normalisation from N(1, 0.02); biases are 0."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d):
            nn.init.normal_(layer.weight, float(isinstance(layer, nn.BatchNorm2d)), 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
