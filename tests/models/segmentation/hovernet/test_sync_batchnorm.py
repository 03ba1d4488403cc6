"""Batch normalisation whose statistics several GPUs share: what Lightning converts, and what it would break."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ihc2he.build import build
from ihc2he.callbacks.finetuning import TwoPhases
from ihc2he.errors import ConfigError
from ihc2he.models.batchnorm import check_sync_batchnorm


def synchronised(module):
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


def test_all_of_the_batch_normalisation_is_converted_and_nothing_else_changes(segmenter):
    module = segmenter()
    before, n = list(module.state_dict()), sum(isinstance(layer, _BatchNorm) for layer in module.modules())
    parameters = list(module.parameters())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = module.eval().network(x)
    converted = synchronised(module)
    assert converted is module
    kinds = [type(layer) for layer in converted.modules() if isinstance(layer, _BatchNorm)]
    assert kinds == [nn.SyncBatchNorm] * n
    assert n > 10
    assert list(converted.state_dict()) == before  # checkpoints go both ways
    assert all(a is b for a, b in zip(converted.parameters(), parameters, strict=True))  # what optimisers hold
    with torch.no_grad():
        torch.testing.assert_close(converted.network(x), expected, atol=0, rtol=0)


def test_a_frozen_encoder_stands_still_with_converted_layers(segmenter):
    module = synchronised(segmenter())
    module.network.encoder.weights = "given.tar"
    module.train()
    phases = TwoPhases(1)
    for epoch, frozen in ((0, True), (1, False)):
        phases._freeze(SimpleNamespace(current_epoch=epoch), module)
        layers = [layer for layer in module.encoder.modules() if isinstance(layer, nn.SyncBatchNorm)]
        assert layers
        assert all(layer.training is not frozen for layer in layers)
        assert all(p.requires_grad is not frozen for p in module.encoder.parameters())
        assert all(layer.training for layer in module.network.decoder.modules())
    before = {key: value.clone() for key, value in module.encoder.state_dict().items()}
    phases._freeze(SimpleNamespace(current_epoch=0), module)
    with torch.no_grad():
        module.encoder(torch.rand(2, 3, 64, 64))  # in evaluation they need no other process, nor a GPU
    torch.testing.assert_close(module.encoder.state_dict(), before, atol=0, rtol=0)


class ActAfter(nn.BatchNorm2d):
    """Batch normalisation with an activation in it, as timm has."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("device", "layer", "message"),
    [
        ("cuda", ActAfter, "would replace network.encoder.conv0.bn, a ActAfter, which does more than normalise"),
        ("cpu", nn.BatchNorm2d, "needs GPUs. Pass trainer=ddp_cpu"),
        ("cuda", nn.BatchNorm2d, None),
        ("cuda", nn.SyncBatchNorm, None),
    ],
)
def test_what_the_conversion_would_break_is_refused(segmenter, device, layer, message):
    module = segmenter()
    module.network.encoder.conv0.bn = layer(8)
    strategy = SimpleNamespace(_layer_sync=object(), root_device=torch.device(device))
    module._trainer = SimpleNamespace(strategy=strategy)
    if message is None:
        check_sync_batchnorm(module)
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sync_batchnorm(module)


def test_instance_normalisation_stays_as_it_is():
    node = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator", "width": 4, "n_blocks": 1}
    generator = build(node, nn.Module)
    kinds = [type(layer) for layer in generator.modules()]
    assert [type(layer) for layer in synchronised(generator).modules()] == kinds
