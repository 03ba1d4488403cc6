import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ihc2he.errors import ConfigError
from ihc2he.nuclei.classical import detect_nuclei, segment_density, segment_nuclei
from ihc2he.stain.deconvolution import optical_density


def discs(centres, radius, side=100, colour=(60, 40, 120)):
    image = np.full((side, side, 3), 240, np.uint8)
    for x, y in centres:
        cv2.circle(image, (x, y), radius, colour, -1)
    return image


def test_finds_each_of_several_nuclei_and_those_at_the_border():
    centres = [(20, 15), (70, 20), (45, 50), (0, 80), (80, 99)]
    found = detect_nuclei(discs(centres, 6))
    distance = cdist(centres, found)
    assert len(found) == 5
    assert distance.min(axis=1).max() <= 2


def test_splits_touching_nuclei():
    assert len(detect_nuclei(discs([(40, 50), (51, 50)], 6))) == 2


@pytest.mark.parametrize("colour", [(60, 40, 120), (80, 50, 30)], ids=["hematoxylin", "dab"])
def test_finds_both_stains(colour):
    assert len(detect_nuclei(discs([(30, 30), (70, 60)], 6, colour=colour))) == 2


@pytest.mark.parametrize("level", [0, 128, 255])
def test_finds_nothing_on_a_flat_tile(level):
    image = np.full((50, 60, 3), level, np.uint8)
    assert detect_nuclei(image).shape == (0, 2)
    assert segment_nuclei(image).shape == (50, 60)
    assert not segment_nuclei(image).any()


def test_eosin_is_not_a_nucleus():
    assert len(detect_nuclei(discs([(50, 50)], 10, colour=(235, 120, 180)))) == 0


def test_sizes_follow_the_pixel_size():
    image = discs([(30, 30), (42, 30), (70, 60)], 6)
    doubled = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    coarse, fine = detect_nuclei(image, 0.5), detect_nuclei(doubled, 0.25)
    assert len(coarse) == len(fine) == 3
    assert np.abs(fine / 2 - coarse).max() <= 1.5


def test_instances_hold_the_detections_in_order():
    image = discs([(30, 30), (41, 30), (70, 60)], 6)
    found, instances = detect_nuclei(image), segment_nuclei(image)
    assert instances.dtype == np.int32
    assert instances[found[:, 1], found[:, 0]].tolist() == [1, 2, 3]
    assert np.abs(np.bincount(instances.ravel())[1:] / (np.pi * 6.5**2) - 1).max() < 0.35


def test_names_a_bad_pixel_size():
    with pytest.raises(ConfigError, match=r"mpp .* positive, found 0"):
        detect_nuclei(discs([(50, 50)], 6), 0)


@pytest.mark.skipif("IHC2HE_REALDATA" not in os.environ, reason="IHC2HE_REALDATA names no folder of real tiles")
def test_scores_f1_0824_on_real_endonuke_tiles():
    root = Path(os.environ["IHC2HE_REALDATA"]) / "endonuke" / "dataset"
    true = found = real = 0
    for path in sorted((root / "images").glob("*.png")):
        points = np.loadtxt(root / "labels" / "bulk" / "unknown" / f"{path.stem}.txt", ndmin=2)[:, :2]
        # The published number counts from 255, and takes transparent corners for tissue.
        detected = segment_density(optical_density(cv2.imread(str(path))[..., ::-1])[..., 0], 0.5)[1]
        distance = cdist(detected, points)
        # A pair beyond 3 um = 6 px costs more than all near ones together, so it never displaces one.
        rows, columns = linear_sum_assignment(np.where(distance <= 6, distance, 1e6))
        true += (distance[rows, columns] <= 6).sum()
        found += len(detected)
        real += len(points)
    assert real == 16735
    assert true / found == pytest.approx(0.851, abs=0.001)
    assert true / real == pytest.approx(0.798, abs=0.001)
    assert 2 * true / (found + real) == pytest.approx(0.824, abs=0.001)


@pytest.mark.parametrize("pen", [(30, 50, 150), (25, 25, 30), (20, 110, 50)])
def test_a_pen_stroke_hides_what_it_covers_and_nothing_else(pen):
    image = np.full((200, 200, 3), 238, np.uint8)
    centres = [(x, y) for x in range(15, 200, 30) for y in (20, 60, 150, 185)]
    for x, y in centres:
        image[y - 5 : y + 6, x - 5 : x + 6] = (110, 80, 60)
    before = detect_nuclei(image)
    assert len(before) == len(centres)
    image[80:130] = pen
    after = detect_nuclei(image)
    assert after.tolist() == before.tolist()  # with the stroke in its threshold it found none of them


def test_grey_glass_changes_no_detection():
    image = np.full((200, 200, 3), 250, np.uint8)
    for x in range(15, 200, 30):
        image[90:101, x - 5 : x + 6] = (110, 80, 60)
    grey = (image * 0.86).round().astype(np.uint8)
    assert detect_nuclei(grey).tolist() == detect_nuclei(image).tolist()
