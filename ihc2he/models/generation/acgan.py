"""ACGAN (Odena et al., ICML 2017): a discriminator that also names the level.

Layers as in the paper's appendix: the generator of 5x5 transposed convolutions, the discriminator of six 3x3
convolutions with dropout. Differs in the generator's first map, which has 4x4 px, so that powers of two come out
without cropping; its channels are halved at each doubling from `width` on.
Shape suffixes: b = batch, c = channel, h, w = height, width, d = latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ihc2he.models.generation.blocks import Verdict, doublings, normalise_spectrum, one_hot
from ihc2he.models.generation.dcgan import initialise


class AcganGenerator(nn.Module):
    """A linear layer to 4x4 px and transposed 5x5 convolutions, with batch normalisation, ReLU and tanh.

    Args:
        latent_size: of the latent vector.
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the first map.
    """

    def __init__(self, latent_size: int, n_classes: int, size: int = 64, width: int = 384) -> None:
        super().__init__()
        self.n_classes = n_classes
        n = doublings(size)
        widths = [max(width // 2**i, 1) for i in range(n)]
        self.linear = nn.Sequential(
            nn.Linear(latent_size + n_classes, 16 * width), nn.Unflatten(1, (width, 4, 4)), nn.ReLU(True)
        )
        layers: list[nn.Module] = []
        for i, c_in in enumerate(widths):
            c_out = widths[i + 1] if i + 1 < n else 3
            layers.append(nn.ConvTranspose2d(c_in, c_out, 5, stride=2, padding=2, output_padding=1))
            layers += [nn.BatchNorm2d(c_out), nn.ReLU(True)] if i + 1 < n else [nn.Tanh()]
        self.model = nn.Sequential(*layers)
        initialise(self)

    def forward(self, z_bd: Tensor, label_b: Tensor) -> Tensor:
        """Return (N, 3, size, size) in [-1, 1] for (N, d) normal latents and (N,) levels."""
        return self.model(self.linear(torch.cat([z_bd, one_hot(label_b, self.n_classes, z_bd)], 1)))


class AcganDiscriminator(nn.Module):
    """Six 3x3 convolutions, every second one strided, with LeakyReLU and dropout; it is not told the level.

    Args:
        n_classes: levels.
        size: side of the tile, px.
        width: channels of the first layer; each next one has twice as many.
        dropout: probability.
        spectral_norm: normalise the weights' spectrum, which then takes the place of batch normalisation.
    """

    def __init__(
        self, n_classes: int, size: int = 64, width: int = 16, dropout: float = 0.5, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        doublings(size)
        layers: list[nn.Module] = []
        c_in = 3
        for i in range(6):
            c_out = width * 2**i
            layers.append(nn.Conv2d(c_in, c_out, 3, stride=1 + (i % 2 == 0), padding=1, bias=False))
            layers += [nn.BatchNorm2d(c_out)] if i and not spectral_norm else []
            layers += [nn.LeakyReLU(0.2, True), nn.Dropout(dropout)]
            c_in = c_out
        self.model = nn.Sequential(*layers, nn.Flatten())
        features = c_in * (size // 8) ** 2
        self.real, self.level = nn.Linear(features, 1), nn.Linear(features, n_classes)
        initialise(self)
        if spectral_norm:
            normalise_spectrum(self)

    def forward(self, x_bchw: Tensor, label_b: Tensor) -> Verdict:
        """Return the verdict on (N, 3, size, size) tiles, with the logits of their level."""
        features = self.model(x_bchw)
        return Verdict(self.real(features).flatten(), self.level(features))
