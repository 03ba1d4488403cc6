from collections import Counter

import numpy as np
import pytest
import torch

from ihc2he.data.transforms import augment, normalise, training_transform

# Four different corners make each of the eight flips and turns of the square recognisable.
CORNERS = np.repeat(np.array([[0, 60], [120, 250]], np.uint8)[..., None], 3, axis=2)


def variants(transform, seeds=400):
    return Counter(tuple(augment(transform, CORNERS, seed)[0].flatten().tolist()) for seed in range(seeds))


def make(flip=False, rotate90=False, brightness_contrast=0.0):
    return training_transform(flip=flip, rotate90=rotate90, brightness_contrast=brightness_contrast)


@pytest.mark.parametrize(
    ("flip", "rotate90", "n"), [(False, False, 1), (True, False, 4), (False, True, 4), (True, True, 8)]
)
def test_all_orientations_come_equally_often(flip, rotate90, n):
    counts = variants(make(flip, rotate90))
    assert len(counts) == n
    assert min(counts.values()) > 400 / n * 0.6  # four standard deviations for n = 8


def test_without_augmentation_it_only_normalises():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    torch.testing.assert_close(augment(make(), image, 0), normalise(image), rtol=0, atol=1e-6)


def test_the_seed_alone_decides():
    transform = make(True, True, 0.3)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    first = augment(transform, image, 7)
    augment(transform, image, 8)
    assert torch.equal(augment(transform, image, 7), first)
    assert torch.equal(augment(make(True, True, 0.3), image, 7), first)


def test_brightness_is_off_by_default_and_bounded_where_on():
    grey = np.full((8, 8, 3), 128, np.uint8)
    assert len({augment(make(True, True), grey, seed).sum().item() for seed in range(20)}) == 1
    values = [augment(make(brightness_contrast=0.2), grey, seed)[0, 0, 0].item() for seed in range(50)]
    assert len(set(values)) > 10
    assert -1 <= min(values) < 0 < max(values) <= 1


def test_normalise_covers_the_range():
    image = np.array([[[0, 128, 255]]], np.uint8)
    x_chw = normalise(image)
    assert x_chw.dtype == torch.float32
    assert x_chw.is_contiguous()
    torch.testing.assert_close(x_chw.flatten(), torch.tensor([-1.0, 256 / 255 - 1, 1.0]))
