"""What this package exports, run by this package."""

import numpy as np
import pytest
import torch

from ihc2he.errors import DataError
from ihc2he.export.packages import sample_tile
from ihc2he.models.pipeline.finding import find_labelled
from ihc2he.models.pipeline.outside import Onnx, Package
from ihc2he.models.pipeline.segmenters import Learned


@pytest.fixture(scope="module")
def own():
    return Learned("builtin", name="centres")


@pytest.fixture(scope="module")
def tile():
    return torch.from_numpy(sample_tile(0.5)[:201, :147].copy()).permute(2, 0, 1)[None].float() / 255


def test_a_network_as_onnx_gives_the_maps_of_the_bundle(exported, own, tile):
    zoo = exported[1]
    with torch.no_grad():
        wanted = own(tile)
    for segmenter in (Onnx(str(zoo / "network.onnx")), Package(str(zoo))):
        assert (segmenter.mpp, segmenter.classes, segmenter.decoder) == (own.mpp, own.classes, own.decoder)
        assert (segmenter(tile) - wanted).abs().max() < 1e-4
    assert Onnx(str(zoo / "network.onnx"), decoder={"least_heat": 0.3}).decoder.least_heat == 0.3
    with pytest.raises(DataError, match=r"gave 7 maps .* with 1 classes reads 4"):
        Onnx(str(zoo / "network.onnx"), classes=["a"])(tile)


def test_a_package_for_qupath_finds_what_the_pipeline_finds(qupath, own, tile):
    with torch.no_grad():
        wanted = own.find(own.reduced(own(tile))[0].numpy(), 0.5)
    segmenter = Package(str(qupath), trust=True)
    assert segmenter.classes == own.classes
    found = find_labelled(segmenter(tile)[0].numpy(), 0.5)
    near = np.linalg.norm(found.centres_n2[:, None] - wanted.centres_n2, axis=2).min(1) < 2
    assert near.mean() > 0.9
    assert abs(len(found.centres_n2) - len(wanted.centres_n2)) <= 0.1 * len(wanted.centres_n2)
