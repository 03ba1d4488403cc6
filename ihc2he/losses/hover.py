"""Losses of HoVer-Net (Graham et al., Medical Image Analysis 2019, section 3.1), computed in float32 on any device.

Shape suffixes: b = batch, c = class, 2 = horizontal and vertical, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.errors import ConfigError, did_you_mean

UNKNOWN = -100  # the target that cross-entropy ignores
TERMS = ("np_ce", "np_dice", "np_tversky", "hv_mse", "hv_msge", "nc_ce", "nc_dice", "nc_tversky")
REFERENCE_LOSSES = {"np_ce": 1.0, "np_dice": 1.0, "hv_mse": 2.0, "hv_msge": 1.0, "nc_ce": 1.0, "nc_dice": 1.0}
MSGE_AXES = ("aligned", "cross")


def check_terms(names: Iterable[str]) -> None:
    """Raise a ConfigError that names the nearest known term, for one that is not known.

    >>> check_terms(["np_ce", "hv_msge"])
    """
    for name in names:
        if name not in TERMS:
            msg = f"model.losses: there is no term '{name}'.{did_you_mean(name, TERMS)}"
            raise ConfigError(msg)


def check_msge_axis(axis: str) -> str:
    """Return the axis, or raise a ConfigError that names the nearest known one.

    >>> check_msge_axis("aligned")
    'aligned'
    """
    if axis not in MSGE_AXES:
        msg = f"There is no msge_axis '{axis}'.{did_you_mean(axis, MSGE_AXES)}"
        raise ConfigError(msg)
    return axis


def hover_losses(
    maps: Mapping[str, Tensor], targets: Mapping[str, Tensor], weights: Mapping[str, float], msge_axis: str = "aligned"
) -> dict[str, Tensor]:
    """Return the weighted terms of the loss by name; their sum is to be minimised.

    Args:
        maps: `np` (N, 2, H, W) and `tp` (N, C, H, W) logits, `hv` (N, 2, H, W).
        targets: `inst` (N, H, W) integers, 0 = background; `hv` (N, 2, H, W); `type` (N, H, W) integers, 0 =
            background. If `tp` or `type` is missing, there are no terms `nc_*`. Nuclei without a type do not count in
            them.
        weights: by name from `TERMS`; a term without a weight, or with 0, is not computed.
        msge_axis: `aligned` or `cross`, see `msge_loss`.

    >>> maps = {"np": torch.zeros(1, 2, 4, 4), "hv": torch.zeros(1, 2, 4, 4)}
    >>> targets = {"inst": torch.zeros(1, 4, 4, dtype=torch.int32), "hv": torch.ones(1, 2, 4, 4)}
    >>> {k: round(v.item(), 3) for k, v in hover_losses(maps, targets, {"np_ce": 1, "hv_mse": 2}).items()}
    {'np_ce': 0.693, 'hv_mse': 2.0}
    """
    nucleus_bhw = (targets["inst"] > 0).long()
    logits = {"np": (maps["np"].float(), nucleus_bhw)}
    if "tp" in maps and "type" in targets:
        logits["nc"] = (maps["tp"].float(), known_types(targets))
    hv_b2hw, hv_true_b2hw = maps["hv"].float(), targets["hv"].float()
    losses = {}
    with torch.autocast(hv_b2hw.device.type, enabled=False):
        for name, weight in weights.items():
            branch, _, kind = name.partition("_")
            if weight == 0 or (branch not in logits and branch != "hv"):
                continue
            if name == "hv_mse":
                loss = F.mse_loss(hv_b2hw, hv_true_b2hw)
            elif name == "hv_msge":
                loss = msge_loss(hv_b2hw, hv_true_b2hw, nucleus_bhw, msge_axis)
            else:
                loss = _OF_LOGITS[kind](*logits[branch])
            losses[name] = weight * loss
    return losses


def known_types(targets: Mapping[str, Tensor]) -> Tensor:
    """Return the type of each pixel, (N, H, W) integers: 0 = background, `UNKNOWN` on nuclei without a type.

    Args:
        targets: `inst` and `type`, (N, H, W) with 0 = background.

    >>> known_types({"inst": torch.tensor([0, 4, 5]), "type": torch.tensor([0, 2, 0])}).tolist()
    [0, 2, -100]
    """
    types_bhw = targets["type"].long()
    return types_bhw.masked_fill((targets["inst"] > 0) & (types_bhw == 0), UNKNOWN)


def cross_entropy(logits_bchw: Tensor, target_bhw: Tensor) -> Tensor:
    """Return the mean cross-entropy of the pixels whose type is known; 0 if there is none.

    Args:
        logits_bchw: before the softmax.
        target_bhw: integers from 0 to C - 1, or `UNKNOWN`.

    >>> cross_entropy(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), UNKNOWN)).item()
    0.0
    """
    n = (target_bhw != UNKNOWN).sum().clamp_min(1)
    return F.cross_entropy(logits_bchw, target_bhw, ignore_index=UNKNOWN, reduction="sum") / n


def dice_loss(logits_bchw: Tensor, target_bhw: Tensor, smooth: float = 1e-3) -> Tensor:
    """Return the Dice loss of each class over the whole batch, summed over classes.

    Args:
        logits_bchw: before the softmax.
        target_bhw: integers from 0 to C - 1, or `UNKNOWN`, which does not count.
        smooth: avoids dividing by 0 if a class is absent.

    >>> round(dice_loss(torch.tensor([[9.0], [-9.0]]).view(1, 2, 1, 1), torch.zeros(1, 1, 1).long()).item(), 3)
    0.0
    """
    probability_bchw, truth_bchw = _probability_and_truth(logits_bchw, target_bhw)
    both_c = (probability_bchw * truth_bchw).sum((0, 2, 3))
    sizes_c = probability_bchw.sum((0, 2, 3)) + truth_bchw.sum((0, 2, 3))
    return (1 - (2 * both_c + smooth) / (sizes_c + smooth)).sum()


def focal_tversky_loss(
    logits_bchw: Tensor,
    target_bhw: Tensor,
    alpha: float = 0.7,
    beta: float = 0.3,
    gamma: float = 4 / 3,
    smooth: float = 1e-3,
) -> Tensor:
    """Return the focal Tversky loss (Abraham and Khan, ISBI 2019) of each class, summed over classes.

    Args:
        logits_bchw: before the softmax.
        target_bhw: integers from 0 to C - 1, or `UNKNOWN`, which does not count.
        alpha: weight of false negatives.
        beta: weight of false positives.
        gamma: 1 / gamma is the exponent, which gives more weight to difficult classes.
        smooth: avoids dividing by 0 if a class is absent.

    >>> round(focal_tversky_loss(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1).long()).item(), 3)
    1.509
    """
    probability_bchw, truth_bchw = _probability_and_truth(logits_bchw, target_bhw)
    both_c = (probability_bchw * truth_bchw).sum((0, 2, 3))
    missed_c = ((1 - probability_bchw) * truth_bchw).sum((0, 2, 3))
    wrong_c = (probability_bchw * (1 - truth_bchw)).sum((0, 2, 3))
    tversky_c = (both_c + smooth) / (both_c + alpha * missed_c + beta * wrong_c + smooth)
    # For a perfect class the slope of the root would be infinite, and rounding could even make its loss negative.
    return (1 - tversky_c).clamp(min=1e-7).pow(1 / gamma).sum()


def _probability_and_truth(logits_bchw: Tensor, target_bhw: Tensor) -> tuple[Tensor, Tensor]:
    known_b1hw = (target_bhw != UNKNOWN)[:, None]
    probability_bchw = logits_bchw.float().softmax(1) * known_b1hw
    truth_bchw = F.one_hot(target_bhw.clamp_min(0), logits_bchw.shape[1]).movedim(-1, 1).to(probability_bchw.dtype)
    return probability_bchw, truth_bchw * known_b1hw


def msge_loss(hv_b2hw: Tensor, hv_true_b2hw: Tensor, nucleus_bhw: Tensor, axis: str = "aligned") -> Tensor:
    """Return the mean squared difference of the gradients of two HV maps, inside nuclei.

    Args:
        hv_b2hw: predicted.
        hv_true_b2hw: true.
        nucleus_bhw: 1 where there is a nucleus, else 0.
        axis: `aligned` differentiates the horizontal map along x and the vertical along y, as the paper describes it;
            `cross` is the other way round, as in the reference implementation and its published weights.

    Raises:
        ConfigError: for an unknown axis.

    >>> ramp = torch.zeros(1, 2, 9, 9)
    >>> ramp[:, 0] = torch.arange(9)  # the horizontal map grows along x
    >>> inside = torch.zeros(1, 9, 9)
    >>> inside[:, 2:-2, 2:-2] = 1  # away from the border, which the kernel sees as 0
    >>> [round(msge_loss(ramp, 0 * ramp, inside, axis).item(), 3) for axis in ("aligned", "cross")]
    [72.0, 0.0]
    """
    kernel = _gradient_kernel(hv_b2hw)
    kernels = [kernel, kernel.T] if check_msge_axis(axis) == "aligned" else [kernel.T, kernel]
    # Gradients are linear, so one gradient of the difference is enough, at half the cost.
    gradient_b2hw = F.conv2d(hv_b2hw - hv_true_b2hw, torch.stack(kernels)[:, None], padding=2, groups=2)
    nucleus_b1hw = nucleus_bhw[:, None].to(hv_b2hw.dtype)
    return (gradient_b2hw.square() * nucleus_b1hw).sum() / (2 * nucleus_b1hw.sum() + 1e-8)


def _gradient_kernel(like: Tensor) -> Tensor:
    """Return the 5x5 kernel x / (x^2 + y^2), whose columns run along x."""
    offset = torch.arange(-2, 3, device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    return x / (x**2 + y**2 + 1e-15)


_OF_LOGITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dice": dice_loss,
    "tversky": focal_tversky_loss,
}
