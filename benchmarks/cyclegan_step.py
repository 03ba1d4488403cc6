"""Times one training step of our CycleGAN against the published one's.

    python benchmarks/cyclegan_step.py [size=128] [batch=1] [steps=5]

Ours runs inside the Trainer, so that what Lightning costs is counted.
"""

from __future__ import annotations

from typing import Any

import torch
from cyclegan_reference import ReferenceStep
from omegaconf import OmegaConf
from timing import Row, argument, finish, ratios
from training import Batch, in_turns

from ihc2he.config import config_dir
from ihc2he.models.translation.cyclegan.module import CycleGAN


def cyclegan(**changes: Any) -> CycleGAN:
    """Return a CycleGAN with the networks and the optimiser of the default configuration.

    Args:
        changes: of its arguments.
    """
    optimizer: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / "cyclegan.yaml").optimizer)
    networks = "ihc2he.models.translation.cyclegan.networks"
    nodes = {
        "generator": {"_target_": f"{networks}.ResnetGenerator"},
        "discriminator": {"_target_": f"{networks}.PatchDiscriminator"},
        "optimizer": optimizer,
    }
    return CycleGAN(**(nodes | changes))


def crops(size: int, number: int = 8) -> list[Batch]:
    """Return random crops of both stains in [-1, 1]."""
    return [{stain: torch.rand(3, size, size) * 2 - 1 for stain in ("ihc", "he")} for _ in range(number)]


def measure(size: int, batch: int, steps: int) -> list[Row]:
    """Return a row for each precision of ours."""
    rows = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        seconds = in_turns(cyclegan(), ReferenceStep, crops(size), batch, steps, precision)
        rows += ratios(f"CycleGAN step, {batch} x {size} px, {precision}", seconds, {"published": "theirs in 32-true"})
    return rows


if __name__ == "__main__":
    finish("cyclegan_step", measure(argument("size", 128), argument("batch", 1), argument("steps", 5)))
