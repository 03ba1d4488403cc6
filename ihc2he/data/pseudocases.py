"""Pseudo-cases: clusters of tiles that look like one slide, for datasets that do not say which slide a tile is from.

A slide is stained and scanned once, so its tiles share the colour of the glass, the colours of the stains, and the
noise and sharpness of the scanner, whatever tissue they show. These are measured on the quarters of each tile: what
differs from quarter to quarter is the tissue, so distances count in units of that (within-tile covariance, as in linear
discriminant analysis). Tiles are clustered by Ward's method, and the number of clusters is the one with the best mean
silhouette (Rousseeuw, 1987).

Shape suffixes: n = tiles; q = quarters; f = features; h, w = height, width; c = colour; m = pixels or tiles of a group.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from warnings import catch_warnings, simplefilter

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from ihc2he.data.store import TileStore, map_in_threads
from ihc2he.errors import DataError
from ihc2he.files import read_csv, write_csv
from ihc2he.images.writing import write_png
from ihc2he.stain.deconvolution import optical_density
from ihc2he.stain.white import FULL, White, relative_to_white, white_point
from ihc2he.tiling.resampling import resize

log = logging.getLogger(__name__)

MOST = 60  # pseudo-cases of a class, or of all tiles
SHOWN = 10  # tiles of each in the picture
SIDE = 64  # px of a tile in the picture
_TISSUE = 0.08  # mean optical density from which on a pixel is tissue
_LEAST = 200  # pixels of tissue from which the stains are measured
_SMOOTH = 0.03  # share of the smoothest windows, in which only the scanner's noise is left
_FARTHEST = 8  # times the median score, beyond which a score does not count any more
_SHRINKAGE = 0.05  # of the covariance within tiles


def pseudo_cases(folder: Path, store: TileStore, one_class: bool, most: int = MOST) -> list[str]:
    """Return the pseudo-case of each record; they are found once and written to `pseudo_cases.csv`, with a picture.

    Args:
        folder: for the table and `pseudo_cases.png`.
        store: with the tiles, of which all stains are looked at.
        one_class: whether tiles of different classes are never of one case, as levels of slides; each class is then
            clustered on its own.
        most: largest number of clusters that is tried.

    Raises:
        DataError: if they cannot be written.
    """
    table = folder / "pseudo_cases.csv"
    names = [row["name"] for row in store.rows]
    fields = sorted(store.rows[0]["shapes"], reverse=True)  # IHC first
    if (known := _read(table, names, store.origin)) is not None:
        return known
    log.info("Looking for pseudo-cases among %d tiles.", len(names))
    look_nqf = np.concatenate([looks_of(store, name) for name in fields], axis=-1)
    cases, quality = clustered(look_nqf, [row["group"] if one_class else "" for row in store.rows], most)
    rows = [{"name": name, "case": case, "store": store.origin} for name, case in zip(names, cases, strict=True)]
    try:
        draw(table.with_suffix(".png"), store, fields[0], cases)
        write_csv(table, rows)
    except OSError as error:
        msg = (
            f"{table}: could not be written ({error.strerror or error}). Pass a data.store that can be written to, or "
            "find the pseudo-cases once in a copy of the store and put this file beside it."
        )
        raise DataError(msg) from error
    log.info("%d pseudo-cases (mean silhouette %.2f): %s", len(set(cases)), quality, table)
    return cases


def _read(table: Path, names: Sequence[str], origin: str) -> list[str] | None:
    """Return the pseudo-cases of an earlier run, if they are of a store of these tiles from the same files."""
    rows = read_csv(table)
    same = [(row["name"], row.get("store")) for row in rows] == [(name, origin) for name in names]
    return [row["case"] for row in rows] if same else None


def looks_of(store: TileStore, stain: str) -> NDArray[np.float64]:
    """Return what the stain and the scanner made of the four quarters of each tile, (N, Q, F).

    Args:
        store: with the tiles.
        stain: array of a record.
    """
    numbers = range(len(store.rows))
    whites = [*map_in_threads(lambda i: white_point(store.read(i, stain)), numbers)]
    known = [white for white in whites if white != FULL]
    usual: White = tuple(np.median(known, axis=0).tolist()) if known else FULL
    own = [usual if white == FULL else white for white in whites]
    return np.array([*map_in_threads(lambda i: _quarters(store.read(i, stain), own[i]), numbers)])


def _quarters(image: NDArray[np.uint8], white: White) -> NDArray[np.float64]:
    height, width = (side // 2 for side in image.shape[:2])
    corners = [(top, left) for top in (0, height) for left in (0, width)]
    return np.array([look_of(image[top : top + height, left : left + width], white) for top, left in corners])


def look_of(image: NDArray[np.uint8], white: White) -> NDArray[np.float64]:
    """Return the colours of glass and stains, noise, sharpness and darkness; what is not shown is NaN.

    Args:
        image: HxWx3 uint8 RGB.
        white: glass of the whole tile, or of other tiles where it shows none.

    >>> look_of(np.full((32, 32, 3), 240, np.uint8), (240.0, 240.0, 240.0))[:3].tolist()
    [240.0, 240.0, 240.0]
    """
    value_hwc, own = image.astype(np.float32), white_point(image)
    glass_c = np.full(3, np.nan) if own == FULL else np.array(own)
    deviation_hwc = np.sqrt(np.maximum(cv2.blur(value_hwc**2, (5, 5)) - cv2.blur(value_hwc, (5, 5)) ** 2, 0))
    noise_c = np.log(np.quantile(deviation_hwc.reshape(-1, 3), _SMOOTH, axis=0) + 0.2)
    grey_hw = value_hwc.mean(-1)
    edges, slopes = cv2.Laplacian(grey_hw, cv2.CV_32F).std(), cv2.Sobel(grey_hw, cv2.CV_32F, 1, 0).std()
    sharpness = np.log((edges + 1e-3) / (slopes + 1e-3))
    dark_c = np.log(np.percentile(value_hwc.reshape(-1, 3), 0.5, axis=0) + 5)
    colours = _stain_colours(optical_density(relative_to_white(image, white)))
    return np.concatenate([glass_c, noise_c, colours, [sharpness], dark_c])


def _stain_colours(od_hwc: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the two outermost directions of the optical density (Macenko et al., ISBI 2009), 2 x 3 values."""
    od_mc = od_hwc[od_hwc.mean(-1) > _TISSUE]
    if len(od_mc) < _LEAST:
        return np.full(6, np.nan)
    plane_c2 = np.linalg.eigh(od_mc.T @ od_mc)[1][:, [2, 1]]
    plane_c2 = plane_c2 * np.where(plane_c2.sum(0) < 0, -1, 1)
    along_m2 = od_mc @ plane_c2
    angle_m = np.arctan2(along_m2[:, 1], along_m2[:, 0])
    ends = [plane_c2 @ [np.cos(angle), np.sin(angle)] for angle in np.percentile(angle_m, (2, 98))]
    return np.concatenate(sorted(ends, key=lambda end_c: -end_c[0]))


def clustered(look_nqf: NDArray[np.float64], groups: Sequence[str], most: int = MOST) -> tuple[list[str], float]:
    """Return the name of the cluster of each tile, and the mean silhouette of all tiles.

    Args:
        look_nqf: looks of the quarters of each tile; what is NaN counts as ordinary.
        groups: of the tiles; each is clustered on its own.
        most: largest number of clusters of a group.
    """
    score_nf = _scores(look_nqf)
    names = np.empty(len(groups), object)
    quality_n = np.zeros(len(groups))
    for group in sorted(set(groups)):
        own_n = np.flatnonzero(np.asarray(groups) == group)
        cluster_m, quality = _best_clusters(score_nf[own_n], most)
        quality_n[own_n] = quality
        names[own_n] = [f"{group} {cluster:03d}".strip() for cluster in cluster_m]
    return names.tolist(), float(quality_n.mean())


def _scores(look_nqf: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the looks of each tile, so scaled and turned that they differ equally much within tiles."""
    with catch_warnings():
        simplefilter("ignore", RuntimeWarning)  # a tile, or all of them, may show no glass
        tile_nf = np.nanmedian(look_nqf, axis=1)
        within_nqf = look_nqf - tile_nf[:, None]
        sd_f = np.sqrt(np.nanmean(within_nqf**2, axis=(0, 1)))
        deviation_nf = np.nan_to_num(tile_nf - np.nanmedian(tile_nf, axis=0))
    sd_f = np.where(sd_f > 0, sd_f, 1)  # NaN too
    within_mf = np.nan_to_num(within_nqf).reshape(-1, len(sd_f)) / sd_f
    variance_f, axes_ff = np.linalg.eigh(within_mf.T @ within_mf / len(within_mf) + _SHRINKAGE * np.eye(len(sd_f)))
    score_nf = (deviation_nf / sd_f) @ axes_ff / np.sqrt(variance_f)
    limit = _FARTHEST * np.median(np.abs(score_nf))
    return np.clip(score_nf, -limit, limit)


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
