"""Encoded images and label maps, as other programs read them."""

import cv2
import numpy as np
import pytest
import tifffile

from ihc2he.images.decoding import read_image, samples_of
from ihc2he.images.writing import as_jpeg, png_rows, write_instance_rows, write_instances, write_png


@pytest.mark.parametrize(("shape", "dtype"), [((5, 7, 3), np.uint8), ((5, 7), np.uint8), ((5, 7), np.uint16)])
def test_a_png_has_the_pixels(tmp_path, shape, dtype):
    image = np.random.default_rng(0).integers(np.iinfo(dtype).max + 1, size=shape, dtype=dtype)
    write_png(tmp_path / "a.png", image[:, ::-1])  # not contiguous
    read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read[..., ::-1] if read.ndim == 3 else read, image[:, ::-1])
    assert read.dtype == dtype


def test_a_jpeg_of_higher_quality_is_nearer_and_larger():
    rows, columns = np.mgrid[:64, :64] * 4
    image = np.dstack([rows, columns, 255 - rows]).astype(np.uint8)
    poor, good = (as_jpeg(image, quality) for quality in (10, 95))
    assert len(poor) < len(good)
    far, near = (np.abs(samples_of(data).rgb8().astype(int) - image).mean() for data in (poor, good))
    assert near < far
    assert near < 2


@pytest.mark.parametrize(("name", "largest"), [("a.png", 2**16 - 1), ("a.tif", 2**20)])
def test_an_instance_map_keeps_its_numbers(tmp_path, name, largest):
    inst_hw = np.array([[0, 1], [2, largest]], np.int32)
    write_instances(tmp_path / name, inst_hw)
    path = tmp_path / name
    read = tifffile.imread(path) if path.suffix == ".tif" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read, inst_hw)


# ------------------------------------------------------------------ from top to bottom

CUTS = [(0, 1), (1, 200), (200, 200), (200, 517)]


def test_rows_make_the_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (517, 300, 3), np.uint8)
    with png_rows(tmp_path / "a.png", image.shape) as png:
        for start, end in CUTS:
            png.write(image[start:end])
        assert not (tmp_path / "a.png").exists()
    assert np.array_equal(read_image(tmp_path / "a.png"), image)


@pytest.mark.parametrize(("suffix", "most"), [(".png", 65535), (".tif", 200_000)])
def test_rows_make_the_map(tmp_path, suffix, most):
    inst_hw = np.random.default_rng(0).integers(0, most + 1, (517, 300), np.int32)
    path = tmp_path / f"a{suffix}"
    write_instance_rows(path, inst_hw.shape, (inst_hw[start:end] for start, end in CUTS))
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if suffix == ".png" else tifffile.imread(path)
    assert read.dtype == {".png": np.uint16, ".tif": np.uint32}[suffix]
    assert np.array_equal(read, inst_hw)


def test_missing_rows_leave_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match="The PNG has 5 rows, and 3 were written"),
        png_rows(tmp_path / "a.png", (5, 4, 3)) as png,
    ):
        png.write(np.zeros((3, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())
