import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ihc2he.images import source
from ihc2he.images.decoding import read_image
from ihc2he.images.masks import find_ink, ink_mask
from ihc2he.images.source import ArraySource
from ihc2he.stain.white import white_point

REALDATA = os.environ.get("IHC2HE_REALDATA")
real = pytest.mark.skipif(not REALDATA, reason="IHC2HE_REALDATA names no folder of real tiles")
PENS = {"blue": (30, 50, 150), "black": (25, 25, 30), "green": (20, 110, 50), "red": (200, 30, 40)}


def tissue(seed: int = 0, side: int = 256) -> np.ndarray:
    """Glass with nuclei of 10 um in hematoxylin blue, DAB brown and almost black brown, at 0.5 um/px."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 238, np.uint8)
    colours = [(90, 110, 190), (120, 70, 40), (45, 28, 20), (180, 80, 160)]
    for x, y in rng.integers(0, side, (60, 2)).tolist():
        cv2.ellipse(image, (x, y), (10, 7), rng.integers(180), 0, 360, colours[rng.integers(4)], -1)
    return image


def stroke(image: np.ndarray, colour: tuple[int, int, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.line(mask, (0, 40), (image.shape[1], 200), 1, width)
    return np.where(mask[..., None] > 0, np.uint8(colour), image), mask > 0


@pytest.mark.parametrize("width", [26, 50, 90])
@pytest.mark.parametrize("pen", PENS)
def test_strokes_are_found_and_nuclei_are_not(pen, width):
    image = tissue()
    assert not ink_mask(image, 0.5).any()
    drawn, truth = stroke(image, PENS[pen], width)
    found = ink_mask(drawn, 0.5)
    assert (found & truth).sum() / truth.sum() > 0.95
    assert (
        found & ~cv2.dilate(truth.view(np.uint8), np.ones((11, 11))).astype(bool)
    ).mean() < 0.01  # a nucleus that touches the stroke may go with it


def test_a_finer_scan_of_the_same_field_gives_the_same_mask():
    drawn, _ = stroke(tissue(), PENS["blue"], 40)
    fine = cv2.resize(drawn, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    assert (ink_mask(fine, 0.25)[::2, ::2] != ink_mask(drawn, 0.5)).mean() < 0.01


def test_regions_points_and_share_are_those_of_the_whole_mask(monkeypatch):
    drawn = cv2.resize(stroke(tissue(), PENS["blue"], 40)[0], (301, 511), interpolation=cv2.INTER_NEAREST)
    mask = ink_mask(drawn, 0.3, (238, 238, 238))
    ink = find_ink(ArraySource(drawn, 0.3), (238, 238, 238))
    assert np.array_equal(ink.region(slice(100, 311), slice(7, 290)), mask[100:311, 7:290])
    assert ink.share == pytest.approx(mask.mean())
    points_n2 = np.array([[0, 0], [300, 510], [150, 250], [300.4, 510.4], [33.3, 77.7]])
    assert ink.at(points_n2).tolist() == [mask[y, x] for x, y in [(0, 0), (300, 510), (150, 250), (300, 510), (33, 78)]]
    monkeypatch.setattr(source, "WHOLE_PX", 1000)  # as of a large image: from a thumbnail
    large = find_ink(ArraySource(drawn, 0.3), (238, 238, 238)).region(slice(None), slice(None))
    assert (large != mask).mean() < 0.01


def test_wide_brown_is_tissue():
    image = np.full((200, 200, 3), 238, np.uint8)
    image[:, 40:160] = (120, 70, 40)
    assert not ink_mask(image, 0.5).any()


@real
@pytest.mark.parametrize(("folder", "mpp"), [("endonuke/dataset", 0.5), ("he_nuclei", 0.25)])
def test_real_tissue_is_not_taken_for_ink(folder, mpp):
    files = sorted((Path(str(REALDATA)) / folder / "images").iterdir())
    shares = [ink_mask(image, mpp, white_point(image)).mean() for image in map(read_image, files)]
    assert np.mean(shares) < 1e-4
    assert max(shares) < 0.01


@real
def test_real_ink_is_found():
    image = read_image(Path(str(REALDATA)) / "consep" / "images" / "train_2.jpg")  # a large black mark
    assert 0.1 < ink_mask(image, 0.25, white_point(image)).mean() < 0.2
