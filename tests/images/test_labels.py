"""Label maps: read as written, refused where they are none, numbered anew."""

import cv2
import numpy as np
import pytest
import tifffile

from ihc2he.errors import DataError
from ihc2he.images.labels import number_consecutively, read_labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_are_read_as_they_were_written(tmp_path, dtype):
    expected = np.random.default_rng(0).integers(0, min(np.iinfo(dtype).max, 2**24 - 1), (7, 9)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", expected)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), expected)
    if dtype != np.int32:
        cv2.imwrite(str(tmp_path / "a.png"), expected)
        np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.full((4, 4), 2**24, np.int32), "found values from 16777216 to 16777216"),
        (np.full((4, 4), -1, np.int16), "found values from -1 to -1"),
        (np.zeros((4, 4), np.float32), "found float32 values"),
    ],
)
def test_other_values_are_no_labels(tmp_path, array, found):
    tifffile.imwrite(tmp_path / "a.tif", array)
    with pytest.raises(DataError, match=rf"a\.tif: {found}; expected one channel of whole numbers from 0 to 16777215"):
        read_labels(tmp_path / "a.tif")


def test_numbering_a_map_without_background():
    assert number_consecutively(np.array([[9, 4], [4, 9]])).tolist() == [[2, 1], [1, 2]]
