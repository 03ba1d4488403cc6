"""Tissue is found by its colour, whatever else is on a slide."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ihc2he.errors import DataError
from ihc2he.images.areas import Area
from ihc2he.images.source import ArraySource, FileSource
from ihc2he.images.tissue import find_tissue
from ihc2he.nuclei.geojson import write_area

REALDATA = os.environ.get("IHC2HE_REALDATA")
MPP = 4.0
PALE_BLUE, WEAK_BROWN, EOSIN, FOLD = (0.035, 0.04, 0.015), (0.02, 0.04, 0.06), (0.03, 0.2, 0.1), (0.9, 1.1, 1.2)


def scene(*stains, glass=(240, 240, 240), size=300):
    """Return glass with a disc of 80 px for each stain, given as optical densities, one below the other, and them."""
    od_hwc = np.zeros((size * len(stains), size, 3))
    truth_hw = np.zeros(od_hwc.shape[:2], np.uint8)
    for i, stain in enumerate(stains):
        one_hw = cv2.circle(np.zeros_like(truth_hw), (150, 150 + size * i), 80, 1, -1)
        od_hwc[one_hw > 0] = stain
        truth_hw |= one_hw
    rng = np.random.default_rng(0)
    image = np.array(glass) * 10**-od_hwc + rng.normal(0, 2, od_hwc.shape)
    return image.round().clip(0, 255).astype(np.uint8), truth_hw > 0


def overlap(image, truth_hw):
    found_hw = find_tissue(ArraySource(image, MPP)).region(slice(None), slice(None))
    return (found_hw & truth_hw).sum() / (found_hw | truth_hw).sum()


@pytest.mark.parametrize("glass", [(240, 240, 240), (216, 216, 216), (250, 247, 243)], ids=["", "grey", "warm"])
def test_pale_weak_and_folded_tissue_is_found_on_any_glass(glass):
    image, truth_hw = scene(PALE_BLUE, WEAK_BROWN, EOSIN, FOLD, glass=glass)
    assert overlap(image, truth_hw) > 0.85


def add_black_border(image):
    image[:, :40] = 3


def add_unscanned(image):
    image[200:] = 255


def add_edge_of_glass(image):
    image[:, 255:262] = 90


def add_shadow(image):
    image[255:290, 20:280] = image[255:290, 20:280] * 0.8


def add_dirt(image):
    cv2.circle(image, (40, 40), 12, (40, 40, 40), -1)


def add_green_ink(image):
    cv2.line(image, (20, 280), (280, 262), (30, 120, 60), 14)


def add_blue_ink(image):
    cv2.line(image, (20, 280), (280, 262), (20, 50, 160), 14)


@pytest.mark.parametrize(
    "spoil",
    [add_black_border, add_edge_of_glass, add_shadow, add_dirt, add_green_ink, add_blue_ink, add_unscanned],
)
@pytest.mark.parametrize("stain", [PALE_BLUE, EOSIN], ids=["pale", "eosin"])
def test_what_is_no_tissue_is_left_out(spoil, stain):
    image, truth_hw = scene(stain, glass=(230, 230, 230))
    spoil(image)
    if spoil is add_unscanned:
        truth_hw[200:] = False
    assert overlap(image, truth_hw) > 0.85


def test_fat_cells_belong_to_the_tissue():
    image, truth_hw = scene(EOSIN)
    rows, columns = np.mgrid[:300, :300]
    lumen_hw = ((rows % 20 - 10) ** 2 + (columns % 20 - 10) ** 2 < 64) & truth_hw  # cells of 64 um
    image[lumen_hw] = 240
    assert overlap(image, truth_hw) > 0.9


def test_glass_alone_and_black_alone_have_no_tissue():
    glass, _ = scene((0, 0, 0))
    assert find_tissue(ArraySource(glass, MPP)).share == 0
    assert find_tissue(ArraySource(np.zeros_like(glass), MPP)).share == 0


def test_fine_images_are_shrunk_and_the_pixel_size_is_needed():
    image, truth_hw = scene(EOSIN)
    fine = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    tissue = find_tissue(ArraySource(fine, MPP / 4))
    assert tissue.map_hw.shape == truth_hw.shape
    assert tissue.share == pytest.approx(find_tissue(ArraySource(image, MPP)).share, abs=0.01)
    with pytest.raises(DataError, match=r"a\.svs: does not state its pixel size. Pass it as data\.mpp"):
        find_tissue(ArraySource(image, name="a.svs"))


def test_the_picture_darkens_what_is_left_out_and_leaves_the_image_alone():
    image, _ = scene(EOSIN)
    before = image.copy()
    source = ArraySource(image, MPP)
    picture = find_tissue(source).picture(source, 300)
    assert np.array_equal(image, before)
    assert picture[5, 5].mean() < 130 < picture[150, 150].mean()


def test_a_share_counts_pixels_of_the_image():
    area = Area(np.eye(2, dtype=bool), (5, 4))
    seen_hw = area.region(slice(None), slice(None))
    for rows, columns in ((slice(None), slice(None)), (slice(1, 4), slice(0, 3)), (slice(4, 5), slice(3, 4))):
        assert area.covers(rows, columns) == pytest.approx(seen_hw[rows, columns].mean())
    assert area.at(np.array([[0, 0], [3, 0], [3.4, 4.2]])).tolist() == [True, False, True]


def test_an_area_is_written_as_an_annotation_in_pixels_of_the_image(tmp_path):
    map_hw = np.zeros((4, 4), bool)
    map_hw[1:3, 1:3] = True
    write_area(tmp_path / "a.geojson", Area(map_hw, (40, 80)), "Tissue")
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"] == {"name": "Tissue"}
    corners = np.array(feature["geometry"]["coordinates"][0])
    assert (corners.min(0).tolist(), corners.max(0).tolist()) == ([20, 10], [60, 30])


@pytest.mark.skipif(not REALDATA, reason="IHC2HE_REALDATA names no folder of real tiles")
def test_nuclei_of_real_ihc_lie_in_the_tissue():
    labels = Path(str(REALDATA)) / "endonuke" / "dataset" / "labels" / "bulk"
    lost = count = 0
    for path in sorted(labels.glob("*/*.txt"))[::9]:
        points = np.loadtxt(path, ndmin=2)[:, :2]
        inside = find_tissue(FileSource(labels.parents[1] / "images" / f"{path.stem}.png", 0.5)).at(points)
        lost, count = lost + (~inside).sum(), count + len(points)
    assert count > 1000
    assert lost <= 0.002 * count
