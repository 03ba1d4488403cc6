"""Augmentation of crops, and conversion of uint8 images to float tensors."""

import os
import random
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    import albumentations


def training_transform(
    *,
    flip: bool,
    rotate90: bool,
    brightness_contrast: float,
    rotate: float = 0.0,
    crop: float = 1.0,
    size: int = 0,
    channels: int = 3,
) -> "albumentations.Compose":
    """Return the augmentation of a training image; its output is float32 in [-1, 1].

    Args:
        flip: left-right and up-down, each with probability 1/2.
        rotate90: by 0, 90, 180 or 270 degrees, each with probability 1/4.
        brightness_contrast: largest relative change; 0 = off.
        rotate: largest angle in degrees, with mirrored corners; 0 = off.
        crop: smallest share of the area that a random square keeps, before it is enlarged to `size`; 1 = off.
        size: side of the image, px; only needed for `crop`.
        channels: of the image.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise its import asks a server for updates
    import albumentations

    steps: list[albumentations.BasicTransform] = []
    if crop < 1:
        steps.append(albumentations.RandomResizedCrop((size, size), scale=(crop, 1.0), ratio=(1.0, 1.0), p=1))
    if rotate:
        steps.append(albumentations.Rotate((-rotate, rotate), border_mode=cv2.BORDER_REFLECT_101, p=1))
    if flip:
        steps += [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]
    if rotate90:
        steps.append(albumentations.RandomRotate90(p=1))
    if brightness_contrast:
        limit = (-brightness_contrast, brightness_contrast)
        steps.append(albumentations.RandomBrightnessContrast(brightness_limit=limit, contrast_limit=limit, p=1))
    steps.append(albumentations.Normalize(mean=(0.5,) * channels, std=(0.5,) * channels))
    return albumentations.Compose(steps)


def augment(transform: "albumentations.Compose", image: NDArray[np.uint8], seed: int) -> torch.Tensor:
    """Return an augmented image as a (C, H, W) tensor; the same seed gives the same change.

    Unlike ``Compose.set_random_seed``, which gives every step its own copy of the same random stream, so that the two
    flips always happen together (and which takes six times as long).
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return to_tensor(transform(image=image)["image"])


def normalise(image: NDArray[np.uint8]) -> torch.Tensor:
    """Return an HxWxC uint8 image as a (C, H, W) float32 tensor in [-1, 1].

    >>> normalise(np.array([[[0, 255, 51]]], np.uint8)).flatten().tolist()
    [-1.0, 1.0, -0.6000000238418579]
    """
    return to_tensor(image.astype(np.float32) / 127.5 - 1)


def to_tensor(image: NDArray[np.float32]) -> torch.Tensor:
    """Return an HxWxC array as a contiguous (C, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
