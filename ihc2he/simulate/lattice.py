"""Smooth random fields that are a function of the position, so that windows of an image of any size fit together.

Shape suffixes: h, w = height, width; n = positions on an axis.
"""

from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ihc2he.stain.noise import Map

_CHUNK = 128  # nodes of the lattice that are drawn at once
_ORIGIN = 1 << 20  # chunks; seeds are not negative, but positions may be


@dataclass(frozen=True)
class Frame:
    """A rectangle of evenly spaced positions.

    Attributes:
        top: px of the image, of the first row.
        left: px, of the first column.
        shape: rows and columns.
        step: px from one to the next.
    """

    top: float
    left: float
    shape: tuple[int, int]
    step: int = 1

    @cached_property
    def y_n(self) -> Map:
        """Rows in px of the image."""
        return self.top + self.step * np.arange(self.shape[0])

    @cached_property
    def x_n(self) -> Map:
        """Columns in px of the image."""
        return self.left + self.step * np.arange(self.shape[1])


def noise_at(frame: Frame, name: str, scale: float, seed: int) -> Map:
    """Return a Gaussian random field of zero mean and about unit variance; see `smooth_noise`.

    Args:
        frame: where.
        name: of the field; fields of different names are independent.
        scale: correlation length in px of the image.
        seed: of the image.

    >>> whole = noise_at(Frame(0, 0, (40, 50)), "a", 7.0, 0)
    >>> part = noise_at(Frame(10, 20, (8, 9)), "a", 7.0, 0)
    >>> bool(abs(part - whole[10:18, 20:29]).max() < 1e-5)
    True
    """
    cell = max(scale / 2.5, 1.0)
    sigma = scale / cell
    reach = int(np.ceil(3 * sigma))
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma)
    first, last = (np.floor([at_n[k] / cell for at_n in (frame.y_n, frame.x_n)]).astype(int) for k in (0, -1))
    white_hw = _white(first - reach, last + 2 + reach, name, seed)
    coarse_hw: Map = cv2.sepFilter2D(white_hw, -1, kernel, kernel)[reach:-reach, reach:-reach]
    coarse_hw = coarse_hw / np.float32((kernel**2).sum())
    if cell == frame.step == 1.0 and frame.top % 1 == frame.left % 1 == 0:
        return np.ascontiguousarray(coarse_hw[: frame.shape[0], : frame.shape[1]])
    down, across = (_weights(at_n / cell) for at_n in (frame.y_n, frame.x_n))
    return np.ascontiguousarray((across @ (down @ coarse_hw).T).T)


def _weights(at_n: Map) -> csr_matrix:
    """Return the matrix that interpolates between nodes, the first of which is just before the first position."""
    low_n = np.floor(at_n).astype(int)
    share_n = (at_n - low_n).astype(np.float32)
    low_n -= low_n[0]
    n = np.arange(len(at_n))
    entries = np.concatenate([1 - share_n, share_n]), (np.concatenate([n, n]), np.concatenate([low_n, low_n + 1]))
    return csr_matrix(entries, shape=(len(at_n), low_n[-1] + 2))


def _white(start_2: NDArray[np.int_], stop_2: NDArray[np.int_], name: str, seed: int) -> Map:
    """Return independent normal numbers at the nodes of a lattice, from and to row and column, drawn chunk by chunk."""
    made_hw = np.empty(stop_2 - start_2, np.float32)
    first, last = start_2 // _CHUNK, -(-stop_2 // _CHUNK)
    for i in range(first[0], last[0]):
        for j in range(first[1], last[1]):
            rng = np.random.default_rng([seed, crc32(name.encode()), i + _ORIGIN, j + _ORIGIN])
            chunk_hw = rng.standard_normal((_CHUNK, _CHUNK), np.float32)
            y, x = np.array([i, j]) * _CHUNK - start_2
            part_hw = made_hw[max(y, 0) : y + _CHUNK, max(x, 0) : x + _CHUNK]
            part_hw[...] = chunk_hw[max(-y, 0) :, max(-x, 0) :][: part_hw.shape[0], : part_hw.shape[1]]
    return made_hw
