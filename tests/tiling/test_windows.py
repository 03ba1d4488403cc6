from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ihc2he.tiling.windows import cores, divide, hann_weight, owned, predict_local, predict_tiled, window_starts

sizes = st.tuples(st.integers(1, 400), st.integers(2, 90), st.integers(0, 60)).filter(lambda s: s[2] < s[1])


@given(sizes)
def test_windows_cover_the_axis_with_the_overlap_asked_for(size):
    length, window, overlap = size
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - window, 0)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= window - overlap).all()
    least = 1 + -(-max(length - window, 0) // (window - overlap))
    assert len(starts) == least


@given(sizes)
def test_each_place_has_one_owner_whose_window_shows_it(size):
    length, window, overlap = size
    starts = window_starts(length, window, overlap)
    parts = cores(starts, window, length)
    owners = np.concatenate([np.arange(low, high) for low, high in parts])
    assert np.array_equal(owners, np.arange(length))
    assert all(start <= low and high <= start + window for start, (low, high) in zip(starts, parts, strict=True))


def test_every_point_is_kept_once():
    points = np.random.default_rng(0).uniform(0, 300, (500, 2))
    parts = cores(window_starts(300, 128, 32), 128, 300)
    assert (sum(owned(points, x, y).astype(int) for x in parts for y in parts) == 1).all()


def test_a_window_cannot_overlap_itself():
    with pytest.raises(ValueError, match="overlap=64: expected 0 or more and less than the window of 64 px"):
        window_starts(100, 64, 64)


def test_the_weight_falls_towards_the_border_but_not_to_zero():
    weight = hann_weight(64)
    assert (np.diff(weight[:32]) > 0).all()
    assert weight.min() > 0
    assert np.allclose(weight, weight[::-1])


@pytest.mark.parametrize("size", [(20, 30), (32, 32), (33, 80), (1, 100), (200, 5)])
@pytest.mark.parametrize("overlap", [0, 8, 31])
def test_a_pixelwise_function_gives_the_same_in_windows(size, overlap):
    x = torch.rand(2, 3, *size)
    done = predict_tiled(lambda w: torch.cat([w.square(), w[:, :1]], 1), x, 32, overlap, batch_size=3)
    assert done.shape == (2, 4, *size)
    torch.testing.assert_close(done[:, :3], x.square())


@pytest.mark.parametrize("size", [(70, 50), (10, 20), (3, 60)])
def test_a_margin_is_filled_by_mirroring(size):
    """A 5x5 mean over valid windows equals that over the whole image, mirrored around as NumPy does it."""
    x = torch.rand(1, 1, *size)
    seen = []

    def valid_mean(window):
        seen.append(tuple(window.shape[-2:]))
        return torch.nn.functional.avg_pool2d(window, 5, stride=1)

    done = predict_tiled(valid_mean, x, 32, 8, margin=2)
    mirrored = torch.from_numpy(np.pad(x[0, 0].numpy(), 2, mode="reflect"))[None, None]
    expected = torch.nn.functional.avg_pool2d(mirrored, 5, stride=1)
    torch.testing.assert_close(done, expected)
    assert set(seen) == {(32, 32)}


def test_an_image_that_fits_is_seen_once_and_whole():
    seen = []
    predict_tiled(lambda w: seen.append(tuple(w.shape)) or w, torch.rand(3, 3, 40, 64), 64, 16)
    assert seen == [(3, 3, 40, 64)]


def test_blending_prefers_the_middle_of_a_window():
    """Where windows disagree, the one whose middle is nearer says more."""
    calls = iter(range(100))
    done = predict_tiled(lambda w: torch.full_like(w, next(calls)), torch.zeros(1, 1, 8, 48), 32, 16, batch_size=1)
    row = done[0, 0, 0]
    assert row[0] == 0
    assert row[-1] == 1
    assert (row.diff() >= 0).all()
    assert row[23] < 0.5 < row[24]


@pytest.mark.parametrize("size", [(64, 64), (65, 150), (10, 200), (131, 131)])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_local_function_gives_the_whole_from_windows(size, stride):
    """Convolutions with reflection, on a coarser grid for a stride, whose windows end where the image does."""
    torch.manual_seed(0)
    x, weight = torch.rand(2, 3, *size), torch.randn(3, 1, 3, 3)
    seen = []

    def local(window):
        seen.append(max(window.shape[-2:]))
        h, w = window.shape[-2:]
        done = torch.nn.functional.pad(window, (0, -w % stride, 0, -h % stride), mode="reflect")
        coarse = torch.nn.functional.avg_pool2d(done, stride)
        coarse = torch.nn.functional.pad(coarse, (1, 1, 1, 1), mode="reflect")
        coarse = torch.nn.functional.conv2d(coarse, weight, groups=3)
        return done[..., :h, :w] + torch.nn.functional.interpolate(coarse, scale_factor=stride)[..., :h, :w]

    whole = local(x)
    del seen[:]
    torch.testing.assert_close(predict_local(local, x, 64, 2 * stride, stride), whole, atol=1e-6, rtol=0)
    assert max(seen) <= 64
    if max(size) <= 64:
        assert len(seen) == 1
    else:  # the halo is needed
        assert (predict_local(local, x, 64, 0, stride) - whole).abs().max() > 0.01


@given(st.integers(1, 300), st.integers(0, 20), st.sampled_from([1, 2, 8]), st.integers(0, 60))
def test_windows_of_a_local_function_fit_and_cover_everything(length, halo, stride, more):
    window = 2 * -(-halo // stride) * stride + stride + more
    seen = []
    x = torch.arange(float(length)).view(1, 1, 1, length)
    assert torch.equal(predict_local(lambda w: seen.append(w) or w, x, window, halo, stride), x)
    assert all(w.shape[-1] <= window and w[0, 0, 0, 0] % stride == 0 for w in seen)


def test_a_window_without_room_between_its_halos_is_refused():
    with pytest.raises(ValueError, match="window=64: expected at least 72 px, for a halo of 32 px on each side"):
        predict_local(torch.neg, torch.rand(1, 1, 80, 8), 64, 30, 8)


@given(st.integers(1, 500), st.integers(0, 30), st.sampled_from([1, 4, 16]), st.integers(0, 60))
def test_blocks_begin_at_multiples_of_the_step_and_are_of_one_size(length, overlap, step, more):
    blocks = divide(length, 1, 2 * (overlap + step) + more, overlap, step)
    rows = [block.rows for block in blocks]
    assert rows[0].start == 0
    assert rows[-1].stop == length
    assert all(own.start % step == 0 for own in rows)
    assert len({own.stop - own.start for own in rows}) == 1
    for one, two in pairwise(blocks):
        assert one.rows.stop - two.rows.start >= overlap
        assert one.rows.stop - one.core_y[1] >= overlap // 2
        assert two.core_y[0] - two.rows.start >= overlap // 2
