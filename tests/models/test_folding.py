import pytest
import torch
from torch import nn

from ihc2he.models.folding import folded
from ihc2he.models.segmentation.encoders import EfficientNetLite0
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.segmentation.loading import load_segmenter
from ihc2he.models.segmentation.networks import MapNetwork


def statistics_of_training(network):
    """Set the normalisations to what training could have left."""
    generator = torch.Generator().manual_seed(1)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for values in (norm.weight.data, norm.running_var):
            values.uniform_(0.5, 2, generator=generator)
        for values in (norm.bias.data, norm.running_mean):
            values.normal_(generator=generator)
    return network.eval()


def normalisations(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Swapped(MapNetwork):
    """Normalises before the convolution that it lists first."""

    def __init__(self):
        super().__init__()
        self.channels = {"mask": 3}
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x_bchw):
        return {"mask": self.conv(self.norm(x_bchw))}


@pytest.fixture(scope="module")
def builtin():
    return load_segmenter("builtin").network


def test_weights_in_the_box_lose_all_normalisations_and_find_the_same(builtin):
    faster = folded(builtin)
    assert normalisations(builtin) > 50
    assert normalisations(faster) == 0
    x_bchw = torch.rand((2, 3, 96, 64), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for name, maps in builtin(x_bchw).items():
            assert torch.allclose(faster(x_bchw)[name], maps, atol=1e-3)


def test_what_runs_in_another_order_than_it_is_listed_stays_as_it_is():
    network = statistics_of_training(Swapped())
    assert folded(network) is network
    assert normalisations(network) == 1


def test_hovernet_keeps_the_normalisations_that_come_before_a_convolution():
    network = statistics_of_training(HoverNet(EfficientNetLite0(None), 2, "same", 32))
    faster = folded(network)
    assert 0 < normalisations(faster) < normalisations(network)
