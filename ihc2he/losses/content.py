"""Losses of content: whether a translation keeps the nuclei of its source, computed in float32 on any device.

Shape suffixes: b = batch, c = colour (3), h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.stain.deconvolution import HE, IHC, separate_batch

_FLOOR = 1e-4  # OD^2, added to the variances, so that the noise of empty glass need not correlate


def nuclear_loss(ihc_bchw: Tensor, he_bchw: Tensor, dab: float = 1.0) -> Tensor:
    """Return 1 - r of the nuclear stain of IHC and of the H&E of the same place, mean over images; scalar in [0, 2].

    The nuclear stain is hematoxylin + `dab` * DAB in IHC and hematoxylin in H&E, by colour deconvolution (Ruifrok and
    Johnston, 2001). r is their correlation over pixels, which does not depend on how strongly either is stained:
    cov(a, b) / sqrt((var(a) + 1e-4) (var(b) + 1e-4)). An image without contrast gives 1, and no gradient to speak of.
    PSPStain (Chen et al., arXiv 2407.03655) compares densities of a separated stain too, but not by correlation.

    Args:
        ihc_bchw: (N, 3, H, W) in [-1, 1].
        he_bchw: likewise.
        dab: how much DAB counts: 1 for nuclear markers, whose positive nuclei are brown; 0 for others, or brown
            membranes would be asked to become hematoxylin.

    >>> x_bchw = torch.linspace(-0.5, 0.5, 48).view(1, 3, 4, 4)
    >>> nuclear_loss(x_bchw, torch.ones(1, 3, 4, 4)).item()
    1.0
    """
    return 1 - nuclear_correlation(ihc_bchw, he_bchw, dab).mean()


def nuclear_correlation(ihc_bchw: Tensor, he_bchw: Tensor, dab: float = 1.0) -> Tensor:
    """Return the correlation of `nuclear_loss` for each image, (N,)."""
    with torch.autocast(ihc_bchw.device.type, enabled=False):  # bfloat16 has too few digits for optical densities
        h_bhw, dab_bhw = separate_batch(ihc_bchw, IHC).unbind(1)
        a_bn = (h_bhw + dab * dab_bhw).flatten(1)
        b_bn = separate_batch(he_bchw, HE)[:, 0].flatten(1)
        a_bn, b_bn = (x_bn - x_bn.mean(1, keepdim=True) for x_bn in (a_bn, b_bn))
        variances_b = (a_bn.square().mean(1) + _FLOOR) * (b_bn.square().mean(1) + _FLOOR)
        return (a_bn * b_bn).mean(1) / variances_b.sqrt()


def segmentation_loss(maps: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """Return the mean absolute difference of raw maps of nuclei, each map counted once; scalar, 0 or more.

    Bouteldja et al., J Pathol Inform 13:100140 (2022), take it between the maps that a frozen segmenter has of an
    image and of its translations.

    Args:
        maps: of a network by name, (N, C, H, W) each, before the decoder.
        expected: the same maps of the image that was translated.

    >>> segmentation_loss({"mask": torch.ones(1, 1, 2, 2)}, {"mask": torch.full((1, 1, 2, 2), 3.0)}).item()
    2.0
    """
    return torch.stack([F.l1_loss(maps[name].float(), own.float()) for name, own in expected.items()]).mean()
