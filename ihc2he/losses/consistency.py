"""Losses of a student against the maps of its teacher, where the teacher is sure; in float32 on any device.

Shape suffixes: b = batch, k = maps (foreground, centres, then background and types), h, w = height, width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.losses.centres import CENTRE, PEAK


def consistency_losses(maps: Mapping[str, Tensor], teacher_bkhw: Tensor, confidence: float) -> dict[str, Tensor]:
    """Return the terms of the loss by name, weighted as in `centre_losses`; each is a mean over all pixels.

    With p the teacher's probability of the foreground, a pixel is clear where max(p, 1 - p) is at least `confidence`.
    Only clear pixels count for the foreground, whose target is 1 or 0 (Sohn et al., FixMatch, NeurIPS 2020), and for
    the types, whose targets are the teacher's probabilities. The heat of centres has the teacher's as its target, and
    each pixel counts |2 p - 1| times as much as it would with labels.

    Args:
        maps: raw maps of the student, `mask`, `centre` and perhaps `types`, logits.
        teacher_bkhw: joined maps of the teacher, probabilities.
        confidence: above 0.5 and up to 1.

    >>> maps = {"mask": torch.zeros(1, 1, 1, 2), "centre": torch.zeros(1, 1, 1, 2)}
    >>> teacher_bkhw = torch.tensor([[[[0.95, 0.6]], [[0.0, 0.0]]]])
    >>> {k: round(v.item(), 3) for k, v in consistency_losses(maps, teacher_bkhw, 0.9).items()}
    {'mask': 0.347, 'centre': 0.762}
    """
    p_bhw, heat_bhw = teacher_bkhw[:, 0].float(), teacher_bkhw[:, 1].float()
    clear_bhw = clear(p_bhw, confidence)
    with torch.autocast(p_bhw.device.type, enabled=False):
        mask_bhw, centre_bhw = maps["mask"].float()[:, 0], maps["centre"].float()[:, 0]
        weight_bhw = (2 * p_bhw - 1).abs() * (1 + PEAK * heat_bhw)
        losses = {
            "mask": F.binary_cross_entropy_with_logits(mask_bhw, (p_bhw > 0.5).float(), clear_bhw),
            "centre": CENTRE * F.binary_cross_entropy_with_logits(centre_bhw, heat_bhw, weight_bhw),
        }
        if "types" in maps:
            per_pixel_bhw = F.cross_entropy(maps["types"].float(), teacher_bkhw[:, 2:].float(), reduction="none")
            losses["types"] = (clear_bhw * per_pixel_bhw).mean()
    return losses


def clear(p_bhw: Tensor, confidence: float) -> Tensor:
    """Return 1 where a probability is clearly high or low, else 0.

    >>> clear(torch.tensor([0.05, 0.5, 0.9]), 0.9).tolist()
    [1.0, 0.0, 1.0]
    """
    return (torch.maximum(p_bhw, 1 - p_bhw) >= confidence).float()


def ramp(step: int, steps: int) -> float:
    """Return the share of its weight that a loss has at a step from 0: exp(-5 (1 - t)^2), t from 0 to 1 at `steps`.

    Laine and Aila, ICLR 2017.

    >>> [round(ramp(step, 4), 3) for step in (0, 2, 4, 9)], ramp(0, 0)
    ([0.007, 0.287, 1.0, 1.0], 1.0)
    """
    return 1.0 if step >= steps else math.exp(-5 * (1 - step / steps) ** 2)
