import itertools
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ihc2he.errors import ConfigError, DataError
from ihc2he.metrics import fidelity as module
from ihc2he.metrics.fidelity import CARDS, PerImageMean, fidelity

every_metric = pytest.mark.parametrize("name", CARDS)


def numpy_images(x_bchw):
    return x_bchw.permute(0, 2, 3, 1).numpy()


def test_psnr_and_ssim_are_those_of_scikit_image(pair):
    found = fidelity(*pair, ["psnr", "ssim"])
    for i, (pred, target) in enumerate(zip(*map(numpy_images, pair), strict=True)):
        assert found["psnr"][i].item() == pytest.approx(peak_signal_noise_ratio(target, pred, data_range=1), abs=1e-4)
        # skimage with these options is the SSIM of Wang 2004, averaged over channels.
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = structural_similarity(pred, target, channel_axis=2, data_range=1, **gaussian)
        assert found["ssim"][i].item() == pytest.approx(expected, abs=1e-5)


def test_ms_ssim_is_near_that_of_torchmetrics(pair):
    # torchmetrics needs 176 px, and mirrors the border where ours takes the valid region.
    pred, target = (torch.nn.functional.interpolate(x, (192, 192)) for x in pair)
    expected = multiscale_structural_similarity_index_measure(pred, target, data_range=1.0, reduction="none")
    assert fidelity(pred, target, ["ms_ssim"])["ms_ssim"] == pytest.approx(expected, abs=5e-3)


def test_bci_variants_are_what_the_evaluator_computes(pair):
    # The evaluator reads two PNG files, rounded to uint8, and calls exactly these functions.
    pngs = [(x_bchw * 255).round().byte() for x_bchw in pair]
    found = fidelity(*pair, ["bci_psnr", "bci_ssim"])
    for i, (pred, target) in enumerate(zip(*map(numpy_images, pngs), strict=True)):
        assert found["bci_psnr"][i].item() == pytest.approx(peak_signal_noise_ratio(pred, target), abs=1e-4)
        expected = structural_similarity(pred, target, channel_axis=2, data_range=255)
        assert found["bci_ssim"][i].item() == pytest.approx(expected, abs=1e-6)


def test_bci_ssim_is_exact_where_float32_variances_would_drown():
    rng = np.random.default_rng(0)
    pred, target = (rng.integers(250, 256, (32, 40, 3), dtype=np.uint8) for _ in range(2))
    expected = structural_similarity(pred, target, channel_axis=2, data_range=255)
    tensors = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in (pred, target))
    assert fidelity(*tensors, ["bci_ssim"])["bci_ssim"].item() == pytest.approx(expected, abs=1e-6)


@every_metric
def test_equal_images_have_the_best_value(name, pair):
    best = {"psnr": 100, "bci_psnr": math.inf, "ms_gmsd": 0, "mdsi": 0}.get(name, 1)
    assert fidelity(pair[0], pair[0], [name])[name].tolist() == pytest.approx([best, best], abs=1e-5)


@every_metric
def test_noise_moves_a_metric_away_from_where_its_card_points(name, pair):
    image_bchw = pair[0]
    noise_bchw = torch.randn(image_bchw.shape, generator=torch.Generator().manual_seed(1))
    levels = (0.01, 0.05, 0.15, 0.4)
    scores = [fidelity((image_bchw + s * noise_bchw).clamp(0, 1), image_bchw, [name])[name] for s in levels]
    sign = -1 if CARDS[name].higher_is_better else 1
    for less, more in itertools.pairwise(scores):
        assert (sign * (more - less) > 0).all()


@pytest.mark.parametrize("name", sorted(set(CARDS) - {"mdsi"}))  # MDSI weighs the reference's gradients on purpose
def test_metrics_are_symmetric(name, pair):
    assert fidelity(*pair, [name])[name] == pytest.approx(fidelity(*pair[::-1], [name])[name], abs=1e-5)


@every_metric
def test_a_batch_is_its_images_one_by_one(name, pair):
    singles = [fidelity(pair[0][i : i + 1], pair[1][i : i + 1], [name])[name] for i in range(2)]
    assert fidelity(*pair, [name])[name] == pytest.approx(torch.cat(singles), abs=1e-5)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_and_autocast_compute_in_float32(name, dtype, pair):
    pred, target = (x_bchw.to(dtype) for x_bchw in pair)
    with torch.autocast("cpu", torch.bfloat16):
        found = fidelity(pred, target, [name])[name]
    assert found.dtype == torch.float32
    assert found.tolist() == fidelity(pred.float(), target.float(), [name])[name].tolist()


@every_metric
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_images_have_a_value(name, level, pair):
    flat_bchw = torch.full_like(pair[0], level)
    assert not fidelity(flat_bchw, pair[0], [name])[name].isnan().any()
    assert not fidelity(pair[0], flat_bchw, [name])[name].isnan().any()
    equal = fidelity(flat_bchw, flat_bchw, [name])[name]
    assert equal.tolist() == pytest.approx(fidelity(pair[0], pair[0], [name])[name].tolist(), abs=1e-5)


@every_metric
def test_the_smallest_size_on_the_card_is_true(name, caplog):
    module._say_too_small.cache_clear()
    size = CARDS[name].min_size
    image_bchw = torch.rand(2, 3, size, size + 8)
    assert not fidelity(image_bchw, image_bchw * 0.9, [name])[name].isnan().any()
    if size == 1:
        return
    small = image_bchw[:, :, :-1]
    with caplog.at_level(logging.WARNING):
        assert fidelity(small, small, [name])[name].isnan().all()
        fidelity(small, small, [name])
    assert caplog.messages == [
        f"{CARDS[name].title} needs tiles of at least {size} px, found {size - 1} px: reported as NaN."
    ]


IMAGE = torch.full((1, 3, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("pred", "target", "names", "error", "message"),
    [
        (IMAGE, IMAGE, ["psnrr"], ConfigError, "'psnrr' is not a fidelity metric. Did you mean 'psnr'"),
        (IMAGE, IMAGE[..., :7], ["psnr"], ValueError, r"the same shape, found \(1, 3, 8, 8\) and \(1, 3, 8, 7\)"),
        (IMAGE[0], IMAGE[0], ["psnr"], ValueError, r"shape \(N, 3, H, W\), found torch.float32 of \(3, 8, 8\)"),
        (IMAGE[:, :1], IMAGE, ["psnr"], ValueError, r"pred_bchw must be .* found torch.float32 of \(1, 1, 8, 8\)"),
        (IMAGE.byte(), IMAGE, ["psnr"], ValueError, "must be a float tensor .* found torch.uint8"),
        (IMAGE[:0], IMAGE[:0], ["psnr"], ValueError, r"found torch.float32 of \(0, 3, 8, 8\)"),
        (IMAGE, IMAGE * 2 - 2, ["psnr"], ValueError, r"target_bchw must lie in \[0, 1\], found -1 to -1"),
        (IMAGE * torch.nan, IMAGE, ["psnr"], ValueError, "pred_bchw must lie .* found nan to nan"),
    ],
)
def test_bad_input_is_named(pred, target, names, error, message):
    with pytest.raises(error, match=message):
        fidelity(pred, target, names)


def test_rounding_of_half_precision_at_the_edge_is_forgiven():
    assert fidelity(IMAGE + 0.5005, IMAGE + 0.5, ["psnr"])["psnr"].item() == 100


def values_of(mean):
    return {key: value.item() for key, value in mean.compute().items()}


def test_means_over_all_images_and_over_groups():
    mean = PerImageMean()
    mean.update({"psnr": torch.tensor([20.0, 30.0]), "ssim": torch.tensor([0.5, 0.75])}, ["3+", "0"])
    mean.update({"psnr": torch.tensor([40.0]), "ssim": torch.tensor([0.25])}, ["3+"])
    assert values_of(mean) == {
        "psnr": 30,
        "psnr/0": 30,
        "psnr/3+": 30,
        "ssim": 0.5,
        "ssim/0": 0.75,
        "ssim/3+": 0.375,
    }
    assert mean.counts == {"psnr": 3, "psnr/0": 1, "psnr/3+": 2, "ssim": 3, "ssim/0": 1, "ssim/3+": 2}


def test_images_without_a_group_enter_the_overall_mean_only():
    mean = PerImageMean()
    mean.update({"psnr": torch.tensor([20.0, 30.0])}, ["", ""])
    assert values_of(mean) == {"psnr": 25}


def test_nan_does_not_enter_a_mean_and_is_not_counted():
    mean = PerImageMean()
    mean.update({"psnr": torch.tensor([20.0, torch.nan]), "ssim": torch.tensor([torch.nan] * 2)}, ["a", "b"])
    found = values_of(mean)
    assert (found["psnr"], found["psnr/a"], mean.counts["psnr"], mean.counts["psnr/b"]) == (20, 20, 1, 0)
    assert math.isnan(found["psnr/b"])
    assert math.isnan(found["ssim"])
    assert mean.counts["ssim"] == 0


def test_an_infinite_value_is_not_hidden():
    mean = PerImageMean()
    mean.update({"bci_psnr": torch.tensor([20.0, torch.inf])}, ["", ""])
    assert values_of(mean) == {"bci_psnr": math.inf}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.sampled_from(["", "1+", "süd"])), min_size=1), st.data())
def test_batches_do_not_matter(images, data):
    cut = data.draw(st.integers(0, len(images)))
    mean = PerImageMean()
    for batch in (images[:cut], images[cut:]):
        mean.update({"m": torch.tensor([value for value, _ in batch])}, [group for _, group in batch])
    found = values_of(mean)
    for group in {group for _, group in images}:
        key = f"m/{group}" if group else "m"
        expected = np.mean([value for value, g in images if group in ("", g)])
        assert found[key] == pytest.approx(expected, abs=1e-4)


def test_it_behaves_like_a_metric():
    mean = PerImageMean()
    assert mean.compute() == {}
    mean.update({"psnr": torch.tensor([20.0])}, ["3+"])
    assert values_of(pickle.loads(pickle.dumps(mean))) == {"psnr": 20, "psnr/3+": 20}
    assert mean.state_dict() == {}
    mean.reset()
    assert mean.compute() == {}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"'psnr' has shape \(2,\), expected one value for each of 1 groups"):
        PerImageMean().update({"psnr": torch.zeros(2)}, ["3+"])


def test_a_key_that_would_be_cut_is_refused():
    with pytest.raises(DataError, match="have 524 bytes together, at most 511 are possible"):
        PerImageMean().update({"psnr": torch.zeros(1)}, ["g" * 520])


@pytest.mark.parametrize("length", [60, 255])
def test_groups_may_be_named_as_long_as_a_file(length):
    mean, group = PerImageMean(), "\N{LATIN SMALL LETTER O WITH DIAERESIS}" * (length // 2)
    mean.update({"psnr": torch.tensor([20.0, 22.0])}, [group, ""])
    assert values_of(mean) == {"psnr": 21, f"psnr/{group}": 20}


def test_two_ranks_equal_one(on_two_ranks):
    # Rank 1 has fewer images and another group, then in the second round nothing at all.
    uneven, idle = on_two_ranks("""
from ihc2he.metrics.fidelity import PerImageMean
values, groups = [1.5, 2.25, torch.nan, 7.0], ["a", "", "a", "b"]
def compute(shares):
    mean = PerImageMean()
    for i in shares[rank]:
        mean.update({"m": torch.tensor(values[i : i + 1])}, groups[i : i + 1])
    means = {key: value.item() for key, value in mean.compute().items()}
    return means, mean.counts, len(mean.values)
result = [compute(([0, 1, 2], [3])), compute(([0, 1, 2, 3], []))]
""")
    for shares in (*uneven, *idle):
        means, counts, _ = shares
        assert means == pytest.approx({"m": 10.75 / 3, "m/a": 1.5, "m/b": 7})
        assert counts == {"m": 3, "m/a": 1, "m/b": 1}
    assert [own for _, _, own in uneven] == [3, 4]  # each rank keeps its own share afterwards
