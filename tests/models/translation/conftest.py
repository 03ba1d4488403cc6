"""A small segmenter as a bundle, for the terms that need one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ihc2he.models.bundle import save_bundle
from ihc2he.models.segmentation.networks import UNet

DECODER = {"_target_": "ihc2he.nuclei.decoders.centres.CentresDecoder"}
NODE = {
    "_target_": "ihc2he.models.segmentation.networks.UNet",
    "encoder": {
        "_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1],
    },
    "channels": {"mask": 1, "centre": 1, "types": 3},
    "width": 4,
}  # fmt: skip


@pytest.fixture
def segmenter_bundle(tmp_path: Path) -> Callable[..., str]:
    """Return `segmenter_bundle(name, **info)`, which writes one and returns its path."""

    def write(name: str = "segmenter", **info: Any) -> str:
        torch.manual_seed(7)
        network = UNet(**{key: value for key, value in NODE.items() if key != "_target_"})
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):  # statistics that those of a batch would differ from
                layer.running_mean.uniform_(-0.2, 0.2)
        known = {"module": NODE, "role": "segmenter", "classes": ["a", "b"], "mpp": 0.25, "decoder": DECODER}
        return str(save_bundle(network, tmp_path / name, known | info))

    return write
