"""DiffAugment: the same random changes for real and for made tiles, which gradients pass (Zhao et al., NeurIPS 2020).

For small data: the discriminator cannot learn it by heart, and the generator does not learn the changes.
Shape suffixes: b = batch, c = colour, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.models.generation.draws import Draws

TRANSLATION = 1 / 8  # of the side, at most
CUTOUT = 1 / 2  # of the side


def diff_augment(x_bchw: Tensor, policy: Sequence[str], draws: Draws) -> Tensor:
    """Return tiles with the changes of a policy, each image with its own.

    Args:
        x_bchw: (N, 3, H, W) in [-1, 1].
        policy: any of `POLICIES`; none: the tiles themselves.
        draws: random numbers.

    >>> x = torch.zeros(2, 3, 8, 8)
    >>> diff_augment(x, [], Draws((0,))) is x
    True
    """
    for name in policy:
        x_bchw = POLICIES[name](x_bchw, draws)
    return x_bchw


def colour(x_bchw: Tensor, draws: Draws) -> Tensor:
    """Return tiles of other brightness (by up to 0.5), saturation (times 0 to 2) and contrast (times 0.5 to 1.5)."""
    brightness, saturation, contrast = (u.view(-1, 1, 1, 1) for u in draws.uniform(len(x_bchw), 3).to(x_bchw).unbind(1))
    x_bchw = x_bchw + brightness - 0.5
    grey = x_bchw.mean(1, keepdim=True)
    x_bchw = grey + (x_bchw - grey) * 2 * saturation
    mean = x_bchw.mean((1, 2, 3), keepdim=True)
    return mean + (x_bchw - mean) * (contrast + 0.5)


def translation(x_bchw: Tensor, draws: Draws) -> Tensor:
    """Return tiles moved by whole px, up to an eighth of the side; what enters is 0."""
    h, w = x_bchw.shape[-2:]
    most_h, most_w = int(h * TRANSLATION + 0.5), int(w * TRANSLATION + 0.5)
    padded = F.pad(x_bchw, (most_w, most_w, most_h, most_h))
    tops, lefts = (_integers(draws, len(x_bchw), 2 * most + 1) for most in (most_h, most_w))
    moved = [x[:, t : t + h, le : le + w] for x, t, le in zip(padded, tops, lefts, strict=True)]
    return torch.stack(moved).contiguous(memory_format=_format_of(x_bchw))


def cutout(x_bchw: Tensor, draws: Draws) -> Tensor:
    """Return tiles with a square of half the side set to 0, which may lie partly outside."""
    h, w = x_bchw.shape[-2:]
    cut_h, cut_w = int(h * CUTOUT + 0.5), int(w * CUTOUT + 0.5)
    keep = torch.ones_like(x_bchw[:, :1])
    tops, lefts = _integers(draws, len(keep), h + 1 - cut_h % 2), _integers(draws, len(keep), w + 1 - cut_w % 2)
    for mask, t, le in zip(keep, tops, lefts, strict=True):
        mask[:, max(t - cut_h // 2, 0) : t - cut_h // 2 + cut_h, max(le - cut_w // 2, 0) : le - cut_w // 2 + cut_w] = 0
    return x_bchw * keep


def _integers(draws: Draws, n: int, below: int) -> list[int]:
    return (draws.uniform(n) * below).long().tolist()


def _format_of(x_bchw: Tensor) -> torch.memory_format:
    last = x_bchw.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x_bchw.is_contiguous() else torch.contiguous_format


POLICIES: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "colour": colour,
    "translation": translation,
    "cutout": cutout,
}
