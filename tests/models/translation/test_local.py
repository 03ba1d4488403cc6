"""The local generator: what it sees, and that windows of it are the whole."""

import pytest
import torch
from torch import nn

from ihc2he.errors import ConfigError
from ihc2he.models.translation.local import LocalUNet


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_pixel_sees_as_far_as_stated_and_no_farther(depth):
    net = LocalUNet(2, depth).double()
    side = -(-(2 * net.halo + 20) // (2 * net.stride)) * 2 * net.stride
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    y = net(x)
    before, after = [], []
    for i in range(side // 2, side // 2 + net.stride):  # all phases of the pyramid
        (gradient,) = torch.autograd.grad(y[0, :, i, i].sum(), x, retain_graph=True)
        for axis in (0, 1):
            seen = gradient[0].abs().sum((0, 2 - axis)).nonzero().flatten()
            before.append(i - int(seen.min()))
            after.append(int(seen.max()) - i)
    assert (max(before), max(after)) == (8 * 2**depth - 5, 7 * 2**depth - 4)
    assert net.halo == max(before)


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (41, 64)])
def test_any_size_comes_back_at_its_own_and_in_range(size):
    made = LocalUNet(4)(torch.rand(2, 3, *size) * 2 - 1)
    assert made.shape == (2, 3, *size)
    assert made.abs().max() <= 1
    assert made.std() > 0.005


def test_every_parameter_gets_a_gradient_and_nothing_is_normalised():
    net = LocalUNet(4)
    net(torch.rand(1, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    assert not [layer for layer in net.modules() if isinstance(layer, norms)]
    assert sum(p.numel() for p in LocalUNet().parameters()) == 2_722_307


def test_a_shift_by_the_stride_shifts_the_result():
    net, x = LocalUNet(4, 2).eval(), torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        whole, part = net(x), net(x[..., 4:, 8:])
    torch.testing.assert_close(part[..., 30:50, 30:50], whole[..., 34:54, 38:58], atol=1e-5, rtol=0)


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="at least 1, found 4 and 0"):
        LocalUNet(4, 0)
