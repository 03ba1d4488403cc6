"""Pyramids, as other programs read them."""

import subprocess
import sys
from itertools import pairwise

import cv2
import numpy as np
import pytest
import tifffile

from ihc2he.images.pyramid import write_pyramid
from ihc2he.images.source import FileSource

SHAPE = (203, 311)


@pytest.fixture(scope="module")
def image():
    coarse = np.random.default_rng(0).integers(0, 256, (14, 21, 3), np.uint8)
    return cv2.resize(coarse, SHAPE[::-1], interpolation=cv2.INTER_CUBIC)


def strips(image, rows):
    return (image[top : top + rows] for top in range(0, len(image), rows))


def halved(level):
    """Return the means of the pixels that each pixel of the next level covers."""
    height, width = level.shape[:2]
    sums = np.add.reduceat(np.add.reduceat(level.astype(int), range(0, height, 2)), range(0, width, 2), axis=1)
    counts = np.add.reduceat(np.add.reduceat(np.ones((height, width)), range(0, height, 2)), range(0, width, 2), axis=1)
    return sums / counts[..., None]


@pytest.mark.parametrize("rows", [1, 64, 77, 203])
def test_without_loss_the_pixels_and_their_means_come_back(tmp_path, image, rows):
    path = tmp_path / "a.ome.tif"
    write_pyramid(path, SHAPE, 0.25, strips(image, rows), tile=64, quality=None)
    with tifffile.TiffFile(path) as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    assert [level.shape[:2] for level in levels] == [(203, 311), (102, 156), (51, 78), (26, 39)]
    np.testing.assert_array_equal(levels[0], image)
    for fine, coarse in pairwise(levels):
        assert np.abs(halved(fine) - coarse).max() <= 0.5
    assert [path] == list(tmp_path.iterdir())


def test_equal_images_are_equal_files_whatever_the_strips(tmp_path, image):
    for folder, rows in (("a", 13), ("b", 100)):
        write_pyramid(tmp_path / folder / "x.ome.tif", SHAPE, 0.25, strips(image, rows), tile=64)
    assert (tmp_path / "a" / "x.ome.tif").read_bytes() == (tmp_path / "b" / "x.ome.tif").read_bytes()


@pytest.mark.parametrize("quality", [None, 90])
def test_metadata_is_that_of_an_ome_pyramid(tmp_path, image, quality):
    path = tmp_path / "a.ome.tif"
    write_pyramid(path, SHAPE, 0.46, strips(image, 50), tile=64, quality=quality)
    with tifffile.TiffFile(path) as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [pixels[f"PhysicalSize{axis}"] for axis in "XY"] == [0.46, 0.46]
        assert pixels["PhysicalSizeXUnit"] == pixels["PhysicalSizeYUnit"] == "µm"
        assert (pixels["SizeX"], pixels["SizeY"], pixels["SizeC"]) == (311, 203, 3)
        assert len(tiff.pages) == 1
        assert tiff.pages[0].compression.name == ("JPEG" if quality else "ADOBE_DEFLATE")
        levels = tiff.series[0].levels
        assert [level.keyframe.is_reduced for level in levels] == [False, True, True, True]
        assert all(level.keyframe.tile == (64, 64) for level in levels)
        error = np.abs(levels[0].asarray().astype(int) - image).mean()
        assert error < 5
        assert (error == 0) == (quality is None)
    source = FileSource(path)
    assert source.by_region
    assert source.shape == SHAPE


@pytest.mark.parametrize("quality", [None, 90])
def test_openslide_reads_the_full_resolution(tmp_path, image, quality):
    openslide = pytest.importorskip("openslide", reason="needs openslide-python and openslide-bin")
    path = tmp_path / "a.ome.tif"
    write_pyramid(path, SHAPE, 0.25, strips(image, 50), tile=64, quality=quality)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == SHAPE[::-1]
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        read = np.asarray(slide.read_region((0, 0), 0, SHAPE[::-1]))
    assert (read[..., 3] == 255).all()
    np.testing.assert_allclose(read[..., :3], tifffile.imread(path).astype(int), atol=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (slice(0, 200), "3 rows of the image are missing"),
        (slice(0, 0), "203 rows of the image are missing"),
        ((slice(None), slice(1, None)), r"\(50, 310, 3\) came where 203 rows of 311 px were expected"),
    ],
)
def test_strips_that_do_not_fit_leave_nothing(tmp_path, image, given, message):
    with pytest.raises(ValueError, match=message):
        write_pyramid(tmp_path / "a.ome.tif", SHAPE, 0.25, strips(image[given], 50), tile=64)
    assert not list(tmp_path.iterdir())


def test_a_strip_too_many_leaves_nothing(tmp_path, image):
    with pytest.raises(ValueError, match="came where 0 rows"):
        write_pyramid(tmp_path / "a.ome.tif", SHAPE, 0.25, [image, image[:1]], tile=64)
    assert not list(tmp_path.iterdir())


def test_tiles_have_sides_that_tiff_allows(tmp_path, image):
    with pytest.raises(ValueError, match="multiples of 16"):
        write_pyramid(tmp_path / "a.ome.tif", SHAPE, 0.25, [image], tile=100)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_is_bounded(tmp_path):
    code = """
import sys
from pathlib import Path
import numpy as np, tifffile
from ihc2he.images.pyramid import write_pyramid
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
size, rng = 20_000, np.random.default_rng(0)
noise = rng.integers(0, 256, (500, size, 3), np.uint8)
before = peak()
path = Path(sys.argv[1])
write_pyramid(path, (size, size), 0.25, (np.roll(noise, i, 0) for i in range(40)), quality=20)
print(peak() - before)
with tifffile.TiffFile(path) as tiff:
    print(tiff.series[0].levels[-1].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.ome.tif")], capture_output=True, text=True, check=True
    )
    grown, smallest = done.stdout.splitlines()
    assert float(grown) < 300, grown  # MB; the image has 1200
    assert smallest == "(313, 313, 3)"
