"""Pseudo-cases: clusters of tiles that look like one slide, for datasets that do not say which slide a tile is from.

A slide is stained and scanned once, so its tiles share the colour of the glass, the colours of the stains and the noise
of the scanner, whatever tissue they show. Tiles are clustered by these (Ward's method), and the number of clusters is
the one with the best mean silhouette (Rousseeuw, 1987).

Shape suffixes: n, m = tiles; f = features; h, w = height, width; c = colour.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from ihc2he.data.store import TileStore, map_in_threads
from ihc2he.files import write_csv
from ihc2he.images.writing import write_png
from ihc2he.stain.deconvolution import optical_density
from ihc2he.tiling.resampling import resize

log = logging.getLogger(__name__)

MOST = 60  # pseudo-cases of a class, or of all tiles
SHOWN = 10  # tiles of each in the picture
SIDE = 64  # px of a tile in the picture
_TISSUE = 0.06  # mean optical density from which on a pixel is tissue
_SMOOTH = 0.05  # share of the smoothest windows, in which only the scanner's noise is left


def pseudo_cases(folder: Path, store: TileStore, one_class: bool, most: int = MOST) -> list[str]:
    """Return the pseudo-case of each record; they are found once and written to `pseudo_cases.csv`, with a picture.

    Args:
        folder: for the table and `pseudo_cases.png`.
        store: with the tiles, of which all stains are looked at.
        one_class: whether tiles of different classes are never of one case, as levels of slides; each class is then
            clustered on its own.
        most: largest number of clusters that is tried.
    """
    table = folder / "pseudo_cases.csv"
    names = [row["name"] for row in store.rows]
    fields = sorted(store.rows[0]["shapes"], reverse=True)  # IHC first
    if (known := _read(table, names)) is not None:
        return known
    log.info("Looking for pseudo-cases among %d tiles.", len(names))
    look_nf = np.array([*map_in_threads(lambda i: looks_of(store, i, fields), range(len(names)))])
    groups = [row["group"] if one_class else "" for row in store.rows]
    cases, quality = clustered(look_nf, groups, most)
    rows = [
        {"name": name, "case": case} | {f"look_{k}": f"{value:.4f}" for k, value in enumerate(look_f)}
        for name, case, look_f in zip(names, cases, look_nf, strict=True)
    ]
    draw(table.with_suffix(".png"), store, fields[0], cases)
    write_csv(table, rows)
    log.info("%d pseudo-cases (mean silhouette %.2f): %s", len(set(cases)), quality, table)
    return cases


def _read(table: Path, names: Sequence[str]) -> list[str] | None:
    """Return the pseudo-cases of an earlier run, if they are of these tiles."""
    if not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [*csv.DictReader(stream)]
    return [row["case"] for row in rows] if [row["name"] for row in rows] == [*names] else None


def looks_of(store: TileStore, number: int, fields: Sequence[str]) -> NDArray[np.float64]:
    """Return what the stain and the scanner made of a tile, from all its stains."""
    return np.concatenate([look_of(store.read(number, name)) for name in fields])


def look_of(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the glass, the stain colours and the noise of a tile; what it does not show is NaN.

    Args:
        image: HxWx3 uint8 RGB.

    >>> look_of(np.full((32, 32, 3), 240, np.uint8))[:3].tolist()
    [240.0, 240.0, 240.0]
    """
    smooth_hwc = cv2.blur(image, (5, 5))
    bright_hw = smooth_hwc.min(-1) >= np.percentile(smooth_hwc.min(-1), 97)
    glass_c = smooth_hwc[bright_hw].mean(0)
    value_hwc = image.astype(np.float32)
    deviation_hwc = np.sqrt(np.maximum(cv2.blur(value_hwc**2, (5, 5)) - cv2.blur(value_hwc, (5, 5)) ** 2, 0))
    noise_c = np.quantile(deviation_hwc.reshape(-1, 3), _SMOOTH, axis=0)
    od_hwc = optical_density(np.minimum(255 * value_hwc / np.maximum(glass_c, 1), 255).astype(np.uint8))
    return np.concatenate([glass_c, noise_c, _stain_colours(od_hwc)])


def _stain_colours(od_hwc: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the two outermost directions of the optical density (Macenko et al., ISBI 2009), 2 x 3 values."""
    od_mc = od_hwc[od_hwc.mean(-1) > _TISSUE]
    if len(od_mc) < 100:
        return np.full(6, np.nan)
    plane_c2 = np.linalg.eigh(np.cov(od_mc.T))[1][:, [2, 1]]
    plane_c2 = plane_c2 * np.where(plane_c2.sum(0) < 0, -1, 1)
    along_m2 = od_mc @ plane_c2
    angle_m = np.arctan2(along_m2[:, 1], along_m2[:, 0])
    ends = [plane_c2 @ [np.cos(a), np.sin(a)] for a in np.percentile(angle_m, (2, 98))]
    ends.sort(key=lambda end_c: -end_c[0])
    return np.concatenate(ends)


def clustered(look_nf: NDArray[np.float64], groups: Sequence[str], most: int = MOST) -> tuple[list[str], float]:
    """Return the name of the cluster of each tile, and the mean silhouette of all tiles.

    Args:
        look_nf: looks of the tiles; what is NaN counts as ordinary.
        groups: of the tiles; each is clustered on its own.
        most: largest number of clusters of a group.
    """
    centre_f = np.nanmedian(look_nf, axis=0)
    spread_f = 1.4826 * np.nanmedian(np.abs(look_nf - centre_f), axis=0)
    score_nf = np.clip(np.nan_to_num((look_nf - centre_f) / np.maximum(spread_f, 1e-3)), -4, 4)
    names = np.empty(len(groups), object)
    quality_n = np.zeros(len(groups))
    for group in sorted(set(groups)):
        own_n = np.flatnonzero(np.asarray(groups) == group)
        cluster_m, quality = _best_clusters(score_nf[own_n], most)
        quality_n[own_n] = quality
        names[own_n] = [f"{group} {cluster:03d}".strip() for cluster in cluster_m]
    return names.tolist(), float(quality_n.mean())


def _best_clusters(score_mf: NDArray[np.float64], most: int) -> tuple[NDArray[np.int64], float]:
    if len(score_mf) < 4:
        return np.ones(len(score_mf), int), 0.0
    distances = pdist(score_mf)
    tree, distance_mm = linkage(score_mf, "ward"), squareform(distances)
    found = [fcluster(tree, k, "maxclust") for k in range(2, min(most, len(score_mf) // 2) + 1)]
    quality = [silhouette(distance_mm, cluster_m) for cluster_m in found]
    best = int(np.argmax(quality))
    return found[best], quality[best]


def silhouette(distance_nn: NDArray[np.float64], cluster_n: NDArray[np.integer]) -> float:
    """Return the mean silhouette of clusters: from -1 to 1, the larger the clearer they are apart.

    Args:
        distance_nn: between the items.
        cluster_n: of each item.

    >>> distance_nn = squareform(pdist([[0.0], [1.0], [9.0], [10.0]]))
    >>> round(silhouette(distance_nn, np.array([1, 1, 2, 2])), 3)
    0.889
    """
    kinds, of_n, size_k = np.unique(cluster_n, return_inverse=True, return_counts=True)
    if len(kinds) < 2:
        return 0.0
    sums_nk = distance_nn @ np.eye(len(kinds))[of_n]
    rows_n, own_n = np.arange(len(of_n)), size_k[of_n]
    within_n = sums_nk[rows_n, of_n] / np.maximum(own_n - 1, 1)
    mean_nk = sums_nk / size_k
    mean_nk[rows_n, of_n] = np.inf
    nearest_n = mean_nk.min(1)
    value_n = (nearest_n - within_n) / np.maximum(np.maximum(nearest_n, within_n), 1e-12)
    return float(np.where(own_n > 1, value_n, 0).mean())


def draw(path: Path, store: TileStore, stain: str, cases: Sequence[str]) -> None:
    """Draw some tiles of each pseudo-case, one line for each.

    Args:
        path: of the picture.
        store: with the tiles.
        stain: array that is shown.
        cases: of each record.
    """
    lines = []
    for case in sorted(set(cases)):
        line = np.full((SIDE, SHOWN * (SIDE + 2), 3), 255, np.uint8)
        for k, number in enumerate([i for i, own in enumerate(cases) if own == case][:SHOWN]):
            line[:, k * (SIDE + 2) : k * (SIDE + 2) + SIDE] = resize(store.read(number, stain), SIDE, SIDE)
        lines += [line, np.full((4, line.shape[1], 3), 255, np.uint8)]
    write_png(path, np.concatenate(lines))
