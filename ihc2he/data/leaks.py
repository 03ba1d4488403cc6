"""A check of splits: near-duplicates, or tiles of one case, on both sides of a split.

Shape suffixes: n, m = tiles; h, w = height, width; c = channels; k = values of a thumbnail.
"""

import logging
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

THUMBNAIL = 12  # px
ALIKE = 0.97  # correlation of two thumbnails from which on tiles are near-duplicates

Part = tuple[NDArray[np.uint8], Sequence[str], Sequence[str]]  # images, names, cases


def warn_of_leaks(parts: Mapping[str, Part]) -> None:
    """Log a warning where validation or test share a case with the training, or have near-duplicates there.

    Args:
        parts: for each split the tiles (N, H, W, C), their names, and their cases, "" where not known.
    """
    thumbnails = {split: thumbnails_of(images) for split, (images, _, _) in parts.items()}
    one = "train"
    for other in [split for split in parts if split != one]:
        shared = sorted(({*parts[one][2]} & {*parts[other][2]}) - {""})
        if shared:
            tiles = sum(case in shared for case in parts[other][2])
            log.warning(
                "%d cases, such as %s, are in both %s and %s: %d of %d %s tiles. A result on them says little about "
                "other cases; pass data.split=cases or pseudo_cases.",
                len(shared), shared[0], one, other, tiles, len(parts[other][2]), other,
            )  # fmt: skip
        pairs = near_duplicates(thumbnails[one], thumbnails[other])
        if pairs:
            i, j = pairs[0]
            log.warning(
                "%d pairs of tiles of %s and %s are near-duplicates, such as %s and %s. Remove them from one of both.",
                len(pairs), one, other, parts[one][1][i], parts[other][1][j],
            )  # fmt: skip


def thumbnails_of(image_nhwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a thumbnail of each tile as a vector of mean 0 and length 1, (N, K)."""
    size = (THUMBNAIL, THUMBNAIL)
    grey = [cv2.resize(image_hwc.mean(-1), size, interpolation=cv2.INTER_AREA) for image_hwc in image_nhwc]
    value_nk = np.array(grey, np.float32).reshape(len(grey), THUMBNAIL**2)
    value_nk -= value_nk.mean(1, keepdims=True)
    return value_nk / np.maximum(np.linalg.norm(value_nk, axis=1, keepdims=True), 1e-6)


def near_duplicates(one_nk: NDArray[np.float32], other_mk: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Return the pairs of tiles that show the same place, however turned or mirrored, the most alike first.

    Args:
        one_nk: thumbnails of one split.
        other_mk: of the other.
    """
    if not len(one_nk) or not len(other_mk):
        return []
    turned_mhw = other_mk.reshape(-1, THUMBNAIL, THUMBNAIL)
    best_nm = np.full((len(one_nk), len(other_mk)), -1, np.float32)
    for mirrored_mhw in (turned_mhw, turned_mhw[:, ::-1]):
        for quarter in range(4):
            view_mk = np.rot90(mirrored_mhw, quarter, (1, 2)).reshape(len(other_mk), -1)
            np.maximum(best_nm, one_nk @ view_mk.T, out=best_nm)
    found = np.argwhere(best_nm > ALIKE)
    order = np.argsort(-best_nm[best_nm > ALIKE], kind="stable")
    return [(int(i), int(j)) for i, j in found[order]]
