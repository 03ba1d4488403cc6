"""Outlines of nuclei along the edges of their pixels, so that the area inside is the number of pixels.

All nuclei of a map are traced together. First come the straight stretches of their borders, in each of the four
directions, with the nucleus on the right-hand side; each stretch leads to the one that starts where it ends.

Parts of a nucleus that touch at a corner only are polygons of their own. Where a nucleus closes around a gap at a
corner, the gap is a hole. So no ring touches itself, and every polygon is valid by the rules of OGC, which QuPath
applies.

Shape suffixes: hw = height, width; h alone = stretches to the right and then those to the left; e = corners; r = rings;
n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.instances import check_map

Indices = NDArray[np.intp]

# Right along the upper sides of pixels, down along their right sides, left along the lower, up along the left ones.
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])


@dataclass(frozen=True)
class Outlines:
    """The outlines of the nuclei of a map: rings of corners of pixels.

    The rings of a nucleus follow one another: an outer ring, then those of its holes, then the next outer ring.

    Attributes:
        ids_n: ids of the nuclei, ascending.
        corners_e2: int32, in px from the top left corner of the tile, so that its right side is at its width; rings do
            not repeat their first corner, and those of holes run the other way round.
        starts_r: where each ring starts in `corners_e2`, and at last where they all end, R + 1.
        nucleus_r: the nucleus of each ring, as a position in `ids_n`, ascending.
        is_hole_r: whether it is the ring of a hole.
    """

    ids_n: NDArray[np.integer]
    corners_e2: NDArray[np.int32]
    starts_r: Indices
    nucleus_r: Indices
    is_hole_r: NDArray[np.bool_]

    def polygons(self, number: int) -> list[list[NDArray[np.int32]]]:
        """Return the polygons of a nucleus, each a list of rings, (P, 2) each: the outer one, then those of holes.

        Args:
            number: position of the nucleus in `ids_n`.
        """
        found: list[list[NDArray[np.int32]]] = []
        first, end = np.searchsorted(self.nucleus_r, (number, number + 1))
        for ring in range(first, end):
            if not self.is_hole_r[ring]:
                found.append([])
            found[-1].append(self.corners_e2[self.starts_r[ring] : self.starts_r[ring + 1]])
        return found

    def moved(self, corner: tuple[int, int]) -> Outlines:
        """Return the outlines in a larger image.

        Args:
            corner: x and y there of the corner of the first pixel, px.
        """
        return self if corner == (0, 0) else replace(self, corners_e2=self.corners_e2 + np.array(corner, np.int32))

    def scaled(self, x_factor: float, y_factor: float) -> Outlines:
        """Return the outlines in a larger image of the same, at the nearest corners of its pixels; still valid.

        Args:
            x_factor: by which it is wider, 1 or more, so that no two corners become one.
            y_factor: by which it is higher, likewise.
        """
        if x_factor == y_factor == 1:
            return self
        corners_e2 = np.floor(self.corners_e2 * np.array([x_factor, y_factor]) + 0.5).astype(np.int32)
        return replace(self, corners_e2=corners_e2)

    def only(self, keep_n: NDArray[np.bool_]) -> Outlines:
        """Return the outlines of some of the nuclei."""
        if keep_n.all():
            return self
        keep_r = keep_n[self.nucleus_r]
        sizes_r = np.diff(self.starts_r)
        return Outlines(
            self.ids_n[keep_n],
            self.corners_e2[np.repeat(keep_r, sizes_r)],
            np.append(0, np.cumsum(sizes_r[keep_r])),
            (np.cumsum(keep_n) - 1)[self.nucleus_r[keep_r]],
            self.is_hole_r[keep_r],
        )

    def boxes(self) -> NDArray[np.int64]:
        """Return left, top, right and bottom of each nucleus, (N, 4)."""
        starts_n = self.starts_r[np.searchsorted(self.nucleus_r, np.arange(len(self.ids_n)))]
        sides = [side.reduceat(self.corners_e2, starts_n) for side in (np.minimum, np.maximum)]
        return np.concatenate(sides, 1).astype(np.int64)

    def moments(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the number of pixels of each nucleus, and their mean (x, y) from the centre of the first pixel.

        Exactly: sums over pixels are sums over the sides of the outlines, as in Green's theorem.
        """
        x_e, y_e = self.corners_e2.T.astype(np.int64)
        size_r = np.diff(self.starts_r)
        after_e = np.arange(1, len(x_e) + 1)
        after_e[self.starts_r[1:] - 1] = self.starts_r[:-1]
        nucleus_e = np.repeat(self.nucleus_r, size_r)
        down_e, left_e = y_e[after_e] - y_e, x_e - x_e[after_e]
        n = len(self.ids_n)
        areas_n = np.bincount(nucleus_e, x_e * down_e, n)
        sums = [
            np.bincount(nucleus_e, at_e * (at_e - 1) // 2 * length_e, n)  # of 0, 1, ... at - 1, for each row or column
            for at_e, length_e in ((x_e, down_e), (y_e, left_e))
        ]
        return areas_n.astype(np.int64), np.stack(sums, 1) / areas_n[:, None]


def joined(parts: Sequence[Outlines]) -> Outlines:
    """Return the outlines of all parts, one part after the other; ids have to ascend over all of them."""
    if len(parts) == 1:
        return parts[0]
    starts, before = [], 0
    for part in parts:
        starts.append(part.starts_r[:-1] + before)
        before += len(part.corners_e2)
    counts = np.cumsum([0, *(len(part.ids_n) for part in parts)])
    return Outlines(
        np.concatenate([part.ids_n for part in parts]),
        np.concatenate([part.corners_e2 for part in parts]),
        np.concatenate([*starts, [before]]),
        np.concatenate([part.nucleus_r + first for part, first in zip(parts, counts, strict=False)]),
        np.concatenate([part.is_hole_r for part in parts]),
    )


def outlines(inst_hw: NDArray[np.integer]) -> Outlines:
    """Return the outlines of all nuclei of a map.

    Args:
        inst_hw: instance map, 0 = background.

    Raises:
        ValueError: the array is no instance map.

    >>> (rings,) = outlines(np.array([[7, 7, 7], [7, 0, 7], [7, 7, 7]])).polygons(0)
    >>> [ring.tolist() for ring in rings]
    [[[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 2], [2, 2], [2, 1], [1, 1]]]
    """
    check_map(inst_hw)
    padded = np.pad(inst_hw, 1)
    first, last = _stretches(padded)
    next_h = _successors(padded, first, last)
    leader_h = _leaders(next_h)
    leads_h = leader_h == np.arange(len(leader_h))
    leader_r, ring_h = np.flatnonzero(leads_h), (np.cumsum(leads_h) - 1)[leader_h]
    size_r = np.bincount(ring_h, minlength=len(leader_r))

    first_h = np.concatenate(first[::2])
    y_h, x_h = np.divmod(first_h, padded.shape[1])
    x_h, y_h = x_h - 1, y_h - 1
    x_h[len(first[0]) :] += 1  # to the left, stretches start at the lower right corner of their first pixel
    y_h[len(first[0]) :] += 1
    turn_h = x_h[next_h]  # a stretch ends at the column where the next one starts
    is_hole_r = np.bincount(ring_h, turn_h * (y_h[next_h] - y_h), len(leader_r)) < 0
    pixel_r = first_h[leader_r]
    ids_n, nucleus_r = np.unique(padded.ravel()[pixel_r], return_inverse=True)

    order_r = np.lexsort((is_hole_r, _pieces(padded, pixel_r, nucleus_r, is_hole_r), nucleus_r))
    starts_r = np.append(0, np.cumsum(2 * size_r[order_r]))
    start_of_r = np.empty_like(size_r)
    start_of_r[order_r] = starts_r[:-1]
    place_h = start_of_r[ring_h] + 2 * _ranks(next_h, leader_h, size_r[ring_h])
    corners_e2 = np.empty((2 * len(place_h), 2), np.int32)
    corners_e2[place_h, 0], corners_e2[place_h, 1] = x_h, y_h
    corners_e2[place_h + 1, 0], corners_e2[place_h + 1, 1] = turn_h, y_h
    return Outlines(ids_n, corners_e2, starts_r, nucleus_r[order_r], is_hole_r[order_r])


def _stretches(padded: NDArray[np.integer]) -> tuple[list[Indices], list[Indices]]:
    """Return the first and the last pixel of each stretch, for each direction."""
    height, width = padded.shape
    flat = padded.ravel()
    above = np.flatnonzero(padded[1:] != padded[:-1])  # pixels with another id below them
    rows, columns = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), width - 1)
    columns, rows = np.divmod(np.sort(columns * height + rows), height)  # column by column
    before = rows * width + columns  # pixels with another id on their right
    first, last = [], []
    for places, step in ((above + width, 1), (before, width), (above, 1), (before + 1, width)):
        kinds = flat[places]
        pixels, kinds = places[kinds != 0], kinds[kinds != 0]
        breaks = (pixels[1:] - pixels[:-1] != step) | (kinds[1:] != kinds[:-1])
        bounds = np.concatenate([[True], breaks, [True]])[: len(pixels) + 1]
        first.append(pixels[bounds[:-1]])
        last.append(pixels[bounds[1:]])
    return [*first[:2], *last[2:]], [*last[:2], *first[2:]]  # to the left and up, the order is reversed


def _successors(padded: NDArray[np.integer], first: list[Indices], last: list[Indices]) -> Indices:
    """Return for each stretch to the right or left the one that follows behind the stretch down or up between them."""
    flat = padded.ravel()
    steps = (_STEPS @ (1, padded.shape[1])).tolist()
    across, turns_out, meets = [], [], []
    for own, ahead, outside in zip(last, steps, (steps[-1], *steps), strict=False):
        kinds = flat[own]
        across.append(own + (ahead + outside))
        turns_out.append(flat[own + ahead] == kinds)
        meets.append(~turns_out[-1] & (flat[across[-1]] == kinds))

    counts = [len(pixels) for pixels in first]
    numbers = [np.arange(counts[k]) + (counts[k - 2] if k > 1 else 0) for k in range(4)]  # of both with one axis
    following = [np.empty(sum(counts[axis::2]), np.intp) for axis in (0, 1)]
    at = np.empty(flat.size, np.int32)  # the stretch that starts or ends at a pixel
    for direction in range(4):
        at[first[direction]] = numbers[direction]
        before, behind = direction - 1, (direction + 1) % 4
        for other, pixels, comes in ((before, last, ~turns_out[before]), (behind, across, turns_out[behind])):
            following[other % 2][numbers[other][comes]] = at[pixels[other][comes]]

    if any(met.any() for met in meets):  # a ring that comes back to a corner is cut in two there
        leader_h = _leaders(following[1][following[0]])
        for axis, leader in enumerate((leader_h, leader_h[following[1]])):
            at[last[axis + 2]] = numbers[axis + 2]
            one, other = numbers[axis][meets[axis]], at[across[axis][meets[axis]]]
            same = leader[one] == leader[other]
            one, other = one[same], other[same]
            following[axis][one], following[axis][other] = following[axis][other], following[axis][one]
    return following[1][following[0]]


def _leaders(next_h: Indices) -> Indices:
    """Return for each stretch the lowest one of its ring."""
    leader_h, jump_h = np.arange(len(next_h)), next_h
    while True:
        lower_h = np.minimum(leader_h, leader_h[jump_h])
        if np.array_equal(lower_h, leader_h):
            return leader_h
        leader_h, jump_h = lower_h, jump_h[jump_h]  # twice as far in each round


def _ranks(next_h: Indices, leader_h: Indices, size_h: Indices) -> Indices:
    """Return the place of each stretch in its ring, counted from the leader."""
    own_h = np.arange(len(next_h))
    jump_h = np.where(leader_h == own_h, own_h, next_h)
    left_h = np.where(leader_h == own_h, 0, 1)  # steps to the leader
    while not np.array_equal(jump_h, leader_h):
        left_h, jump_h = left_h + left_h[jump_h], jump_h[jump_h]
    return (size_h - left_h) % size_h


def _pieces(
    padded: NDArray[np.integer], pixel_r: Indices, nucleus_r: Indices, is_hole_r: NDArray[np.bool_]
) -> NDArray[np.integer]:
    """Return a number for each ring that it shares with the other rings of its polygon, if with any of its nucleus."""
    outer_n = np.bincount(nucleus_r[~is_hole_r])
    several_r = outer_n[nucleus_r] > 1
    piece_r = np.where(several_r, np.arange(len(nucleus_r)), 0)
    with_holes_r = several_r & np.isin(nucleus_r, nucleus_r[is_hole_r & several_r])
    if with_holes_r.any():  # which piece has the hole?
        filled, visited = padded.astype(np.int32), np.zeros(np.add(padded.shape, 2), np.uint8)
        rows_r, columns_r = np.divmod(pixel_r, padded.shape[1])
        for ring in np.flatnonzero(with_holes_r & ~is_hole_r).tolist():
            cv2.floodFill(filled, visited, (int(columns_r[ring]), int(rows_r[ring])), -1 - ring, flags=4)
        piece_r[with_holes_r] = filled.ravel()[pixel_r[with_holes_r]]
    return piece_r
