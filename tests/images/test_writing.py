"""Encoded images and label maps, as other programs read them."""

import cv2
import numpy as np
import pytest
import tifffile

from ihc2he.images.decoding import samples_of
from ihc2he.images.writing import as_jpeg, write_instances, write_png


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
