"""The nearest real tile of a made one, and whether made tiles are copies of tiles that were trained on.

Tiles are compared by their pixels, reduced to 16 px, in all eight turns and mirrorings, since a generator that was
trained on turned tiles copies them turned.

Shape suffixes: b = batch, n = made tiles, m = real tiles, c = colour, h, w = height, width, d = values of a thumbnail.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.metrics.cards import Card

THUMBNAIL_PX = 16
TURNS = 8
COPY = 1 / 3  # a tile this many times as far from the nearest trained tile as from the nearest unseen one is a copy

_ALL = (
    Card(
        "train_ratio", "Distance ratio", False, "0 upwards", 1,
        "median of distance to the nearest training tile / to the nearest unseen tile, by pixels at 16 px in 8 turns; "
        "below 1 also where training tiles are more", best=1,
    ),
    Card("memorised", "Copies", False, "0 to 1", 1, "share of made tiles whose distance ratio is below 1/3"),
)  # fmt: skip
CARDS: dict[str, Card] = {card.name: card for card in _ALL}


class Nearest(NamedTuple):
    """The nearest real tile of each made tile.

    Attributes:
        distance_n: root mean square difference of the thumbnails; infinite where there are no real tiles.
        index_n: number of the real tile.
        turn_n: how it is turned, see `turned`.
    """

    distance_n: Tensor
    index_n: Tensor
    turn_n: Tensor


def thumbnails(x_bchw: Tensor) -> Tensor:
    """Return the pixels of reduced square tiles, (N, C, 16, 16)."""
    return F.adaptive_avg_pool2d(x_bchw.float(), THUMBNAIL_PX)


def turned(x_chw: Tensor, turn: int) -> Tensor:
    """Return square tiles turned by 90 degrees `turn % 4` times, mirrored before that from turn 4 on.

    >>> turned(torch.tensor([[[1, 2], [3, 4]]]), 5).tolist()
    [[[1, 3], [2, 4]]]
    """
    return torch.rot90(x_chw.flip(-1) if turn >= TURNS // 2 else x_chw, turn % 4, (-2, -1))


def nearest(fake_nchw: Tensor, real_mchw: Tensor) -> Nearest:
    """Return the nearest real tile of each made tile, in the turn that fits best.

    Args:
        fake_nchw: thumbnails of made tiles.
        real_mchw: thumbnails of real tiles.

    >>> tiles = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> found = nearest(turned(tiles[2:], 1), tiles)
    >>> found.distance_n.item(), found.index_n.item(), found.turn_n.item()
    (0.0, 2, 1)
    """
    n, m = len(fake_nchw), len(real_mchw)
    if not n or not m:
        none = torch.zeros(n, dtype=torch.long)
        return Nearest(torch.full((n,), torch.inf), none, none)
    turns = torch.stack([turned(real_mchw, turn) for turn in range(TURNS)]).flatten(0, 1).flatten(1)
    fake_nd = fake_nchw.flatten(1)
    # By products of matrices, which is fast and not exact; the distance of the nearest is.
    parts = [torch.cdist(part, turns, compute_mode="use_mm_for_euclid_dist").argmin(1) for part in fake_nd.split(256)]
    place_n = torch.cat(parts)
    distance_n = (fake_nd - turns[place_n]).square().mean(1).sqrt()
    return Nearest(distance_n, place_n % m, place_n // m)
