"""Pale nuclei: the third of all keypoints with the least DAB, which have to be found by their hematoxylin alone.

Shape suffixes: n = keypoints; k = pixels around each; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ihc2he.metrics.cards import Card
from ihc2he.metrics.ratios import ratio
from ihc2he.stain.deconvolution import IHC, separate
from ihc2he.stain.white import FULL, White, relative_to_white

RADIUS_UM = 1.5


def pale_card(radius_um: float) -> Card:
    """Return the name card of `recall_pale`.

    Args:
        radius_um: largest distance of a keypoint and the nucleus that it is matched with.
    """
    rule = (
        "the third of all keypoints with the least DAB (mean within 1.5 um, from the white point; ties included); "
        f"matched as for recall, within {radius_um:g} um"
    )
    return Card("recall_pale", "Recall, pale nuclei", True, "0 to 1", 1, rule)


def dab_around(
    image: NDArray[np.uint8], points_n2: NDArray[np.number], mpp: float, white: White = FULL
) -> NDArray[np.float64]:
    """Return the mean DAB around points, in optical density; NaN for a point whose surroundings are off the image.

    Pixels without DAB count as 0, also those whose colour is bluer than hematoxylin.

    Args:
        image: HxWx3 uint8 RGB, an IHC tile.
        points_n2: (N, 2) points in px.
        mpp: um/px.
        white: white point of the image.

    >>> tile = np.full((9, 9, 3), 255, np.uint8)
    >>> tile[:, 5:] = 120, 60, 30
    >>> dab_around(tile, np.array([[1, 4], [7, 4]]), 1.0).round(2).tolist()
    [0.0, 1.19]
    """
    height, width = image.shape[:2]
    offsets = np.arange(-int(RADIUS_UM / mpp), int(RADIUS_UM / mpp) + 1)
    dy_k, dx_k = (grid.ravel() for grid in np.meshgrid(offsets, offsets, indexing="ij"))
    near_k = np.hypot(dx_k, dy_k) * mpp <= RADIUS_UM
    x_n, y_n = np.floor(np.asarray(points_n2) + 0.5).astype(np.int64).T
    x_nk, y_nk = x_n[:, None] + dx_k[near_k], y_n[:, None] + dy_k[near_k]
    on_nk = (x_nk >= 0) & (x_nk < width) & (y_nk >= 0) & (y_nk < height)
    pixels = image[y_nk.clip(0, height - 1), x_nk.clip(0, width - 1)]
    dab_nk = separate(relative_to_white(pixels, white), IHC)[..., 1].clip(0)
    n_n = on_nk.sum(1)
    return np.where(n_n, (dab_nk * on_nk).sum(1, dtype=np.float64) / np.maximum(n_n, 1), np.nan)


def pale_limit(dab: Sequence[NDArray[np.floating]]) -> float:
    """Return the DAB up to which keypoints are pale: that of the palest third of all; NaN if there are none.

    Keypoints with just this DAB are all pale, so where a larger part has no DAB at all, that part is pale.

    Args:
        dab: of the keypoints of each tile, NaN = unknown.

    >>> pale_limit([np.array([0.3, 0.1]), np.array([0.9, 0.2, np.nan, 0.4, 0.5])])
    0.2
    >>> pale_limit([np.zeros(4)])
    0.0
    """
    all_n = np.concatenate([*dab, np.empty(0)])
    all_n = np.sort(all_n[~np.isnan(all_n)])
    return float(all_n[-(-len(all_n) // 3) - 1]) if len(all_n) else float("nan")


def pale_counts(dab_n: NDArray[np.floating], true_m: NDArray[np.intp], limit: float) -> dict[str, NDArray[np.int64]]:
    """Return how many keypoints of a tile are pale, `pale`, and how many of these were found, `pale_tp`.

    Args:
        dab_n: of its keypoints.
        true_m: positions of those that were found.
        limit: as `pale_limit` gives it.
    """
    pale_n = dab_n <= limit
    return {"pale": np.asarray(pale_n.sum(), np.int64), "pale_tp": np.asarray(pale_n[true_m].sum(), np.int64)}


def pale_scores(sums: Mapping[str, NDArray]) -> dict[str, NDArray[np.float64]]:
    """Return the recall of pale keypoints, `recall_pale`, NaN without any.

    Args:
        sums: sums over tiles of `pale_counts`, with any leading axes.

    >>> dab_n, found_m = np.array([0.1, 0.9, 0.2, 0.8, 0.7]), np.array([0, 1, 4])
    >>> float(pale_scores(pale_counts(dab_n, found_m, pale_limit([dab_n])))["recall_pale"])
    0.5
    """
    return {"recall_pale": ratio(sums["pale_tp"], sums["pale"])}
