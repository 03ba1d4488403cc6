from functools import partial

import numpy as np
import pytest
import torch

from ihc2he.nuclei.targets import hv_maps
from ihc2he.tiling.augmentation import VIEWS, mean, predict_views, turned, turned_back, turned_maps


@pytest.fixture
def inst():
    """Two nuclei without any symmetry, which touch."""
    inst_hw = np.zeros((20, 26), np.int32)
    inst_hw[3:12, 4:11] = 1
    inst_hw[5:9, 11:19] = 2
    inst_hw[9:15, 14:17] = 2
    inst_hw[3, 4] = 0
    return inst_hw


def hv_of(inst_hw):
    return torch.from_numpy(hv_maps(inst_hw))[None]


@pytest.mark.parametrize("view", VIEWS)
def test_the_maps_of_a_turned_image_are_the_turned_maps(inst, view):
    turned_inst = turned(torch.from_numpy(inst)[None, None], view)[0, 0].numpy()
    expected = hv_of(np.ascontiguousarray(turned_inst))
    torch.testing.assert_close(turned_maps(hv_of(inst), view, (0, 1)), expected, atol=1e-6, rtol=0)


def test_the_views_are_all_eight_and_different():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert len({tuple(turned(x, view).flatten().tolist()) + tuple(turned(x, view).shape) for view in VIEWS}) == 8
    assert torch.equal(turned(x, 0), x)


@pytest.mark.parametrize("view", VIEWS)
def test_turning_back_undoes_turning(view):
    maps = torch.randn(2, 5, 6, 9)
    assert torch.equal(turned_back(turned_maps(maps, view, (1, 2)), view, (1, 2)), maps)


def test_a_network_that_follows_turns_gains_nothing(inst):
    """Then all views agree, vectors included."""

    def oracle(x_bchw):
        return torch.cat([hv_of(x[0].numpy().astype(np.int32)) for x in x_bchw])

    x = torch.from_numpy(inst).float()[None, None]
    torch.testing.assert_close(
        predict_views(oracle, x, partial(turned_back, hv_channels=(0, 1))), hv_of(inst), atol=1e-6, rtol=0
    )


def test_the_mean_over_views_follows_turns_whatever_the_network():
    conv = torch.nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
    x = torch.rand(1, 3, 8, 12)
    back = partial(turned_back, hv_channels=(1, 2))
    maps = predict_views(conv, x, back)
    assert not torch.allclose(turned_maps(conv(x), 5, (1, 2)), conv(turned(x, 5)), atol=1e-3)
    for view in VIEWS:
        torch.testing.assert_close(predict_views(conv, turned(x, view), back), turned_maps(maps, view, (1, 2)))


def test_the_mean_does_not_touch_its_arguments():
    first = torch.zeros(3)
    assert mean([first, torch.ones(3)]).tolist() == [0.5] * 3
    assert first.tolist() == [0.0] * 3
