"""An image at another pixel size has the same pixels whatever region is read."""

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.errors import DataError
from ihc2he.images.rescaled import Rescaled
from ihc2he.images.source import ArraySource
from ihc2he.tiling.resampling import resample

IMAGE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8), (0, 0), 2)


class Pyramid(ArraySource):
    """An image with levels, which notes from which one is read."""

    levels = (1.0, 2.0, 4.0)

    def level_shape(self, level):
        step = int(self.levels[level])
        return self.shape[0] // step, self.shape[1] // step

    def read(self, rows, columns, level=0):
        self.last = level
        height, width = self.level_shape(level)
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        return cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)[rows, columns]


@pytest.mark.parametrize("mpp", [0.1, 0.2, 0.25, 0.31, 0.5, 0.7, 1.3])
def test_the_whole_is_the_resampled_image(mpp):
    seen = Rescaled(ArraySource(IMAGE, 0.25), mpp).whole()
    expected = resample(IMAGE, 0.25, mpp)
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).max() <= 1


@given(st.floats(0.1, 2), st.data())
@settings(max_examples=40, deadline=None)
def test_regions_have_no_seams(mpp, data):
    source = Rescaled(Pyramid(IMAGE, 0.25), mpp)
    whole = source.whole()
    parts = []
    for side in source.shape:
        start = data.draw(st.integers(0, side - 1))
        parts.append(slice(start, data.draw(st.integers(start + 1, side))))
    assert np.array_equal(source.read(*parts), whole[tuple(parts)])


@pytest.mark.parametrize(("mpp", "level"), [(0.1, 0), (0.25, 0), (0.49, 0), (0.499, 1), (0.5, 1), (0.99, 1), (5, 2)])
def test_the_smallest_level_that_is_fine_enough_is_read(mpp, level):
    pyramid = Pyramid(IMAGE, 0.25)
    seen = Rescaled(pyramid, mpp).whole()
    assert pyramid.last == level
    assert np.abs(seen.astype(int) - resample(IMAGE, 0.25, mpp)).mean() < 6


def test_it_is_pickled_and_shows_the_source(tmp_path):
    pyramid = Pyramid(IMAGE, 0.25)
    source = pickle.loads(pickle.dumps(Rescaled(pyramid, 0.5)))
    assert np.array_equal(source.whole(), Rescaled(pyramid, 0.5).whole())
    assert np.array_equal(source.thumbnail(20), pyramid.thumbnail(20))
    assert source.thumbnail(400).shape[:2] == source.shape


def test_the_pixel_size_is_needed():
    with pytest.raises(DataError, match=r"a\.svs: does not state its pixel size. Pass it as data\.mpp, in um/px"):
        Rescaled(ArraySource(IMAGE, name="a.svs"), 0.5)
