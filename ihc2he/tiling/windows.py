"""Overlapping windows that cover an image, the blending of their maps, and which window a nucleus belongs to.

Shape suffixes: b = batch, c = channel, h, w = height, width; n2 = points as (x, y).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

OVERLAP_UM = 32.0  # of blocks in which nuclei are found; wider than any nucleus
STEP = 32  # px; windows of slides begin at multiples of what networks halve, so that neighbours see alike


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """Return where windows begin on an axis: evenly spaced, from the start to the end of the axis.

    Args:
        length: of the axis, px; up to `window` there is one window, which may extend beyond the end.
        window: px.
        overlap: smallest overlap of neighbouring windows, px; less than `window`.

    Raises:
        ValueError: for an overlap that is negative or not below the window.

    >>> window_starts(1000, 256, 64)
    [0, 186, 372, 558, 744]
    >>> window_starts(100, 256, 64)
    [0]
    """
    if not 0 <= overlap < window:
        msg = f"overlap={overlap}: expected 0 or more and less than the window of {window} px."
        raise ValueError(msg)
    if length <= window:
        return [0]
    n = 1 + -(-(length - window) // (window - overlap))
    return [round(i * (length - window) / (n - 1)) for i in range(n)]


def cores(starts: list[int], window: int, length: int) -> list[tuple[int, int]]:
    """Return the core of each window on an axis: up to the middle of the overlap with its neighbour.

    Cores cover the axis without overlap. A nucleus that is in several windows is kept only in the window whose core
    contains its centroid.

    Args:
        starts: of the windows, ascending.
        window: px.
        length: of the axis, px.

    >>> cores([0, 186, 372], 256, 628)
    [(0, 221), (221, 407), (407, 628)]
    """
    borders = [(start + window + following) // 2 for start, following in pairwise(starts)]
    return list(zip([0, *borders], [*borders, length], strict=True))


def owned(points_n2: NDArray, core_x: tuple[int, int], core_y: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which points are in a window's core.

    Args:
        points_n2: Nx2, (x, y) in the coordinates of the whole image.
        core_x: as `cores` returns it.
        core_y: likewise.

    >>> owned(np.array([[220.5, 3.0], [221.0, 3.0]]), (0, 221), (0, 221)).tolist()
    [True, False]
    """
    low, high = np.array([core_x, core_y]).T
    return ((points_n2 >= low) & (points_n2 < high)).all(1)


class Block(NamedTuple):
    """A part of an image that is predicted at once.

    Attributes:
        rows: of the image.
        columns: of the image.
        core_y: rows whose nuclei this block keeps, from and to.
        core_x: likewise for columns.
    """

    rows: slice
    columns: slice
    core_y: tuple[int, int]
    core_x: tuple[int, int]


def divide(height: int, width: int, side: int, overlap: int, step: int = 1) -> list[Block]:
    """Return the blocks that cover an image, row by row; a single one if it is not larger than a block.

    Args:
        height: of the image, px.
        width: of the image, px.
        side: of a block, px.
        overlap: least overlap of blocks, px; must exceed the largest nucleus.
        step: blocks begin at multiples of it, px; they are smaller by less than that.

    >>> [(block.rows.start, block.core_y) for block in divide(100, 50, 64, 16)]
    [(0, (0, 50)), (36, (50, 100))]
    """

    def axis(length: int) -> Iterator[tuple[slice, tuple[int, int]]]:
        # So that the last begins at a multiple of the step, too.
        own = side if length <= side else side - (side - length) % step
        starts = [start // step * step for start in window_starts(length, own, overlap + step - 1)]
        for start, core in zip(starts, cores(starts, own, length), strict=True):
            yield slice(start, min(start + own, length)), core

    return [Block(rows, cols, y, x) for rows, y in axis(height) for cols, x in axis(width)]


def mosaic(height: int, width: int, core: int) -> list[Block]:
    """Return blocks that cover an image without overlap, row by row, all of about the same size.

    Args:
        height: of the image, px.
        width: of the image, px.
        core: largest side of a block, px; if there are several, they begin at multiples of `STEP`, as this should be.

    >>> [block.core_x for block in mosaic(32, 100, 64)]
    [(0, 64), (64, 100)]
    """

    def axis(length: int) -> list[tuple[int, int]]:
        n = -(-length // core)
        starts = [-(-i * length // (n * STEP)) * STEP for i in range(n)]
        return list(zip(starts, [*starts[1:], length], strict=True))

    return [Block(slice(*y), slice(*x), y, x) for y in axis(height) for x in axis(width)]


def widened(block: Block, halo: int, shape: tuple[int, int]) -> Block:
    """Return a block that shows more than its core on all sides, as far as the image goes.

    Args:
        block: of which the core stays.
        halo: px.
        shape: height and width of the image, px.

    >>> widened(Block(slice(0), slice(0), (32, 64), (0, 32)), 8, (70, 70)).rows
    slice(24, 70, None)
    """
    rows, columns = (
        slice(max(0, low - halo), min(length, high + halo))
        for (low, high), length in zip((block.core_y, block.core_x), shape, strict=True)
    )
    return block._replace(rows=rows, columns=columns)


def hann_weight(window: int) -> NDArray[np.float32]:
    """Return the weight of each pixel of a window on one axis: a raised cosine, always above 0.

    >>> [round(float(weight), 3) for weight in hann_weight(4)]
    [0.146, 0.854, 0.854, 0.146]
    """
    return np.sin(np.pi * (np.arange(window) + 0.5) / window).astype(np.float32) ** 2


def predict_tiled(
    fn: Callable[[Tensor], Tensor], x_bchw: Tensor, window: int, overlap: int, margin: int = 0, batch_size: int = 8
) -> Tensor:
    """Return the maps of images of any size, from overlapping windows blended by a raised cosine.

    If the window covers the image, `fn` gets the image itself (mirrored at the border, if there is a margin).

    Args:
        fn: from (N, C, h, w) to (N, K, h - 2 * margin, w - 2 * margin), for sides up to `window`.
        x_bchw: (N, C, H, W).
        window: largest side of the input of `fn`, px.
        overlap: smallest overlap of neighbouring windows of the output, px.
        margin: px by which the output of `fn` is smaller on each side.
        batch_size: number of windows at a time.

    Returns:
        (N, K, H, W) of the type that `fn` returns.

    Raises:
        ValueError: for an overlap that the window cannot have.

    >>> import torch
    >>> x = torch.rand(1, 3, 70, 50)
    >>> torch.allclose(predict_tiled(lambda window: 2 * window, x, 32, 8), 2 * x)
    True
    """
    import torch

    h, w = x_bchw.shape[-2:]
    inner = window - 2 * margin
    tops, lefts = window_starts(h, inner, overlap), window_starts(w, inner, overlap)
    if margin:
        x_bchw = _mirrored(x_bchw, margin, max(h, inner), max(w, inner))
    elif len(tops) == len(lefts) == 1:
        return fn(x_bchw)
    height, width = (inner, inner) if margin else (min(h, inner), min(w, inner))
    corners = [(i, top, left) for i in range(len(x_bchw)) for top in tops for left in lefts]

    def seen() -> Iterator[tuple[tuple[int, int, int], Tensor]]:
        for start in range(0, len(corners), batch_size):
            some = corners[start : start + batch_size]
            views = [x_bchw[i, :, t : t + height + 2 * margin, le : le + width + 2 * margin] for i, t, le in some]
            yield from zip(some, fn(torch.stack(views)), strict=True)

    windows = seen()
    first = next(windows)
    size = (max(h, height), max(w, width))
    maps_bkhw = first[1].new_zeros(len(x_bchw), len(first[1]), *size)
    total_b1hw = first[1].new_zeros(len(x_bchw), 1, *size)
    rows, columns = (torch.from_numpy(hann_weight(side)).to(first[1]) for side in (height, width))
    weight_hw = rows[:, None] * columns
    for (i, top, left), map_khw in chain([first], windows):
        place = (i, slice(None), slice(top, top + height), slice(left, left + width))
        maps_bkhw[place] += weight_hw * map_khw
        total_b1hw[place] += weight_hw
    return (maps_bkhw / total_b1hw)[..., :h, :w]


def predict_local(fn: Callable[[Tensor], Tensor], x_bchw: Tensor, window: int, halo: int, stride: int = 1) -> Tensor:
    """Return what a local function makes of whole images, from windows: the same up to the last digits.

    Each window shows `halo` px more on all sides than is kept of it, but ends where the image does.

    Args:
        fn: from (N, C, h, w) to (N, K, h, w), for sides up to `window`; a pixel of its result depends only on pixels up
            to `halo` px away.
        x_bchw: (N, C, H, W).
        window: largest side of the input of `fn`, px.
        halo: px.
        stride: px by multiples of which images may be shifted without changing what `fn` makes of them.

    Returns:
        (N, K, H, W) of the type that `fn` returns.

    Raises:
        ValueError: for a window that has no room between its halos.

    >>> import torch
    >>> x = torch.rand(1, 1, 50, 70)
    >>> mean = torch.nn.AvgPool2d(3, stride=1, padding=1)
    >>> torch.allclose(predict_local(mean, x, window=32, halo=1), mean(x))
    True
    """
    import torch

    h, w = x_bchw.shape[-2:]
    if max(h, w) <= window:
        return fn(x_bchw)
    halo = -(-halo // stride) * stride
    if window < 2 * halo + stride:
        msg = f"window={window}: expected at least {2 * halo + stride} px, for a halo of {halo} px on each side."
        raise ValueError(msg)

    def axis(length: int) -> Iterator[tuple[slice, slice]]:
        n = 1 if length <= window else -(-length // ((window - 2 * halo) // stride * stride))
        core = -(-length // (n * stride)) * stride  # all of about the same size
        for start in range(0, length, core):
            low = max(0, start - halo)
            yield slice(low, min(length, start + core + halo)), slice(start - low, min(start + core, length) - low)

    rows = []
    for seen_y, kept_y in axis(h):
        parts = [fn(x_bchw[..., seen_y, seen_x])[..., kept_y, kept_x] for seen_x, kept_x in axis(w)]
        rows.append(torch.cat(parts, -1))
    return torch.cat(rows, -2)


def _mirrored(x_bchw: Tensor, margin: int, height: int, width: int) -> Tensor:
    """Return images mirrored by a margin on all sides, and further at the end of each axis up to a size."""
    import torch

    def places(length: int, wanted: int) -> Tensor:
        # Reflected without repeating the border pixel, as often as necessary.
        period = max(2 * (length - 1), 1)
        i = torch.arange(-margin, wanted + margin, device=x_bchw.device) % period
        return torch.minimum(i, period - i) if length > 1 else torch.zeros_like(i)

    h, w = x_bchw.shape[-2:]
    return x_bchw[..., places(h, height), :][..., places(w, width)]
