"""From blocks of IHC to maps of nuclei: translate, segment, average over an ensemble.

Shape suffixes: b = batch, c = colour, k = maps, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ihc2he.models.handover import Handover, Job
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.pipeline.translators import Translator
from ihc2he.models.pixels import pixels
from ihc2he.nuclei.decoders.base import find_and_vote
from ihc2he.stain.white import FULL, White
from ihc2he.tiling.augmentation import turned
from ihc2he.tiling.resampling import resampled_size, resized


class Maps(NamedTuple):
    """The maps of a batch of tiles of the same size, before nuclei are separated.

    Attributes:
        he_bchw: the H&E that was segmented, of the first member, on the tiles' grid, in [0, 1].
        maps_bkhw: mean over members and views, on the segmenter's grid.
        votes_bhw: share of members and views that call a pixel nucleus; None with a single one.
    """

    he_bchw: Tensor
    maps_bkhw: Tensor
    votes_bhw: Tensor | None


def translate(
    translator: Translator, x_bchw: Tensor, mpp: float, member: int = 0, states: Sequence[Any] = ()
) -> Tensor:
    """Return the H&E of tiles at the translator's pixel size, in [0, 1].

    Args:
        translator: from IHC to H&E.
        x_bchw: (N, 3, H, W) in [0, 1].
        mpp: pixel size of the tiles, um/px.
        member: of the translator.
        states: for each tile, what the translator has prepared from its whole image.
    """
    translator, member, states = translator.of_member(member, states)
    if translator.mpp is not None:
        height, width = resampled_size(x_bchw.shape[-2], x_bchw.shape[-1], mpp, translator.mpp)
        x_bchw = resized(x_bchw, height, width)
    if all(state is None for state in states):
        return translator(x_bchw, member).float()
    return translator(x_bchw, member, states).float()


@torch.no_grad()
def predict(
    translator: Translator,
    segmenters: Mapping[str, Segmenter],
    x_bchw: Tensor,
    mpp: float,
    views: Sequence[int] = (0,),
    states: Sequence[Any] = (),
    prepared: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Maps]:
    """Return the maps of each segmenter for tiles after their translation.

    A tile in another view is translated and segmented in that view, and its maps are turned back.

    Args:
        translator: from IHC to H&E; it runs once for all segmenters.
        segmenters: by name.
        x_bchw: (N, 3, H, W) in [0, 1].
        mpp: pixel size of the tiles, um/px.
        views: of `ihc2he.tiling.augmentation.VIEWS`; the first has to be 0, the tile as it is.
        states: for each tile, what the translator has prepared from its whole image.
        prepared: by segmenter, what it has prepared for each tile.
    """
    height, width = x_bchw.shape[-2:]
    sums: dict[str, Tensor] = {}
    votes: dict[str, Tensor] = {}
    he_bchw = x_bchw
    for member in range(translator.members):
        for view in views:
            seen_bchw = translate(translator, turned(x_bchw, view), mpp, member, states)
            if member == 0 and view == 0:
                he_bchw = resized(seen_bchw, height, width)
            for name, segmenter in segmenters.items():
                size = resampled_size(height, width, mpp, segmenter.mpp or mpp)
                at_size_bchw = resized(seen_bchw, *(size[::-1] if view & 4 else size))
                given = (prepared or {}).get(name) or []
                given = [] if all(state is None for state in given) else [given]
                for own in range(segmenter.members):
                    maps_bkhw = segmenter.turned_back(segmenter(at_size_bchw, own, *given), view)
                    vote_bhw = segmenter.votes(maps_bkhw)
                    sums[name] = sums[name] + maps_bkhw if name in sums else maps_bkhw
                    if vote_bhw is not None:
                        votes[name] = votes[name] + vote_bhw if name in votes else vote_bhw
    result = {}
    for name, segmenter in segmenters.items():
        n = translator.members * len(views) * segmenter.members
        result[name] = Maps(he_bchw, sums[name] / n, votes[name] / n if n > 1 and name in votes else None)
    return result


class Part(NamedTuple):
    """The results of a block.

    Attributes:
        he: hxwx3 uint8, the H&E that was segmented.
        job: promises its nuclei, on the same grid, and with an ensemble their agreement.
    """

    he: NDArray[np.uint8]
    job: Job


def submit(
    handover: Handover[Any],
    segmenter: Segmenter,
    maps: Maps,
    whites: Sequence[White] = (),
    inks: Sequence[NDArray[np.bool_]] = (),
) -> list[Part]:
    """Return the parts of a batch; workers find their nuclei in the meantime.

    Args:
        handover: to the workers that find nuclei.
        segmenter: that made the maps.
        maps: of the batch.
        whites: for each tile, the white point of the H&E of its image; empty: 255.
        inks: for each tile, hxw, where ink covers it; empty: nowhere.
    """
    he_bhwc = pixels(maps.he_bchw)
    maps_bkhw = segmenter.reduced(maps.maps_bkhw).cpu().numpy()
    votes = [None] * len(he_bhwc) if maps.votes_bhw is None else maps.votes_bhw.cpu().numpy()
    parts = []
    whites = whites or [FULL] * len(he_bhwc)
    inks = inks or [np.zeros(he.shape[:2], bool) for he in he_bhwc]
    for he, maps_khw, votes_hw, white, ink_hw in zip(he_bhwc, maps_bkhw, votes, whites, inks, strict=True):
        maps_khw = segmenter.corrected(maps_khw, white, ink_hw)  # noqa: PLW2901
        given = (segmenter.find, maps_khw, votes_hw, segmenter.mpp or np.nan, he.shape[:2])
        nbytes = maps_khw.nbytes + 3 * he.nbytes  # with IHC, H&E and instances, which wait too
        parts.append(Part(he, handover.submit(find_and_vote, *given, nbytes=nbytes)))
    return parts
