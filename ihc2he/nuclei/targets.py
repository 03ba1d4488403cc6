"""Training targets of HoVer-Net: from an instance map to horizontal and vertical maps.

Shape suffixes: h, w = height, width; n = nuclei; m = pixels of nuclei.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.instances import extent, foreground

_REFERENCE_MIN_AREA = 30  # px
_REFERENCE_MARGIN = 2  # px around the bounding box


def relabel_pieces(inst_hw: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return an instance map in which every 4-connected piece of a nucleus has an id of its own.

    Needed after cropping, elastic deformation or mirror padding, which cut nuclei and repeat them.

    Args:
        inst_hw: instance map, 0 = background.

    Returns:
        HxW int32, contiguous ids in raster order.

    >>> relabel_pieces(np.array([[4, 0, 4, 7]])).tolist()
    [[1, 0, 2, 3]]
    """
    from skimage.measure import label

    return label(inst_hw, connectivity=1, background=0).astype(np.int32)


def hv_maps(inst_hw: NDArray[np.integer], reference_quirks: bool = False) -> NDArray[np.float32]:
    """Return for each pixel of a nucleus its signed distance from the nucleus's centre of mass.

    Left of and above the centre is negative. Each half is scaled by its own extent, so that the outermost pixels are
    at -1 and 1. Source: Graham et al., Med Image Anal 2019, section 3.1.

    Args:
        inst_hw: instance map, 0 = background. A nucleus in several pieces has one centre: see `relabel_pieces`.
        reference_quirks: reproduce the published code, which rounds the centre, puts the zero one pixel left of and
            above it, and leaves out nuclei below 30 px and those that touch the first two rows or columns.

    Returns:
        (2, H, W) float32 in [-1, 1], channel 0 = x, 1 = y; 0 on background.

    >>> hv_maps(np.array([[0, 6, 6, 6, 0]]))[0].tolist()
    [[0.0, -1.0, 0.0, 1.0, 0.0]]
    """
    places_m, of_m, ids_n = foreground(inst_hw)
    height, width = inst_hw.shape
    rows_m = places_m // width
    columns_m = places_m - rows_m * width
    if reference_quirks:
        kept_m = _kept_by_reference(rows_m, columns_m, of_m, len(ids_n), (height, width))
        places_m, of_m, rows_m, columns_m = (values[kept_m] for values in (places_m, of_m, rows_m, columns_m))
    areas_n = np.maximum(np.bincount(of_m, minlength=len(ids_n)), 1)  # quirks may leave a nucleus no pixel
    hv_2hw = np.zeros((2, height * width), np.float32)
    for channel, positions_m in enumerate((columns_m, rows_m)):
        hv_2hw[channel, places_m] = _scaled_offsets(positions_m, of_m, areas_n, reference_quirks)
    return hv_2hw.reshape(2, height, width)


def _scaled_offsets(
    positions_m: NDArray[np.intp], of_m: NDArray[np.intp], areas_n: NDArray[np.intp], reference_quirks: bool
) -> NDArray[np.float32]:
    """Return where each pixel lies between the centre (0) and the extremes (-1 and 1) of its nucleus, on one axis."""
    n = len(areas_n)
    low_n, high_n = extent(positions_m, of_m, n)
    centre_n = np.bincount(of_m, positions_m, n) / areas_n
    if reference_quirks:
        centre_n = np.floor(centre_n + 0.5) - 1
    # One table for both halves: what lies before the centre of nucleus i is in row i, the rest in row n + i.
    reach = np.concatenate([centre_n - low_n, high_n - centre_n]).astype(np.float32)
    reach[reach <= 0] = 1  # a single row or column, which is at 0
    offsets_m = (positions_m - centre_n[of_m]).astype(np.float32)
    offsets_m /= reach[of_m + n * (offsets_m >= 0)]
    return offsets_m


def _kept_by_reference(
    rows_m: NDArray[np.intp], columns_m: NDArray[np.intp], of_m: NDArray[np.intp], n: int, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return which pixels the published code gives a value.

    It crops each nucleus to its bounding box and a margin. Where the margin reaches beyond the first row or column,
    the negative start counts from the other end, and what is left of the crop is mostly empty.
    """
    kept_n = np.bincount(of_m, minlength=n) >= _REFERENCE_MIN_AREA
    kept_m = np.ones(len(of_m), bool)
    for positions_m, side in zip((rows_m, columns_m), shape, strict=True):
        low_n, high_n = extent(positions_m, of_m, n)
        start_n = low_n - _REFERENCE_MARGIN
        start_n = np.where(start_n < 0, np.maximum(start_n + side, 0), start_n)
        stop_n = np.minimum(high_n + 1 + _REFERENCE_MARGIN, side)
        kept_n &= stop_n - start_n >= 2
        kept_m &= positions_m >= start_n[of_m]
    return kept_m & kept_n[of_m]
