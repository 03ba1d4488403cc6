"""Fixed statistics of instance normalisation."""

import pytest
import torch
from torch import nn

from ihc2he.models.translation.cyclegan.networks import InstanceNorm, ResnetGenerator
from ihc2he.models.translation.moments import fixed, normalising, recorded


def network(affine=False):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.InstanceNorm2d(5, affine=affine), nn.ReLU(), nn.Conv2d(5, 2, 1), InstanceNorm(2)
    )
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    return layers.eval()


@pytest.mark.parametrize("affine", [False, True])
def test_parts_together_are_normalised_like_the_whole(affine):
    layers = network(affine)
    whole = torch.randn(1, 3, 8, 24)
    parts = torch.cat(whole.split(8, dim=-1))
    expected = layers(whole)
    with recorded(layers) as moments:
        together = layers(parts)
    torch.testing.assert_close(torch.cat(together.split(1), -1), expected, atol=1e-5, rtol=1e-5)
    assert [len(own.mean_c) for own in moments] == [5, 2]
    with fixed(layers, moments):
        one = layers(parts[1:2])
    torch.testing.assert_close(one, expected[..., 8:16], atol=1e-5, rtol=1e-5)
    assert torch.equal(layers(whole), expected)


def test_an_error_leaves_the_layers_as_they_were():
    layers = network()
    expected = layers(torch.ones(1, 3, 4, 4))
    with pytest.raises(RuntimeError), recorded(layers):
        layers(torch.ones(1, 4, 4, 4))
    assert torch.equal(layers(torch.ones(1, 3, 4, 4)), expected)
    with pytest.raises(ValueError, match="argument 2 is shorter"), fixed(layers, []):
        raise AssertionError
    assert torch.equal(layers(torch.ones(1, 3, 4, 4)), expected)


def test_half_precision_around_it_changes_little():
    torch.manual_seed(0)
    generator = ResnetGenerator(width=4, n_blocks=1).eval()
    x_bchw = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), recorded(generator) as moments:
        generator(x_bchw)
    assert len(moments) == len(normalising(generator)) == 7
    with torch.no_grad(), fixed(generator, moments):
        full = generator(x_bchw)
        with torch.autocast("cpu", torch.bfloat16):
            half = generator(x_bchw)
    torch.testing.assert_close(half.float(), full, atol=0.03, rtol=0)
