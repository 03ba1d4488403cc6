"""What a translation to H&E does to nuclei whose truth is known: those it loses and invents, and brown it makes blue.

Shape suffixes: h, w = height, width; c = colour (3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihc2he.metrics.cards import Card
from ihc2he.metrics.detection import confusion
from ihc2he.nuclei.classical import detect_nuclei
from ihc2he.nuclei.instances import centroids
from ihc2he.stain.deconvolution import HE, IHC, separate

BROWN = 0.15  # OD, from here on a pixel of the IHC counts as brown

_RULE = "of the classical detector on the made H&E, one-to-one within 3 um, mean over tiles of known truth"
_ALL = (
    Card("lost", "Nuclei lost", False, "nuclei", 1, f"true nuclei without one {_RULE}"),
    Card("invented", "Nuclei invented", False, "nuclei", 1, f"nuclei without a true one, {_RULE}"),
    Card(
        "dab_leakage", "DAB leakage", False, "OD", 1,
        "mean hematoxylin of the made H&E outside of true nuclei where the IHC is brown, mean over tiles",
    ),
)  # fmt: skip
CARDS: dict[str, Card] = {card.name: card for card in _ALL}


def content_change(
    ihc: NDArray[np.uint8], he: NDArray[np.uint8], inst_hw: NDArray[np.integer], mpp: float
) -> dict[str, float]:
    """Return `lost`, `invented` and `dab_leakage` of a translated tile, see `CARDS`.

    Args:
        ihc: HxWx3 uint8, what was translated.
        he: HxWx3 uint8, its translation.
        inst_hw: true instance map of the IHC.
        mpp: um/px.
    """
    matrix_cc = confusion(centroids(inst_hw), detect_nuclei(he, mpp), mpp)
    alone = {"lost": float(matrix_cc[1:, 0].sum()), "invented": float(matrix_cc[0].sum())}
    return alone | {"dab_leakage": dab_leakage(ihc, he, inst_hw)}


def dab_leakage(ihc: NDArray[np.uint8], he: NDArray[np.uint8], inst_hw: NDArray[np.integer]) -> float:
    """Return the mean hematoxylin of made H&E outside of nuclei where the IHC is brown; NaN if it is nowhere.

    Args:
        ihc: HxWx3 uint8.
        he: HxWx3 uint8, its translation.
        inst_hw: true instance map.
    """
    brown_hw = (separate(ihc, IHC)[..., 1] > BROWN) & (inst_hw == 0)
    return float(separate(he, HE)[..., 0][brown_hw].mean()) if brown_hw.any() else float("nan")
