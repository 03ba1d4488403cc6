"""Optical density and colour deconvolution by the Beer-Lambert law, for NumPy images and torch batches.

Shape suffixes: b = batch, c = colour (3), s = stain, h, w = height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# Unit optical-density vectors (R, G, B) of Ruifrok and Johnston, Anal Quant Cytol Histol 2001.
HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)
DAB = (0.268, 0.570, 0.776)

HE = (HEMATOXYLIN, EOSIN)
IHC = (HEMATOXYLIN, DAB)


def optical_density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the decadic optical density of an image.

    Differs from skimage's ``rgb2hed``, which uses the natural logarithm and adds no floor of 1/255.

    Args:
        image: HxWx3, uint8 RGB.

    Returns:
        HxWx3 float32 in [0, 2.41]: ``-log10(max(I, 1) / 255)``.

    >>> float(optical_density(np.full((1, 1, 3), 255, np.uint8)).max())
    0.0
    """
    if image.dtype != np.uint8:
        msg = f"optical_density takes a uint8 image, found {image.dtype}."
        raise TypeError(msg)
    return _OD_OF_UINT8[image]


_OD_OF_UINT8 = (-np.log10(np.maximum(np.arange(256), 1) / 255)).astype(np.float32) + np.float32(0)


def unmixing_matrix(stains: tuple[tuple[float, float, float], ...]) -> NDArray[np.float32]:
    """Return the 3xS matrix that turns optical density into stain concentrations.

    Two stains are completed by the residual orthogonal to both, which takes up what neither explains;
    the residual's column is dropped from the result.

    Args:
        stains: two or three optical-density vectors; they are normalised here.

    >>> unmixing_matrix(HE).shape
    (3, 2)
    """
    vectors_sc = np.asarray(stains, np.float64)
    vectors_sc = vectors_sc / np.linalg.norm(vectors_sc, axis=1, keepdims=True)
    n = len(vectors_sc)
    if n == 2:
        residual = np.cross(vectors_sc[0], vectors_sc[1])
        vectors_sc = np.vstack([vectors_sc, residual / np.linalg.norm(residual)])
    return np.linalg.inv(vectors_sc)[:, :n].astype(np.float32)


def separate(image: NDArray[np.uint8], stains: tuple[tuple[float, float, float], ...]) -> NDArray[np.float32]:
    """Return the stain concentrations of an image, in units of optical density.

    Args:
        image: HxWx3, uint8 RGB.
        stains: optical-density vectors, for instance ``HE`` or ``IHC``.

    Returns:
        HxWxS float32; may be slightly negative where a colour lies outside the stains' span.
    """
    return optical_density(image) @ unmixing_matrix(stains)


def separate_batch(x_bchw: torch.Tensor, stains: tuple[tuple[float, float, float], ...]) -> torch.Tensor:
    """Return the stain concentrations of a batch of images; differentiable.

    Args:
        x_bchw: (N, 3, H, W) floats in [-1, 1], as the translation models use them.
        stains: optical-density vectors, for instance ``HE`` or ``IHC``.

    Returns:
        (N, S, H, W) float32, equal to `separate` on the same image.
    """
    import torch

    od_bchw = -torch.log10(((x_bchw.float() + 1) / 2).clamp(1 / 255, 1))
    unmix_cs = torch.from_numpy(unmixing_matrix(stains)).to(od_bchw.device)
    return torch.einsum("bchw,cs->bshw", od_bchw, unmix_cs)
