import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from ihc2he.errors import ConfigError
from ihc2he.losses.adversarial import MODES, check_mode, discriminator_loss, generator_loss, gradient_penalty

maps = arrays("float32", (2, 1, 2, 3), elements=st.floats(-5, 5, width=32)).map(torch.from_numpy)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


GENERATOR = {
    "lsgan": lambda fake: (fake - 1) ** 2,
    "bce": lambda fake: -math.log(sigmoid(fake)),
    "hinge": lambda fake: -fake,
    "wgan_gp": lambda fake: -fake,
}
REAL = {
    "lsgan": lambda real: (real - 1) ** 2,
    "bce": lambda real: -math.log(sigmoid(real)),
    "hinge": lambda real: max(0.0, 1 - real),
    "wgan_gp": lambda real: -real,
}
FAKE = {
    "lsgan": lambda fake: fake**2,
    "bce": lambda fake: -math.log(1 - sigmoid(fake)),
    "hinge": lambda fake: max(0.0, 1 + fake),
    "wgan_gp": lambda fake: fake,
}
every_mode = pytest.mark.parametrize("mode", MODES)


def mean(function, logits):
    values = logits.flatten().tolist()
    return sum(map(function, values)) / len(values)


@every_mode
@given(real=maps, fake=maps)
def test_losses_are_their_formulas(mode, real, fake):
    assert generator_loss(fake, mode).item() == pytest.approx(mean(GENERATOR[mode], fake), abs=1e-4)
    expected = 0.5 * (mean(REAL[mode], real) + mean(FAKE[mode], fake))
    assert discriminator_loss(real, fake, mode).item() == pytest.approx(expected, abs=1e-4)


@every_mode
def test_descending_pushes_logits_where_they_belong(mode):
    real, fake = (torch.full((1, 1, 2, 2), 0.5, requires_grad=True) for _ in range(2))
    discriminator_loss(real, fake, mode).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    generator_loss(fake, mode).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize(("mode", "logit"), [("lsgan", 0.9), ("bce", math.log(0.9 / 0.1))])
def test_smoothing_moves_the_target_of_real_images_only(mode, logit):
    real, fake = torch.full((1, 1, 2, 2), logit, requires_grad=True), torch.ones(1, 1, 2, 2, requires_grad=True)
    discriminator_loss(real, fake, mode, smoothing=0.1).backward()
    assert real.grad.abs().max() < 1e-7
    smoothed = fake.grad.clone()
    fake.grad = None
    discriminator_loss(real, fake, mode).backward()
    assert torch.equal(fake.grad, smoothed)


@every_mode
def test_half_precision_logits_give_float32_losses(mode):
    logits = torch.full((1, 1, 2, 2), 0.1, dtype=torch.bfloat16)
    assert generator_loss(logits, mode).dtype == torch.float32
    assert discriminator_loss(logits, logits, mode).dtype == torch.float32


def test_an_unknown_mode_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no adversarial loss 'wgan'\. Did you mean 'wgan_gp'\?"):
        check_mode("wgan")


def test_gradient_penalty_of_a_linear_discriminator():
    # D(x) = w.x has the gradient w everywhere, so the penalty is (|w| - 1)^2 wherever the points lie.
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    real, fake = torch.rand(2, 3, 3, 2, 2)
    assert gradient_penalty(net, real, fake).item() == pytest.approx((net[1].weight.norm().item() - 1) ** 2, rel=1e-5)


def test_gradient_penalty_is_the_formula_at_random_points():
    def net(x_bchw):
        return (x_bchw**3).sum((1, 2, 3), keepdim=True)  # gradient: 3 x^2

    real, fake = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mix = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    expected = ((3 * (mix * real + (1 - mix) * fake) ** 2).flatten(1).norm(dim=1) - 1).square().mean()
    fake.requires_grad_()
    found = gradient_penalty(net, real, fake, torch.Generator().manual_seed(7))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert fake.grad is None


def test_gradient_penalty_trains_the_discriminator():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False))
    gradient_penalty(net, torch.rand(2, 3, 2, 2), torch.rand(2, 3, 2, 2)).backward()
    weight = net[1].weight
    norm = weight.norm().detach()
    assert weight.grad == pytest.approx(2 * (norm - 1) * weight.detach() / norm, abs=1e-6)  # of (|w| - 1)^2
