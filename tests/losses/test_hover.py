"""Losses against the reference's formulas, written out from their description."""

import pytest
import torch

from ihc2he.errors import ConfigError
from ihc2he.losses import hover


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return {
        "np": torch.randn(2, 2, 12, 14, generator=generator),
        "hv": torch.randn(2, 2, 12, 14, generator=generator),
        "tp": torch.randn(2, 4, 12, 14, generator=generator),
    }


@pytest.fixture
def targets():
    generator = torch.Generator().manual_seed(1)
    inst = torch.randint(0, 3, (2, 12, 14), generator=generator).int()
    kinds = torch.randint(1, 4, (2, 12, 14), generator=generator) * (inst > 0)
    hv = (torch.rand(2, 2, 12, 14, generator=generator) * 2 - 1) * (inst > 0)[:, None]
    return {"inst": inst, "type": kinds, "hv": hv}


def reference_cross_entropy(probability, onehot):
    probability = (probability / probability.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return -(onehot * probability.log()).sum(1).mean()


def reference_dice(probability, onehot):
    total = 0.0
    for c in range(onehot.shape[1]):
        p, t = probability[:, c], onehot[:, c]
        total += 1 - (2 * (p * t).sum() + 1e-3) / (p.sum() + t.sum() + 1e-3)
    return total


def reference_msge(predicted, true, focus, cross):
    """Return the gradient loss by loops: each map is differentiated, then compared inside nuclei."""
    along_x, along_y = torch.zeros(5, 5), torch.zeros(5, 5)
    for i, dy in enumerate(range(-2, 3)):
        for j, dx in enumerate(range(-2, 3)):
            along_x[i, j] = dx / (dx**2 + dy**2 + 1e-15)
            along_y[i, j] = dy / (dx**2 + dy**2 + 1e-15)
    kernels = (along_y, along_x) if cross else (along_x, along_y)
    total = 0.0
    for channel, kernel in enumerate(kernels):
        gradients = [torch.nn.functional.conv2d(m[:, channel, None], kernel[None, None], padding=2)[:, 0]
                     for m in (predicted, true)]  # fmt: skip
        total += (focus * (gradients[0] - gradients[1]) ** 2).sum()
    return total / (2 * focus.sum() + 1e-8)


def onehot(labels, n):
    return torch.stack([labels == c for c in range(n)], 1).float()


@pytest.mark.parametrize("axis", ["aligned", "cross"])
def test_every_term_is_the_reference_s(maps, targets, axis):
    nucleus = (targets["inst"] > 0).long()
    np_p, tp_p = maps["np"].softmax(1), maps["tp"].softmax(1)
    expected = {
        "np_ce": reference_cross_entropy(np_p, onehot(nucleus, 2)),
        "np_dice": reference_dice(np_p, onehot(nucleus, 2)),
        "hv_mse": 2 * (maps["hv"] - targets["hv"]).square().mean(),
        "hv_msge": reference_msge(maps["hv"], targets["hv"], nucleus.float(), axis == "cross"),
        "nc_ce": reference_cross_entropy(tp_p, onehot(targets["type"], 4)),
        "nc_dice": 0.5 * reference_dice(tp_p, onehot(targets["type"], 4)),
    }
    weights = {"np_ce": 1, "np_dice": 1, "hv_mse": 2, "hv_msge": 1, "nc_ce": 1, "nc_dice": 0.5, "np_tversky": 0}
    found = hover.hover_losses(maps, targets, weights, axis)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_focal_tversky_is_the_paper_s(maps, targets):
    p, t = maps["tp"].softmax(1), onehot(targets["type"], 4)
    expected = 0.0
    for c in range(4):
        both = (p[:, c] * t[:, c]).sum()
        missed, wrong = ((1 - p[:, c]) * t[:, c]).sum(), (p[:, c] * (1 - t[:, c])).sum()
        expected += (1 - (both + 1e-3) / (both + 0.7 * missed + 0.3 * wrong + 1e-3)) ** 0.75
    torch.testing.assert_close(hover.focal_tversky_loss(maps["tp"], targets["type"]), expected)


def test_a_perfect_prediction_costs_nothing_and_has_finite_gradients(targets):
    nucleus = (targets["inst"] > 0).long()
    maps = {
        "np": (40 * onehot(nucleus, 2)).requires_grad_(),
        "tp": (40 * onehot(targets["type"], 4)).requires_grad_(),
        "hv": targets["hv"].clone().requires_grad_(),
    }
    losses = hover.hover_losses(maps, targets, dict.fromkeys(hover.TERMS, 1.0))
    assert losses.keys() == set(hover.TERMS)
    assert all(loss.item() < 1e-4 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(bool(m.grad.isfinite().all()) for m in maps.values())


def test_tiles_without_nuclei_give_finite_losses(maps, targets):
    empty = {key: torch.zeros_like(value) for key, value in targets.items()}
    losses = hover.hover_losses(maps, empty, dict.fromkeys(hover.TERMS, 1.0))
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert losses["hv_msge"] == 0


def test_aligned_gradients_look_along_their_own_axis():
    ramp_x, ramp_y = torch.arange(20.0).expand(1, 20, 20), torch.arange(20.0).view(1, 20, 1).expand(1, 20, 20)
    inside = torch.zeros(1, 20, 20)
    inside[:, 4:-4, 4:-4] = 1
    zero = torch.zeros(1, 2, 20, 20)
    right, wrong = torch.stack([ramp_x, ramp_y], 1), torch.stack([ramp_y, ramp_x], 1)
    assert hover.msge_loss(right, zero, inside, "aligned") > 1
    assert hover.msge_loss(wrong, zero, inside, "aligned") < 1e-6
    assert hover.msge_loss(wrong, zero, inside, "cross") > 1


def test_terms_of_types_are_left_out_where_there_are_none(maps, targets):
    del targets["type"]
    assert hover.hover_losses(maps, targets, {"np_ce": 1, "nc_ce": 1}).keys() == {"np_ce"}


def test_losses_of_half_precision_maps_are_float32(maps, targets):
    half = {name: map_bchw.bfloat16() for name, map_bchw in maps.items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = hover.hover_losses(half, targets, dict.fromkeys(hover.TERMS, 1.0))
    exact = hover.hover_losses({k: m.float() for k, m in half.items()}, targets, dict.fromkeys(hover.TERMS, 1.0))
    assert all(losses[name].dtype == torch.float32 for name in losses)
    assert losses == exact


def test_unknown_names_end_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'hv_msge'"):
        hover.check_terms(["hv_msg"])
    with pytest.raises(ConfigError, match="Did you mean 'aligned'"):
        hover.check_msge_axis("alined")
    with pytest.raises(ConfigError, match="Did you mean 'cross'"):
        hover.msge_loss(*(torch.zeros(1, 2, 8, 8),) * 2, torch.zeros(1, 8, 8), "crossed")


@pytest.mark.parametrize("term", ["nc_ce", "nc_dice", "nc_tversky"])
def test_nuclei_without_a_type_do_not_count(maps, targets, term):
    unknown = targets["inst"] == 2
    targets["type"][unknown] = 0
    (loss,) = hover.hover_losses(maps, targets, {term: 1.0}).values()
    maps["tp"] = torch.where(unknown[:, None], 100 * torch.randn_like(maps["tp"]), maps["tp"])
    (same,) = hover.hover_losses(maps, targets, {term: 1.0}).values()
    assert torch.equal(loss, same)
    targets["type"][~unknown] = targets["type"][~unknown].roll(1)
    (other,) = hover.hover_losses(maps, targets, {term: 1.0}).values()
    assert not torch.equal(loss, other)


@pytest.mark.parametrize("term", ["nc_ce", "nc_dice", "nc_tversky"])
def test_a_batch_without_any_known_type_has_no_gradient_of_types(maps, targets, term):
    targets["inst"], targets["type"] = targets["inst"] * 0 + 1, targets["type"] * 0
    maps["tp"].requires_grad_()
    (loss,) = hover.hover_losses(maps, targets, {term: 1.0}).values()
    loss.backward()
    assert bool(loss.isfinite())
    assert maps["tp"].grad.abs().max() == 0
