"""Networks small enough for a test, as bundles and as checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ihc2he.models.bundle import save_bundle
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.translation.cyclegan.networks import ResnetGenerator

ENCODER = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1]}
CLASSES = ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]


@pytest.fixture(scope="session")
def hovernet() -> Callable[..., HoverNet]:
    """Return `hovernet(n_types, seed)`, which builds one that calls about half of the pixels nucleus."""

    def build(n_types: int = 5, seed: int = 0) -> HoverNet:
        torch.manual_seed(seed)
        return HoverNet(ENCODER, n_types, width=32).eval()

    return build


@pytest.fixture
def segmenter_bundle(tmp_path: Path, hovernet: Callable[..., HoverNet]) -> Callable[..., str]:
    """Return `segmenter_bundle(name, classes, seed, **info)`, which writes one and returns its path."""

    def write(name: str = "segmenter", classes: list[str] = CLASSES, seed: int = 0, **info: Any) -> str:
        network = hovernet(len(classes), seed)
        node = {
            "_target_": "ihc2he.models.segmentation.hovernet.networks.HoverNet",
            "encoder": ENCODER, "n_types": len(classes), "width": 32,
        }  # fmt: skip
        kept = info.pop("keep_unmarked", True)
        decoder = {"_target_": "ihc2he.nuclei.decoders.hover.HoverDecoder", "keep_unmarked": kept}
        known = {"module": node, "role": "segmenter", "classes": classes, "mpp": 0.25, "decoder": decoder}
        return str(save_bundle(network, tmp_path / name, known | info))

    return write


@pytest.fixture
def generator_bundle(tmp_path: Path) -> Callable[..., str]:
    """Return `generator_bundle(name, seed)`, which writes one and returns its path."""

    def write(name: str = "g_ihc2he", seed: int = 0) -> str:
        torch.manual_seed(seed)
        node = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator", "width": 4, "n_blocks": 1}
        stains = {"role": "translator", "stain_in": "IHC", "stain_out": "H&E"}
        info = {"module": node, **stains, "mpp": 0.46, "value_range": [-1.0, 1.0]}
        return str(save_bundle(ResnetGenerator(width=4, n_blocks=1), tmp_path / name, info))

    return write
