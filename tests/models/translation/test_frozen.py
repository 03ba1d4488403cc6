"""A frozen segmenter: its pixel size, its mode, and where gradients go."""

import pytest
import torch

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import load_bundle
from ihc2he.models.translation import frozen
from ihc2he.models.translation.frozen import FrozenSegmenter
from ihc2he.tiling.resampling import resized


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_images_are_resampled_to_its_pixel_size_and_its_own_range(segmenter_bundle, mpp):
    source = segmenter_bundle()
    x = torch.rand(2, 3, 24, 20)
    side = int(mpp / 0.25)
    maps = FrozenSegmenter(source, mpp)(2 * x - 1)
    with torch.no_grad():
        expected = load_bundle(source)[0](resized(x, 24 * side, 20 * side))
    assert maps.keys() == {"mask", "centre", "types"}
    assert maps["types"].shape == (2, 3, 24 * side, 20 * side)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_images_and_nothing_of_it(segmenter_bundle):
    segmenter = FrozenSegmenter(segmenter_bundle(), 0.46)
    x = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    sum(value.mean() for value in segmenter(x).values()).backward()
    assert x.grad.abs().min(1).values.gt(0).float().mean() > 0.9
    assert not segmenter.network.training
    assert all(not p.requires_grad and p.grad is None for p in segmenter.network.parameters())


def test_it_is_no_module_that_training_would_find(segmenter_bundle):
    outer = torch.nn.Module()
    outer.frozen = FrozenSegmenter(segmenter_bundle(), 0.46)
    outer.train()
    assert not outer.state_dict()
    assert not list(outer.parameters())
    assert not outer.frozen.network.training


def test_what_cannot_serve_is_named(segmenter_bundle, monkeypatch):
    with pytest.raises(ConfigError, match=r"segmenter=.*nowhere: it does not say its pixel size"):
        FrozenSegmenter(segmenter_bundle("nowhere", mpp=None), 0.5)
    with pytest.raises(ConfigError, match=r"crops have 7x8 px at its 2\.0 um/px; expected at least 8.*crop_size"):
        FrozenSegmenter(segmenter_bundle("coarse", mpp=2.0), 0.5)(torch.zeros(1, 3, 32, 28))
    with pytest.raises(DataError, match="not_there: expected the folder of a bundle"):
        FrozenSegmenter("not_there", 0.5)
    loaded = frozen.load_segmenter(segmenter_bundle())
    loaded.network.margin = 6
    monkeypatch.setattr(frozen, "load_segmenter", lambda source: loaded)
    with pytest.raises(ConfigError, match="it has maps that are smaller than its images"):
        FrozenSegmenter("valid", 0.5)
