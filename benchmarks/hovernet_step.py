"""Times one training step of our HoVer-Net against a plain one.

    python benchmarks/hovernet_step.py [size=64] [batch=1] [steps=5]

The plain step trains the same network with the same losses and optimiser in a bare loop, in float32 and the default
memory format, as the reference does. Ours runs inside the Trainer, so that what Lightning costs is counted. Steps
alternate, so that other load on the machine falls on both. Times are CPU time, or those on the wall where a GPU works.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from timing import argument, finish, names_of, ratios
from torch import Tensor

from ihc2he.losses.hover import hover_losses
from ihc2he.models.hovernet.module import REFERENCE_LOSSES, HoverNetSegmenter
from ihc2he.models.pipeline.segmenters import PANNUKE
from ihc2he.nuclei.targets import hv_maps

RATE = 1e-4


class PlainStep:
    """The default network in the default memory format, and `step`, which trains it on a batch."""

    def __init__(self, device: torch.device) -> None:
        self.network = segmenter(channels_last=False).network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), RATE)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Train on a batch."""
        losses = hover_losses(self.network(batch["image"]), batch, REFERENCE_LOSSES)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()


class Alternate(Callback):
    """Runs a plain step before each of ours and times both, in seconds."""

    def __init__(self) -> None:
        self.plain: PlainStep | None = None
        self.seconds: dict[str, list[float]] = {"plain": [], "ours": []}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Time the plain step, then start the clock of ours."""
        self.plain = self.plain or PlainStep(pl_module.device)
        started = _now()
        with torch.autocast(pl_module.device.type, enabled=False):
            self.plain.step(batch)
        self.seconds["plain"].append(_now() - started)
        self.started = _now()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop the clock of our step."""
        self.seconds["ours"].append(_now() - self.started)


def _now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def segmenter(channels_last: bool) -> HoverNetSegmenter:
    """Return the HoVer-Net of the default configuration with the types of PanNuke."""
    return HoverNetSegmenter(
        {"_target_": "ihc2he.models.hovernet.encoders.PreactResNet"},
        {"_target_": "torch.optim.Adam", "lr": RATE},
        classes=PANNUKE,
        channels_last=channels_last,
    )


def crop(size: int) -> dict[str, Tensor]:
    """Return a training sample with some nuclei."""
    inst_hw = names_of("nuclei/conftest.py")["draw_ellipses"](size, max(3, size**2 // 1600))
    inst = torch.from_numpy(inst_hw)
    types_hw = inst % len(PANNUKE) + (inst > 0)
    return {
        "image": torch.rand(3, size, size),
        "inst": inst,
        "hv": torch.from_numpy(hv_maps(inst_hw)),
        "type": types_hw,
    }


def measure(size: int, batch: int, steps: int, precision: Any) -> dict[str, list[float]]:
    """Return the seconds of each step after one to warm up, `plain` and `ours`."""
    clock = Alternate()
    crops = [crop(size)] * ((steps + 1) * batch)
    trainer = Trainer(
        accelerator="auto", devices=1, max_epochs=1, precision=precision, callbacks=[clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(segmenter(channels_last=True), torch.utils.data.DataLoader(crops, batch_size=batch))  # type: ignore[arg-type]
    return {name: seconds[1:] for name, seconds in clock.seconds.items()}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    size, batch, steps = argument("size", 64), argument("batch", 1), argument("steps", 5)
    rows = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        case = f"{batch} x {size} px, {precision}, {torch.get_num_threads()} threads"
        rows += ratios(case, measure(size, batch, steps, precision), {"plain": "plain in 32-true"})
    finish("hovernet_step", rows)
