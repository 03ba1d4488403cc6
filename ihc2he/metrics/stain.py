"""How a translation changes the stains: whether nuclei stay in place, and whether the brown is removed.

Shape suffixes: b = batch, c = colour (3), h, w = height, width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ihc2he.metrics.fidelity import Card, full_float32
from ihc2he.stain import Stain
from ihc2he.stain.deconvolution import DAB, EOSIN, HEMATOXYLIN, separate_batch

_ALL = (
    Card(
        "hematoxylin_correlation", "Hematoxylin r", True, "-1 to 1", 1,
        "Pearson over pixels of hematoxylin density in the IHC and the H&E image; negative means inverted",
    ),
    Card(
        "nuclear_correlation", "Nuclear stain r", True, "-1 to 1", 1,
        "Pearson over pixels of hematoxylin + DAB density in the IHC and hematoxylin in the H&E image",
    ),
    Card("dab_ratio", "DAB left", False, "0 upwards", 1, "mean DAB density of the translated H&E / that of the IHC"),
)  # fmt: skip
CARDS: dict[str, Card] = {card.name: card for card in _ALL}


def stain_change(source_bchw: Tensor, made_bchw: Tensor, to: Stain) -> dict[str, Tensor]:
    """Compare the stains of translated images with those of their sources; each value has shape (N,).

    Densities come from colour deconvolution with the vectors of Ruifrok and Johnston (2001): hematoxylin and DAB for
    IHC, hematoxylin and eosin for H&E. DAB in a translated H&E image is measured with all three vectors, so that eosin
    is not mistaken for DAB.

    Args:
        source_bchw: (N, 3, H, W) in [-1, 1], the images that were translated.
        made_bchw: (N, 3, H, W) in [-1, 1], their translations.
        to: the stain of the translations.

    Returns:
        `hematoxylin_correlation` and `nuclear_correlation` in [-1, 1], NaN if an image is constant; for `he` also
        `dab_ratio`, NaN if the source has no DAB.
    """
    ihc, he = (source_bchw, made_bchw) if to == "he" else (made_bchw, source_bchw)
    with full_float32(source_bchw.device):
        ihc_bshw = separate_batch(ihc, (HEMATOXYLIN, DAB))
        he_bhw = separate_batch(he, (HEMATOXYLIN, EOSIN))[:, 0]
        result = {
            "hematoxylin_correlation": _correlation(ihc_bshw[:, 0], he_bhw),
            "nuclear_correlation": _correlation(ihc_bshw.sum(1), he_bhw),
        }
        if to == "he":
            before, after = (_mean_dab(image) for image in (ihc, he))
            result["dab_ratio"] = torch.where(before > 0.01, after / before.clamp_min(0.01), torch.nan)
    return result


def _mean_dab(x_bchw: Tensor) -> Tensor:
    return separate_batch(x_bchw, (HEMATOXYLIN, EOSIN, DAB))[:, 2].clamp_min(0).mean((1, 2))


def _correlation(a_bhw: Tensor, b_bhw: Tensor) -> Tensor:
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a_bhw, b_bhw))
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 1e-6, (a * b).sum(1) / norm.clamp_min(1e-12), torch.nan)
