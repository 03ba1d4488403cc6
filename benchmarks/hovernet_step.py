"""Times one training step of our HoVer-Net against the published one's, with the making of its targets.

    python benchmarks/hovernet_step.py [size=128] [batch=1] [steps=5]

Both in the published mode `fast`, whose output is smaller than its input by 92 px. Ours runs inside the Trainer, so
that what Lightning costs is counted. Targets are made on one CPU thread, as a loading process does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hovernet_reference import ENCODER, ReferenceStep, targets
from omegaconf import OmegaConf
from timing import Row, argument, finish, names_of, ratios, take_turns
from training import Batch, in_turns

from ihc2he.config import config_dir
from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter
from ihc2he.models.segmentation.loading import PANNUKE
from ihc2he.nuclei.targets import hv_maps, relabel_pieces


def hovernet(**changes: Any) -> HoverNetSegmenter:
    """Return a HoVer-Net with the network and the optimiser of the default configuration, in mode `fast`.

    Args:
        changes: of its arguments.
    """
    optimizer: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / "hovernet.yaml").optimizer)
    return HoverNetSegmenter(
        **({"encoder": ENCODER, "optimizer": optimizer, "classes": PANNUKE, "mode": "fast"} | changes)
    )


def instances(size: int) -> np.ndarray:
    """Return an instance map with about as many nuclei as tissue has."""
    return names_of("nuclei/conftest.py")["draw_ellipses"](size, max(3, size**2 // 1600))


def crop(size: int) -> Batch:
    """Return a training sample with targets of both kinds."""
    inst_hw = instances(size)
    inst = torch.from_numpy(inst_hw)
    return {
        "image": torch.rand(3, size, size),
        "inst": inst,
        "hv": torch.from_numpy(hv_maps(inst_hw)),
        "hv_published": targets(inst_hw),
        "type": inst % len(PANNUKE) + (inst > 0),
    }


def measure(size: int, batch: int, steps: int) -> list[Row]:
    """Return a row for each precision of ours: the step and the making of its targets together."""
    inst_hw = instances(size)
    calls = {"published": lambda: targets(inst_hw), "ours": lambda: hv_maps(relabel_pieces(inst_hw))}
    making = {name: spent[:steps] for name, spent in take_turns(calls, 0, least=steps).items()}
    rows = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        seconds = in_turns(hovernet(), ReferenceStep, [crop(size)], batch, steps, precision)
        both = {
            name: [step + batch * one for step, one in zip(spent, making[name], strict=True)]
            for name, spent in seconds.items()
        }
        case = f"HoVer-Net targets and step, {batch} x {size} px, {precision}"
        rows += ratios(case, both, {"published": "theirs in 32-true"})
    return rows


if __name__ == "__main__":
    finish("hovernet_step", measure(argument("size", 128), argument("batch", 1), argument("steps", 5)))
