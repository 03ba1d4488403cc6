"""Classical stain normalisation by torchstain, with its edges: tiles on which the statistics mean nothing.

A normaliser is an object of torchstain's NumPy backend that holds the statistics of its target.
Suffixes: m = pixels, c = colour (3), 2 = stains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError, DataError

Method = Literal["reinhard", "macenko"]
Statistics = tuple[NDArray[np.floating], NDArray[np.floating]]

LIGHT = 240.0  # torchstain's intensity of glass
_TRANSPARENT = 0.15  # natural optical density; Macenko's method leaves out pixels that have less in some channel
_LEAST_TISSUE = 0.05  # share of a tile; below, the 99th percentile that scales Macenko's stains is close to glass
_LEAST_SPREAD = 0.1  # of a channel, in CIE Lab units: less than one of 255 grey levels
_LARGEST_COSINE = 0.999  # of the angle between two stains, below which (2.6 degrees) they cannot be told apart


def normaliser(method: Method, statistics: Statistics | None = None) -> Any:
    """Return a normaliser with the given statistics of the target, as `pooled` returns them.

    Args:
        method: `reinhard` (Reinhard et al., IEEE CG&A 2001) or `macenko` (Macenko et al., ISBI 2009).
        statistics: reinhard: means and standard deviations in CIE Lab; macenko: 3x2 stain vectors and the two largest
            concentrations, torchstain's published reference where None.

    Raises:
        ConfigError: where torchstain is not installed.
    """
    try:
        from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer
        from torchstain.numpy.normalizers.reinhard import NumpyReinhardNormalizer
    except ModuleNotFoundError as error:
        msg = f'The translator {method} needs the package torchstain: pip install "ihc2he[stain]".'
        raise ConfigError(msg) from error
    made = NumpyReinhardNormalizer() if method == "reinhard" else NumpyMacenkoNormalizer()
    if statistics is not None:
        for name, value in zip(_ATTRIBUTES[method], statistics, strict=True):
            setattr(made, name, np.asarray(value, np.float64))
    return made


_ATTRIBUTES: dict[Method, tuple[str, str]] = {
    "reinhard": ("target_means", "target_stds"),
    "macenko": ("HERef", "maxCRef"),
}


def pooled(method: Method, images: Iterable[NDArray[np.uint8]]) -> Statistics:
    """Return the statistics of target tiles: those of each, averaged (standard deviations as variances).

    So differences between tiles do not add to the contrast that a tile is given. Tiles without enough tissue are left
    out.

    Args:
        method: as for `normaliser`.
        images: HxWx3 uint8 RGB; H&E.

    Raises:
        DataError: where no tile has enough tissue.
    """
    found = [one for image in images if (one := statistics(method, image)) is not None]
    if not found:
        msg = f"None of the target tiles has the tissue that {method} needs. Choose H&E tiles with nuclei and stroma."
        raise DataError(msg)
    first, second = (np.stack(of_all) for of_all in zip(*found, strict=True))
    if method == "reinhard":
        return first.mean(0), np.sqrt((second**2).mean(0))
    vectors_c2 = first.mean(0)
    return vectors_c2 / np.linalg.norm(vectors_c2, axis=0), second.mean(0)


def target_statistics(method: Method, statistics: Statistics | None = None) -> Statistics:
    """Return the statistics of a target: those given, or torchstain's published reference.

    Raises:
        ConfigError: where torchstain is not installed.
    """
    made = normaliser(method, statistics)
    first, second = (np.asarray(getattr(made, name), np.float64) for name in _ATTRIBUTES[method])
    return first, second


def with_statistics(method: Method, target: Statistics, own: Statistics, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image, or a part of one, in the colours of the target.

    Args:
        method: whose statistics they are.
        target: the statistics to reach.
        own: those of the whole image, from `statistics`.
        image: HxWx3 uint8 RGB.
    """
    if method == "reinhard":
        from torchstain.numpy.utils.lab2rgb import lab2rgb
        from torchstain.numpy.utils.rgb2lab import rgb2lab

        scale, shift = np.array([2.55, 1, 1], np.float32), np.array([0, 128, 128], np.float32)  # of torchstain's Lab
        lab_hwc = (rgb2lab(image.astype(np.float32) / 255) - shift) / scale
        (mean, std), (to_mean, to_std) = own, target
        moved_hwc = (lab_hwc - mean.astype(np.float32)) / std.astype(np.float32) * to_std + to_mean
        return (lab2rgb(moved_hwc * scale + shift) * 255).astype(np.uint8)
    od_cm = -np.log((image.reshape(-1, 3).astype(np.float64) + 1) / LIGHT).T
    (vectors_c2, strongest_2), (to_vectors_c2, to_strongest_2) = own, target
    amounts_2m = np.linalg.lstsq(vectors_c2, od_cm, rcond=None)[0] / (strongest_2 / to_strongest_2)[:, None]
    made_cm = np.minimum(LIGHT * np.exp(-to_vectors_c2 @ amounts_2m), 255)
    return made_cm.T.reshape(image.shape).astype(np.uint8)


def statistics(method: Method, image: NDArray[np.uint8]) -> Statistics | None:
    """Return what torchstain finds on a tile, or None where that means nothing."""
    dark_mc = -np.log((image.reshape(-1, 3) + 1.0) / LIGHT) >= _TRANSPARENT
    tissue_m = dark_mc.all(1) if method == "macenko" else dark_mc.any(1)
    if tissue_m.mean() < _LEAST_TISSUE or (image == image[0, 0]).all():
        return None
    own = normaliser(method)
    own.fit(image)
    first, second = (np.asarray(getattr(own, name), np.float64) for name in _ATTRIBUTES[method])
    if method == "reinhard":
        return (first, second) if second.min() >= _LEAST_SPREAD else None
    possible = first.min() > -0.1 and second.min() > 0 and first[:, 0] @ first[:, 1] < _LARGEST_COSINE
    return (first, second) if possible else None
