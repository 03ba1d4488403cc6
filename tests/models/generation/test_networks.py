"""The networks: sizes of the published ones, written out; what they make and say."""

import itertools

import pytest
import torch
from torch import nn

from ihc2he.build import build
from ihc2he.errors import ConfigError
from ihc2he.models.generation.blocks import LevelBatchNorm, Verdict

NAMES = ("dcgan", "acgan", "wgan_gp", "sngan")


def conv(c_in, c_out, k, bias=True):
    return c_in * c_out * k * k + bias * c_out


def linear(c_in, c_out):
    return c_in * c_out + c_out


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture
def built(published):
    """Return `built(name, size)`: both networks at their published widths."""

    def make(name, size):
        settings = published[name]
        common = {"n_classes": 4, "size": size}
        node = {**settings["generator"], **common, "latent_size": settings["latent_size"]}
        with torch.device("meta"):  # the numbers of weights, without the weights
            judge = {**settings["discriminator"], **common, "spectral_norm": False}
            return build(node, nn.Module), build(judge, nn.Module)

    return make


def test_dcgan_is_the_reference_s_and_its_labels(built):
    """PyTorch's example, which is the authors' Torch code, has 3,576,704 and 2,765,568 parameters at 64 px."""
    generator, discriminator = built("dcgan", 64)
    assert parameters(generator) == 3_576_704 + conv(4, 512, 4, bias=False)
    assert parameters(discriminator) == 2_765_568 + conv(4, 64, 4, bias=False)
    more = built("dcgan", 128)
    layer = conv(512, 512, 4, bias=False) + 2 * 512  # with its normalisation
    assert [parameters(a) - parameters(b) for a, b in zip(more, (generator, discriminator), strict=True)] == [layer] * 2


@pytest.mark.parametrize("size", [64, 128])
def test_acgan_is_the_paper_s_in_size(built, size):
    generator, discriminator = built("acgan", size)
    widths = [384, 192, 96, 48, 24][: {64: 4, 128: 5}[size]]
    expected = linear(104, 16 * 384)
    for c_in, c_out in zip(widths, [*widths[1:], 3], strict=True):
        expected += conv(c_in, c_out, 5) + (2 * c_out if c_out != 3 else 0)
    assert parameters(generator) == expected
    channels = [3, 16, 32, 64, 128, 256, 512]
    expected = sum(conv(a, b, 3, bias=False) for a, b in itertools.pairwise(channels))
    expected += sum(2 * c for c in channels[2:]) + linear(512 * (size // 8) ** 2, 1 + 4)
    assert parameters(discriminator) == expected


def block(c_in, c_out, hidden, norms):
    return conv(c_in, hidden, 3) + conv(hidden, c_out, 3) + conv(c_in, c_out, 1) + norms


@pytest.mark.parametrize("size", [64, 128])
def test_wgan_gp_is_the_authors_in_size(built, size):
    generator, critic = built("wgan_gp", size)
    first = [512, 512] if size == 64 else [512, 512, 512]
    widths = [*first, 256, 128, 64]
    pairs = list(itertools.pairwise(widths))
    expected = linear(132, 16 * 512) + sum(block(a, b, b, 2 * (a + b)) for a, b in pairs)
    assert parameters(generator) == expected + 2 * 64 + conv(64, 3, 3)
    expected = conv(7, 64, 3) + sum(block(b, a, b, 4 * b) for a, b in pairs) + linear(16 * 512, 1)
    assert parameters(critic) == expected


@pytest.mark.parametrize("size", [64, 128])
def test_sngan_is_the_authors_in_size(built, size):
    generator, discriminator = built("sngan", size)
    widths = [1024, 512, 256, 128, 64] if size == 64 else [1024, 1024, 512, 256, 128, 64]
    pairs = list(itertools.pairwise(widths))
    # Of each level a scale and a shift for each normalised channel, and none that all have in common.
    expected = linear(128, 16 * 1024) + sum(block(a, b, b, 4 * 2 * (a + b)) for a, b in pairs)
    assert parameters(generator) == expected + 2 * 64 + conv(64, 3, 3)
    expected = block(3, 64, 64, 0) + linear(1024, 1) + 4 * 1024
    if size == 128:
        expected += 2 * conv(1024, 1024, 3)  # the last block, which keeps the side and so has no convolution to skip
        pairs = pairs[1:]
    expected += sum(block(b, a, b, 0) for a, b in pairs)
    assert parameters(discriminator) == expected


def small(published, name, size=16, **changes):
    settings = published[name]
    common = {"n_classes": 3, "size": size, "width": 4}
    torch.manual_seed(0)
    generator = build({**settings["generator"], **common, "latent_size": 6}, nn.Module)
    return generator, build({**settings["discriminator"], **common, **changes}, nn.Module)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_tiles_have_their_size_and_every_parameter_gets_a_gradient(published, name, size):
    generator, discriminator = small(published, name, size)
    label = torch.tensor([0, 1, 2, 1])
    made = generator(torch.randn(4, 6), label)
    assert made.shape == (4, 3, size, size)
    assert made.abs().max() <= 1
    verdict = Verdict(*discriminator(made, label))
    assert verdict.logits_b.shape == (4,)
    assert (verdict.levels_bk is not None) == (name == "acgan")
    loss = verdict.logits_b.square().sum()
    if verdict.levels_bk is not None:
        assert verdict.levels_bk.shape == (4, 3)
        loss = loss + verdict.levels_bk.square().sum()
    loss.backward()
    lost = [key for net in (generator, discriminator) for key, p in net.named_parameters() if p.grad is None]
    assert lost == []
    assert sum(float(p.grad.abs().sum()) for p in generator.parameters()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_level_changes_what_is_made_and_how_it_is_judged(published, name):
    generator, discriminator = (net.eval() for net in small(published, name))
    for layer in generator.modules():
        if isinstance(layer, LevelBatchNorm):  # which begins the same for all levels
            nn.init.normal_(layer.shift.weight)
    z, label = torch.randn(1, 6).expand(2, -1), torch.tensor([0, 2])
    made = generator(z, label)
    assert not torch.allclose(made[0], made[1], atol=1e-4)
    logits = discriminator(made[:1].expand(2, -1, -1, -1), label)[0]
    same = torch.allclose(logits[0], logits[1], rtol=1e-4, atol=0)
    assert same == (name == "acgan")  # which is not told the level


@pytest.mark.parametrize("name", NAMES)
def test_spectral_norm_can_be_on_and_off(published, name):
    _, on = small(published, name, spectral_norm=True)
    _, off = small(published, name, spectral_norm=False)
    for _ in range(30):  # iterations of the power method
        on(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
    layers = [layer for layer in on.modules() if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding)]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in layers]
    assert norms == pytest.approx([1.0] * len(layers), abs=0.02)
    normalising = (nn.BatchNorm2d, nn.GroupNorm)
    assert not any(isinstance(layer, normalising) for layer in on.modules())
    assert any(isinstance(layer, normalising) for layer in off.modules()) == (name != "sngan")
    assert not any("parametrizations" in key for key in off.state_dict())


def test_the_critic_sees_each_tile_for_itself(published):
    _, critic = small(published, "wgan_gp")
    x, label = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    alone = torch.cat([critic(x[i : i + 1], label[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(critic(x, label)[0], alone)


@pytest.mark.parametrize("size", [8, 48, 100])
def test_a_size_that_is_no_power_of_two_is_named(published, size):
    with pytest.raises(ConfigError, match=f"model.size={size}: expected a power of two from 16 px on"):
        small(published, "dcgan", size)
