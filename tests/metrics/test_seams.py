"""The measure of seams, on images whose seams are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.metrics.seams import Seams


def ratio(image, rows, columns, height=1000):
    seams = Seams(rows, columns)
    for top in range(0, len(image), height):
        seams.add(image[top : top + height])
    return seams.ratio


def noise(seed, shape=(96, 128, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), row=st.integers(1, 95), column=st.integers(1, 127))
def test_white_noise_has_no_seams(seed, row, column):
    assert ratio(noise(seed), [row], [column]) == pytest.approx(1, abs=0.2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), offset=st.integers(40, 120))
def test_a_planted_offset_is_found_where_it_is(seed, offset):
    image = noise(seed).astype(float) / 4
    image[48:] += offset
    assert ratio(image, [48], []) > 1 + offset / 100
    assert ratio(image, [20], [64]) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("height", [1, 7, 48, 96])
def test_strips_of_any_height_give_the_same(height):
    image = noise(0)
    assert ratio(image, [30, 48], [64], height) == pytest.approx(ratio(image, [30, 48], [64]))


def test_the_formula_written_out():
    image = np.zeros((4, 40, 1))
    image[:, :, 0] = np.cumsum(np.arange(40))  # the step at column k is k
    beside = np.r_[4:20, 21:37].mean()
    assert ratio(image, [], [20]) == pytest.approx(20 / beside)


def test_rows_and_columns_count_alike():
    image = noise(1, (64, 64, 3)).astype(float)
    image[32:] += 100
    assert ratio(image, [32], []) == pytest.approx(ratio(image.swapaxes(0, 1), [], [32]))


def test_without_borders_or_pixels_there_is_no_ratio():
    assert math.isnan(ratio(noise(0), [], []))
    assert math.isnan(Seams([1], [1]).ratio)


def test_only_steps_between_what_was_made_count():
    image, made = noise(2).astype(float), np.ones((96, 128), bool)
    made[:48, 64:] = made[60:, :30] = False
    image[~made] = 900
    seams = Seams([48], [64])
    for top in range(0, 96, 20):
        seams.add(image[top : top + 20], made[top : top + 20])
    assert seams.ratio == pytest.approx(1, abs=0.15)
    assert ratio(image, [48], [64]) > 2


def test_steps_that_repeat_are_compared_with_their_like():
    image = noise(3, (128, 128, 3)).astype(float) / 16
    image += 40 * (np.arange(128) // 4 % 2)[:, None, None]  # a step at each fourth row
    plain, alike = Seams([64], []), Seams([64], [], period=4)
    for seams in (plain, alike):
        seams.add(image)
    assert plain.ratio > 2
    assert alike.ratio == pytest.approx(1, abs=0.1)
