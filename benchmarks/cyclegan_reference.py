"""The training step of the reference CycleGAN, transcribed from the description in the paper and its public code.

Its networks, losses, optimisers and order of calls, in float32 and the default memory format.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ihc2he.models.translation.cyclegan.networks import initialise
from ihc2he.models.translation.pool import ImagePool


class ReferenceBlock(nn.Module):
    """A residual block of the reference generator."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.ReflectionPad2d(1), nn.Conv2d(256, 256, 3), nn.InstanceNorm2d(256), nn.ReLU(True)]
        self.conv_block = nn.Sequential(*first, nn.ReflectionPad2d(1), nn.Conv2d(256, 256, 3), nn.InstanceNorm2d(256))

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return x_bchw + self.conv_block(x_bchw)


def reference_generator() -> nn.Sequential:
    """Return the reference generator, `resnet_9blocks`."""

    def norm(width: int) -> list[nn.Module]:
        return [nn.InstanceNorm2d(width), nn.ReLU(True)]

    net = nn.Sequential(
        *[nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), *norm(64)],
        *[nn.Conv2d(64, 128, 3, 2, 1), *norm(128), nn.Conv2d(128, 256, 3, 2, 1), *norm(256)],
        *[ReferenceBlock() for _ in range(9)],
        *[nn.ConvTranspose2d(256, 128, 3, 2, 1, 1), *norm(128), nn.ConvTranspose2d(128, 64, 3, 2, 1, 1), *norm(64)],
        *[nn.ReflectionPad2d(3), nn.Conv2d(64, 3, 7), nn.Tanh()],
    )
    initialise(net)
    return net


def reference_discriminator() -> nn.Sequential:
    """Return the reference discriminator, `basic`."""
    net = nn.Sequential(
        *[nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, True)],
        *[nn.Conv2d(64, 128, 4, 2, 1), nn.InstanceNorm2d(128), nn.LeakyReLU(0.2, True)],
        *[nn.Conv2d(128, 256, 4, 2, 1), nn.InstanceNorm2d(256), nn.LeakyReLU(0.2, True)],
        *[nn.Conv2d(256, 512, 4, 1, 1), nn.InstanceNorm2d(512), nn.LeakyReLU(0.2, True)],
        nn.Conv2d(512, 1, 4, 1, 1),
    )
    initialise(net)
    return net


class ReferenceStep:
    """Both generators and discriminators of the reference, and `step`, which trains them on a batch."""

    def __init__(self, device: torch.device) -> None:
        self.g_a, self.g_b = reference_generator().to(device), reference_generator().to(device)
        self.d_a, self.d_b = reference_discriminator().to(device), reference_discriminator().to(device)
        self.pools = ImagePool(50), ImagePool(50)
        generators = itertools.chain(self.g_a.parameters(), self.g_b.parameters())
        discriminators = itertools.chain(self.d_a.parameters(), self.d_b.parameters())
        self.opt_g = torch.optim.Adam(generators, 2e-4, (0.5, 0.999))
        self.opt_d = torch.optim.Adam(discriminators, 2e-4, (0.5, 0.999))
        self.mse, self.l1 = nn.MSELoss(), nn.L1Loss()

    def step(self, batch: dict[str, Tensor]) -> None:
        """Train on images of both stains."""
        real_a, real_b = batch["ihc"], batch["he"]
        fake_b = self.g_a(real_a)
        rec_a = self.g_b(fake_b)
        fake_a = self.g_b(real_b)
        rec_b = self.g_a(fake_a)
        self._require_grad(False)
        self.opt_g.zero_grad()
        loss = 5 * self.l1(self.g_a(real_b), real_b) + 5 * self.l1(self.g_b(real_a), real_a)
        loss = loss + self._gan(self.d_a(fake_b), 1) + self._gan(self.d_b(fake_a), 1)
        loss = loss + 10 * self.l1(rec_a, real_a) + 10 * self.l1(rec_b, real_b)
        loss.backward()
        self.opt_g.step()
        self._require_grad(True)
        self.opt_d.zero_grad()
        domains = ((self.d_a, real_b, fake_b, self.pools[0]), (self.d_b, real_a, fake_a, self.pools[1]))
        for d, real, fake, pool in domains:
            loss_d = 0.5 * (self._gan(d(real), 1) + self._gan(d(pool.query(fake)), 0))
            loss_d.backward()
        self.opt_d.step()

    def _gan(self, logits: Tensor, target: float) -> Tensor:
        return self.mse(logits, torch.tensor(float(target), device=logits.device).expand_as(logits))

    def _require_grad(self, value: bool) -> None:
        for parameter in itertools.chain(self.d_a.parameters(), self.d_b.parameters()):
            parameter.requires_grad = value
