"""Losses of learned centres and foreground, computed in float32 on any device.

Shape suffixes: b = batch, c = class, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.losses.hover import cross_entropy, known_types

CENTRE = 2.0  # weight of the heat map
PEAK = 4.0  # by how much a pixel of it counts more where a centre is: few pixels are any


def centre_losses(maps: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weighted terms of the loss by name; their sum is to be minimised.

    Args:
        maps: `mask` and `centre` (N, 1, H, W), and perhaps `types` (N, C, H, W), all logits.
        targets: `inst` (N, H, W) integers, 0 = background; `centre` (N, H, W), 1 at the centres; `type` (N, H, W)
            integers, 0 = background. Where `types` or `type` is missing, that term is left out; nuclei without a type
            do not count in it.

    >>> maps = {"mask": torch.zeros(1, 1, 2, 2), "centre": torch.zeros(1, 1, 2, 2)}
    >>> targets = {"inst": torch.ones(1, 2, 2, dtype=torch.int32), "centre": torch.zeros(1, 2, 2)}
    >>> {k: round(v.item(), 3) for k, v in centre_losses(maps, targets).items()}
    {'mask': 0.693, 'centre': 1.386}
    """
    nucleus_bhw = (targets["inst"] > 0).float()
    heat_bhw = targets["centre"].float()
    with torch.autocast(nucleus_bhw.device.type, enabled=False):
        mask_bhw, centre_bhw = maps["mask"].float()[:, 0], maps["centre"].float()[:, 0]
        weight_bhw = 1 + PEAK * heat_bhw
        losses = {
            "mask": F.binary_cross_entropy_with_logits(mask_bhw, nucleus_bhw),
            "centre": CENTRE * F.binary_cross_entropy_with_logits(centre_bhw, heat_bhw, weight_bhw),
        }
        if "types" in maps and "type" in targets:
            losses["types"] = cross_entropy(maps["types"].float(), known_types(targets))
    return losses
