"""Test-time augmentation and ensembles: maps averaged over views of an image, or over networks.

A view is one of the eight combinations of flips and rotations by multiples of 90 degrees, numbered 0 to 7: bit 0 flips
left and right, bit 1 flips up and down, and bit 2 swaps the axes before that. HV maps are vectors, so a view changes
their values too.
Shape suffixes: b = batch, c, k = channel, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

VIEWS = range(8)


def turned(x_bchw: Tensor, view: int) -> Tensor:
    """Return images in another view.

    >>> import torch
    >>> turned(torch.tensor([[[[1, 2], [3, 4]]]]), 4).tolist()
    [[[[1, 3], [2, 4]]]]
    """
    if view & 4:
        x_bchw = x_bchw.transpose(-1, -2)
    mirrored = [axis for bit, axis in ((1, -1), (2, -2)) if view & bit]
    return x_bchw.flip(mirrored) if mirrored else x_bchw


def turned_maps(maps_bkhw: Tensor, view: int, hv_channels: tuple[int, int] | None) -> Tensor:
    """Return the maps of images in another view: flipped and rotated, including the HV vectors.

    Args:
        maps_bkhw: maps of the original images.
        view: 0 to 7.
        hv_channels: indices of the horizontal and the vertical map; None = there are none.

    >>> import torch
    >>> hv = torch.tensor([-1.0, 1.0]).expand(1, 2, 2, 2)  # grows to the right, in both channels
    >>> turned_maps(hv, 1, (0, 1))[0, :, 0].tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    """
    maps_bkhw = turned(maps_bkhw, view)
    if hv_channels is None:
        return maps_bkhw
    maps_bkhw = maps_bkhw.clone()
    h, v = hv_channels
    if view & 4:
        maps_bkhw[:, [h, v]] = maps_bkhw[:, [v, h]]
    if view & 1:
        maps_bkhw[:, h].neg_()
    if view & 2:
        maps_bkhw[:, v].neg_()
    return maps_bkhw


def turned_back(maps_bkhw: Tensor, view: int, hv_channels: tuple[int, int] | None) -> Tensor:
    """Return maps of images in another view as those of the original images: the inverse of `turned_maps`.

    >>> import torch
    >>> maps = torch.rand(1, 3, 4, 5)
    >>> all(torch.equal(turned_back(turned_maps(maps, view, (1, 2)), view, (1, 2)), maps) for view in VIEWS)
    True
    """
    # With swapped axes, the two flips change places in the inverse.
    inverse = 4 | (view & 1) << 1 | (view & 2) >> 1 if view & 4 else view
    return turned_maps(maps_bkhw, inverse, hv_channels)


def predict_views(fn: Callable[[Tensor], Tensor], x_bchw: Tensor, back: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return the maps of images, averaged over views.

    Args:
        fn: from (N, C, H, W) to (N, K, H, W).
        x_bchw: images.
        back: from the maps of a view and its number to those of the original image, such as `turned_back`.
    """
    return mean([back(fn(turned(x_bchw, view)), view) for view in VIEWS])


def mean(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean of maps of the same shape, for instance from several networks.

    >>> import torch
    >>> mean([torch.zeros(2), torch.ones(2)]).tolist()
    [0.5, 0.5]
    """
    total = maps[0].clone()
    for more in maps[1:]:
        total += more
    return total / len(maps)
