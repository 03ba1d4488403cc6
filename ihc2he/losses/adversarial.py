"""Adversarial losses on the logits of a discriminator, computed in float32.

Shape suffixes: bchw = batch, channel, height, width. A logit map of any shape is averaged over all its entries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.errors import ConfigError, did_you_mean

MODES = ("lsgan", "bce", "hinge", "wgan_gp")


def check_mode(mode: str) -> str:
    """Return the name of an adversarial loss, or raise a ConfigError that names the nearest known one.

    >>> check_mode("lsgan")
    'lsgan'
    """
    if mode not in MODES:
        msg = f"There is no adversarial loss '{mode}'.{did_you_mean(mode, MODES)}"
        raise ConfigError(msg)
    return mode


def generator_loss(fake_logits: Tensor, mode: str) -> Tensor:
    """Return the loss of a generator, given the logits for its images; scalar.

    Args:
        fake_logits: the discriminator's logits for generated images, any shape.
        mode: `lsgan` (Mao et al., ICCV 2017), `bce` (Goodfellow et al., 2014, non-saturating), `hinge`
            (Lim and Ye, 2017) or `wgan_gp` (Gulrajani et al., 2017).

    >>> float(generator_loss(torch.zeros(1, 1, 2, 2), "lsgan"))
    1.0
    """
    logits = fake_logits.float()
    if mode == "lsgan":
        return (logits - 1).square().mean()
    if mode == "bce":
        return F.softplus(-logits).mean()
    return -logits.mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, mode: str, smoothing: float = 0.0) -> Tensor:
    """Return the loss of a discriminator, the mean of its loss on real and on generated images; scalar.

    The reference CycleGAN takes half of the sum for `lsgan`; here all modes do. So a gradient penalty has to be halved
    too, to weigh against the loss of `wgan_gp` as it was published.

    Args:
        real_logits: logits for real images, any shape.
        fake_logits: logits for generated images, any shape.
        mode: as in `generator_loss`.
        smoothing: one-sided label smoothing (Salimans et al., 2016): the target of real images is `1 - smoothing`;
            for `lsgan` and `bce` only.

    >>> float(discriminator_loss(torch.ones(4), torch.zeros(4), "lsgan"))
    0.0
    """
    real, fake = real_logits.float(), fake_logits.float()
    if mode == "lsgan":
        loss_real, loss_fake = (real - (1 - smoothing)).square().mean(), fake.square().mean()
    elif mode == "bce":
        target = torch.full_like(real, 1 - smoothing)
        loss_real, loss_fake = F.binary_cross_entropy_with_logits(real, target), F.softplus(fake).mean()
    elif mode == "hinge":
        loss_real, loss_fake = F.relu(1 - real).mean(), F.relu(1 + fake).mean()
    else:
        loss_real, loss_fake = -real.mean(), fake.mean()
    return 0.5 * (loss_real + loss_fake)


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real_bchw: Tensor,
    fake_bchw: Tensor,
    generator: torch.Generator | None = None,
    mix_b: Tensor | None = None,
) -> Tensor:
    """Return the WGAN-GP penalty `(|grad D(x)| - 1)^2` at random points between real and generated images; scalar.

    Args:
        discriminator: maps (N, 3, H, W) to logits.
        real_bchw: (N, 3, H, W).
        fake_bchw: (N, 3, H, W), detached here.
        generator: a CPU generator for the mixing weights; None = the global one.
        mix_b: (N,) the mixing weights, in [0, 1]; None: they are drawn.
    """
    n = len(real_bchw)
    mix = (torch.rand(n, generator=generator) if mix_b is None else mix_b).to(real_bchw).view(n, 1, 1, 1)
    points = (mix * real_bchw + (1 - mix) * fake_bchw).detach().requires_grad_()
    with torch.enable_grad():
        logits = discriminator(points).float()
        (gradient,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()


def together(network: nn.Module, *images: Tensor) -> tuple[Tensor, ...]:
    """Return what a network makes of several batches, which it sees as one.

    >>> [image.tolist() for image in together(nn.ReLU(), torch.tensor([-1.0, 2.0]), torch.tensor([3.0]))]
    [[0.0, 2.0], [3.0]]
    """
    return network(torch.cat(images)).split([len(image) for image in images])
