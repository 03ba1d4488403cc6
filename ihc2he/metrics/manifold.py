"""Precision, recall, density and coverage of made images in a feature space, by nearest neighbours.

Around each real image there is a ball that reaches to its k-th nearest real neighbour; together they are the manifold
of the real images. Balls around made images are theirs.

Shape suffixes: n = real images, m = made images, d = features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ihc2he.metrics.cards import Card

NEIGHBOURS = 5

_ALL = (
    Card("precision", "Precision", True, "0 to 1", 1, "Kynkaanniemi 2019: share of made images in a ball of the real"),
    Card("recall", "Recall", True, "0 to 1", 1, "Kynkaanniemi 2019: share of real images in a ball of the made"),
    Card("density", "Density", True, "0 upwards", 1, "Naeem 2020: real balls around a made image / k; about 1 is real"),
    Card("coverage", "Coverage", True, "0 to 1", 1, "Naeem 2020: share of real balls with a made image; low: collapse"),
)
CARDS: dict[str, Card] = {card.name: card for card in _ALL}


def manifold(real_nd: Tensor, fake_md: Tensor, k: int = NEIGHBOURS) -> dict[str, Tensor]:
    """Return precision, recall, density and coverage; NaN where there are no more than k images of either kind.

    Args:
        real_nd: (N, D) features of real images.
        fake_md: (M, D) features of made images.
        k: the neighbour that the balls reach to; the image itself does not count.

    >>> line = torch.arange(4.0)[:, None]
    >>> {name: value.item() for name, value in manifold(line, line + 0.1, k=1).items()}
    {'precision': 1.0, 'recall': 1.0, 'density': 1.75, 'coverage': 1.0}
    """
    if min(len(real_nd), len(fake_md)) <= k:
        return dict.fromkeys(CARDS, torch.tensor(torch.nan))
    real_nd, fake_md = real_nd.double(), fake_md.double()
    distance_mn = _distances(fake_md, real_nd)
    in_real_mn = distance_mn <= _radii(real_nd, k)
    in_fake_mn = distance_mn <= _radii(fake_md, k)[:, None]
    found = {
        "precision": in_real_mn.any(1),
        "recall": in_fake_mn.any(0),
        "density": in_real_mn.sum(1) / k,
        "coverage": in_real_mn.any(0),
    }
    return {name: value.double().mean().float() for name, value in found.items()}


def _distances(a_nd: Tensor, b_md: Tensor) -> Tensor:
    # Not by a product of matrices, whose rounding would set two equal images apart.
    return torch.cdist(a_nd, b_md, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x_nd: Tensor, k: int) -> Tensor:
    return _distances(x_nd, x_nd).kthvalue(k + 1, dim=1).values  # the nearest is the image itself
