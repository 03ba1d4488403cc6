"""The loss of pyramid pix2pix on pairs that are aligned only coarsely (Liu et al., CVPR Workshops 2022)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLURS = 4  # per octave, as in the paper's scale space


def pyramid_l1(made_bchw: Tensor, real_bchw: Tensor, octaves: int = 3) -> Tensor:
    """Return the sum over octaves of the mean absolute difference of two images; scalar, float32.

    For each octave the images are blurred four times by a 3x3 Gaussian of sigma 1, with mirrored borders, and every
    second pixel is kept. Full resolution is not part of the sum. Blurring is linear, so the difference is blurred
    instead of both images.

    Args:
        made_bchw: (N, C, H, W).
        real_bchw: likewise.
        octaves: levels below full resolution; H and W of at least 2 px are needed at each.

    >>> float(pyramid_l1(torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), octaves=3))
    3.0
    """
    difference_bchw = made_bchw.float() - real_bchw.float()
    total = difference_bchw.new_zeros(())
    for _ in range(octaves):
        for _ in range(BLURS):
            difference_bchw = _blur(difference_bchw)
        difference_bchw = difference_bchw[..., ::2, ::2]
        total = total + difference_bchw.abs().mean()
    return total


def _blur(x_bchw: Tensor) -> Tensor:
    side = math.exp(-0.5)
    tap = torch.tensor([side, 1.0, side], dtype=x_bchw.dtype, device=x_bchw.device) / (1 + 2 * side)
    kernel = torch.outer(tap, tap).expand(x_bchw.shape[1], 1, 3, 3)
    with torch.autocast(x_bchw.device.type, enabled=False):
        return F.conv2d(F.pad(x_bchw, (1, 1, 1, 1), mode="reflect"), kernel, groups=x_bchw.shape[1])
