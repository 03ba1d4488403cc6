"""From the maps of learned centres to labelled nuclei, in tensor operations that TorchScript compiles.

The same steps as `ihc2he.nuclei.decoders.centres`, so that a package for another program finds the same nuclei. Maps
are flattened with a border of one pixel, so that each pixel has its neighbours at fixed distances.
Shape suffixes: h, w = height, width; p = pixels with the border; n = maxima or nuclei, e = pairs of neighbours.
"""

# No postponed annotations: TorchScript reads them.
import math

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.nuclei.decoders import centres
from ihc2he.nuclei.decoders.centres import CentresDecoder


class CentresToLabels(nn.Module):
    """Labels nuclei on the maps of a `CentresDecoder`.

    Args:
        decoder: its settings are used.
        mpp: um/px of the maps.
    """

    kernel_11k1: Tensor

    def __init__(self, decoder: CentresDecoder, mpp: float) -> None:
        super().__init__()
        self.threshold, self.least_heat = decoder.threshold, decoder.least_heat
        self.ratio, self.large_share = centres.RATIO, centres.LARGE_SHARE
        self.min_px = math.ceil(centres.MIN_AREA_UM2 / mpp**2)
        self.large_px = math.ceil(centres.LARGE_UM2 / mpp**2)
        sigma = centres.SMOOTHING_UM / mpp
        size = round(8 * sigma + 1) | 1  # as OpenCV takes it for floats
        self.reach = size // 2
        kernel_k = torch.from_numpy(cv2.getGaussianKernel(size, sigma)).float().flatten()
        self.register_buffer("kernel_11k1", kernel_k.view(1, 1, -1, 1))

    def forward(self, maps_khw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels, (H, W) int64 from 1 to N, 0 = background, and the type of each, (N,) int64, 0 = unknown.

        Args:
            maps_khw: joined maps of one tile: foreground, centres, and with types background and each type.
        """
        height, width = maps_khw.shape[1], maps_khw.shape[2]
        mask_p = F.pad(maps_khw[0] >= self.threshold, (1, 1, 1, 1)).flatten()
        piece_p = _components(mask_p, width + 2)
        mask_p = mask_p & (torch.bincount(piece_p)[piece_p] >= self.min_px)
        heat_p = F.pad(self._smoothed(maps_khw[1]), (1, 1, 1, 1)).flatten()
        part_p, peaks_n = _basins(heat_p, mask_p, width + 2, self.ratio, self.least_heat)
        inside = mask_p.nonzero()[:, 0]
        areas_n = torch.bincount(part_p[inside], minlength=peaks_n.shape[0])
        least_n = torch.where(areas_n >= self.large_px, self.least_heat * self.large_share, self.least_heat)
        kept_n = peaks_n >= least_n
        number_n = kept_n.cumsum(0) * kept_n
        labels_p = torch.zeros_like(part_p)
        labels_p[inside] = number_n[part_p[inside]]
        labels_hw = _without_holes(labels_p, width + 2).view(height + 2, width + 2)[1:-1, 1:-1]
        return labels_hw, self._types(labels_hw, maps_khw, int(kept_n.sum()))

    def _smoothed(self, map_hw: Tensor) -> Tensor:
        reach = self.reach
        padded_11hw = F.pad(map_hw[None, None], (reach, reach, reach, reach), mode="reflect")
        return F.conv2d(F.conv2d(padded_11hw, self.kernel_11k1), self.kernel_11k1.transpose(2, 3))[0, 0]

    def _types(self, labels_hw: Tensor, maps_khw: Tensor, n: int) -> Tensor:
        """Return the most frequent type of each nucleus; background counts only where there is nothing else."""
        kinds = maps_khw.shape[0] - 2
        if kinds < 2:
            return torch.zeros(n, dtype=torch.int64, device=labels_hw.device)
        at_p = labels_hw.flatten() * kinds + maps_khw[2:].argmax(0).flatten()
        votes_nk = torch.bincount(at_p, minlength=(n + 1) * kinds).view(n + 1, kinds)[1:]
        votes_nk[:, 0] = 0
        return votes_nk.argmax(1)


def _steps(width: int, sides_only: bool) -> list[int]:
    """Return the distances to the neighbours after a pixel in raster order; those before it are their negatives."""
    return [1, width] if sides_only else [1, width - 1, width, width + 1]


def _components(mask_p: Tensor, width: int) -> Tensor:
    """Return the place of the first pixel of the piece of a mask that each pixel belongs to; pieces touch by sides.

    Pixels outside of the mask are pieces of their own.
    """
    places_p = torch.arange(mask_p.shape[0], device=mask_p.device)
    root_p = places_p
    changed = True
    while changed:
        least_p = root_p
        for step in _steps(width, True):
            meet_p = mask_p & torch.roll(mask_p, -step)
            later_p = torch.where(meet_p, torch.roll(least_p, -step), places_p.shape[0])
            least_p = torch.minimum(least_p, later_p)
            earlier_p = torch.where(torch.roll(meet_p, step), torch.roll(least_p, step), places_p.shape[0])
            least_p = torch.minimum(least_p, earlier_p)
        hooked_p = root_p.scatter_reduce(0, root_p, least_p, "amin")
        hooked_p = hooked_p[hooked_p[least_p]]
        changed = bool((hooked_p != root_p).any())
        root_p = hooked_p
    return root_p


def _basins(map_p: Tensor, mask_p: Tensor, width: int, ratio: float, least: float) -> tuple[Tensor, Tensor]:
    """Return the part of each pixel of a mask, from 0, and the highest value of each; see `ihc2he.nuclei.basins`."""
    places_p = torch.arange(mask_p.shape[0], device=mask_p.device)
    heights_p = torch.where(mask_p, map_p, -1.0)
    highest_p, above_p = heights_p, places_p
    for forward in _steps(width, False):
        for step in [forward, -forward]:
            there_p = torch.roll(heights_p, -step)
            up_p = mask_p & ((there_p > highest_p) | ((there_p == highest_p) & (places_p + step > above_p)))
            highest_p = torch.where(up_p, there_p, highest_p)
            above_p = torch.where(up_p, places_p + step, above_p)
    further_p = above_p[above_p]
    while not bool((further_p == above_p).all()):
        above_p = further_p
        further_p = above_p[above_p]
    tops_n = (mask_p & (above_p == places_p)).nonzero()[:, 0]
    number_p = torch.zeros_like(above_p)
    number_p[tops_n] = torch.arange(tops_n.shape[0], device=mask_p.device)
    summit_p = torch.where(mask_p, number_p[above_p], -1)
    owner_n = _united(summit_p, heights_p, heights_p[tops_n], width, ratio, least)
    kept_n = torch.zeros_like(tops_n)
    kept_n[owner_n] = 1
    part_n = (kept_n.cumsum(0) - 1)[owner_n]
    part_p = torch.where(mask_p, part_n[summit_p], 0) if tops_n.shape[0] > 0 else torch.zeros_like(summit_p)
    return part_p, heights_p[tops_n][kept_n.nonzero()[:, 0]]


def _united(summit_p: Tensor, heights_p: Tensor, peaks_n: Tensor, width: int, ratio: float, least: float) -> Tensor:
    """Return for each maximum the one that it belongs to; of two that are one, the higher."""
    first: list[Tensor] = []
    second: list[Tensor] = []
    levels: list[Tensor] = []
    for step in _steps(width, False):
        other_p = torch.roll(summit_p, -step)
        meet = ((summit_p != other_p) & (summit_p >= 0) & (other_p >= 0)).nonzero()[:, 0]
        first.append(torch.minimum(summit_p[meet], other_p[meet]))
        second.append(torch.maximum(summit_p[meet], other_p[meet]))
        levels.append(torch.minimum(heights_p[meet], torch.roll(heights_p, -step)[meet]))
    level_e, order = torch.sort(torch.cat(levels), descending=True, stable=True)
    pair_e = torch.cat(first)[order] * peaks_n.shape[0] + torch.cat(second)[order]
    sorted_e, places = torch.sort(pair_e, stable=True)  # of each pair, the highest pass comes first
    is_first = torch.ones_like(sorted_e, dtype=torch.bool)
    is_first[1:] = sorted_e[1:] != sorted_e[:-1]
    passes = torch.sort(places[is_first])[0]
    pairs: list[int] = pair_e[passes].tolist()
    heights: list[float] = level_e[passes].tolist()
    peaks: list[float] = peaks_n.tolist()
    n = len(peaks)
    above = list(range(n))
    for i in range(len(pairs)):
        a = pairs[i] // n
        while above[a] != a:
            above[a] = above[above[a]]
            a = above[a]
        b = pairs[i] % n
        while above[b] != b:
            above[b] = above[above[b]]
            b = above[b]
        high, low = a, b
        if peaks[a] < peaks[b]:
            high, low = b, a
        if heights[i] >= ratio * peaks[low] or peaks[low] < least:
            above[low] = high
    for i in range(n):
        a = i
        while above[a] != a:
            a = above[a]
        above[i] = a
    return torch.tensor(above, dtype=torch.int64, device=summit_p.device)


def _without_holes(labels_p: Tensor, width: int) -> Tensor:
    """Return labels in which the holes of each nucleus belong to it; a gap between several stays."""
    piece_p = _components(labels_p == 0, width)  # that of the border is piece 0
    most_p = torch.zeros_like(labels_p)
    far = int(labels_p.max()) + 1
    least_p = torch.full_like(labels_p, far)
    for forward in _steps(width, True):
        for step in [forward, -forward]:
            beside_p = torch.roll(labels_p, -step)
            most_p = torch.maximum(most_p, beside_p)
            least_p = torch.minimum(least_p, torch.where(beside_p > 0, beside_p, far))
    most_n = torch.zeros_like(labels_p).scatter_reduce(0, piece_p, most_p, "amax")
    least_n = torch.full_like(labels_p, far).scatter_reduce(0, piece_p, least_p, "amin")
    owner_n = torch.where(most_n == least_n, most_n, 0)
    owner_n[0] = 0
    return torch.where(labels_p == 0, owner_n[piece_p], labels_p)
