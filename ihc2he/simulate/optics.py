"""Microscope, scanner and file: from optical density to the pixels of a tile.

Shape suffixes: h, w = height, width; c = colour (3).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.images.decoding import samples_of
from ihc2he.images.writing import as_jpeg
from ihc2he.stain.noise import Map, smooth_noise


@dataclass(frozen=True)
class Scanner:
    """What one scanner does to light."""

    white: NDArray[np.float64]  # (3,) level of empty glass, 0 to 255
    glare: float  # stray light that reaches every pixel, relative to white
    blur: float  # um, sigma of the point spread
    sharpening: float  # weight of the unsharp mask
    noise: float  # levels, standard deviation
    shading: float  # relative spread of the illumination
    quality: int  # JPEG
    fold: float = 0.01  # probability per tile
    pen: float = 0.003


def draw_scanner(rng: np.random.Generator, blur: float = 0.24, sharpening: float = 0.8, glare: float = 0.04) -> Scanner:
    """Return a scanner; `blur`, `sharpening` and `glare` are the centres of their ranges."""
    level = rng.uniform(240, 253)
    return Scanner(
        white=np.minimum(level + rng.normal(0, 2, 3), 255),
        glare=glare * float(rng.uniform(0.8, 1.2)),
        blur=blur * float(np.exp(rng.normal(0, 0.15))),
        sharpening=sharpening * float(np.exp(rng.normal(0, 0.2))),
        noise=float(rng.uniform(0.8, 2.2)),
        shading=float(rng.uniform(0, 0.02)),
        quality=int(rng.integers(72, 92)),
    )


def plain(od_hwc: Map) -> NDArray[np.uint8]:
    """Return the image of perfect optics: 255 times the transmittance, rounded.

    >>> plain(np.array([0.0, 1.0], np.float32)).tolist()
    [255, 26]
    """
    return np.round(255 * np.power(np.float32(10), -od_hwc)).astype(np.uint8)


def expose(od_hwc: Map, mpp: float, scanner: Scanner, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the image that a scanner takes of an optical density.

    Args:
        od_hwc: optical density, HxWx3 float32.
        mpp: pixel size, um/px.
        scanner: its optics and its file format.
        rng: source of noise and artefacts.
    """
    shape = od_hwc.shape[:2]
    if rng.random() < scanner.fold:
        od_hwc = od_hwc * (1 + 0.8 * _stroke(shape, 12 / mpp, rng)[..., None])
    if rng.random() < scanner.pen:
        od_hwc = od_hwc + _stroke(shape, 40 / mpp, rng)[..., None] * rng.uniform(0.1, 0.9, 3).astype(np.float32)
    light_hwc = light(od_hwc, mpp, scanner)
    light_hwc *= (1 + np.float32(scanner.shading) * smooth_noise(shape, max(shape) / 2, rng))[..., None]
    light_hwc += np.float32(scanner.noise) * rng.standard_normal(light_hwc.shape, np.float32)
    image = np.clip(np.round(light_hwc), 0, 255).astype(np.uint8)
    return samples_of(as_jpeg(image, scanner.quality)).rgb8()


def light(od_hwc: Map, mpp: float, scanner: Scanner) -> Map:
    """Return what reaches the camera through an optical density, 0 to 255, HxWx3; see `expose`."""
    light_hwc = np.exp(-np.float32(np.log(10)) * od_hwc)
    light_hwc = cv2.GaussianBlur(light_hwc, (0, 0), max(scanner.blur / mpp, 0.25))
    if scanner.sharpening:
        halo_hwc = cv2.GaussianBlur(light_hwc, (0, 0), 1.2)
        light_hwc = np.maximum(light_hwc + np.float32(scanner.sharpening) * (light_hwc - halo_hwc), 0)
    # Because of stray light no scan is black: it limits how dark the darkest brown can be.
    return (light_hwc + np.float32(scanner.glare)) * (scanner.white / (1 + scanner.glare)).astype(np.float32)


def _stroke(shape: tuple[int, int], width: float, rng: np.random.Generator) -> Map:
    """A bent band across the tile, 0 to 1."""
    h, w = shape
    y_hw, x_hw = np.mgrid[:h, :w].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    across_hw = (x_hw - rng.uniform(0, w)) * np.float32(np.cos(angle)) + (y_hw - rng.uniform(0, h)) * np.float32(
        np.sin(angle)
    )
    across_hw += width * smooth_noise(shape, 2 * width, rng)
    return (1 / (1 + np.exp(np.minimum((np.abs(across_hw) - width / 2) * 2, 60)))).astype(np.float32)
