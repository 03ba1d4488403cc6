"""Training steps of the published method and of ours in turns, as the two benchmarks of steps have them."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from ihc2he.datainfo import DataInfo

Batch = dict[str, Tensor]


class Step(Protocol):
    """A published method, ready to train."""

    def step(self, batch: Batch) -> None:
        """Train on a batch."""


class Turns(Callback):
    """Runs a step of the published method before each of ours and times both, in seconds.

    Args:
        published: makes the published method on a device; None: there is none.
    """

    def __init__(self, published: Callable[[torch.device], Step] | None) -> None:
        self.make = published
        self.published: Step | None = None
        self.seconds: dict[str, list[float]] = {"published": [], "ours": []} if published else {"ours": []}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Time the published step, then start the clock of ours."""
        if self.make is not None:
            self.published = self.published or self.make(pl_module.device)
            started = now()
            with torch.autocast(pl_module.device.type, enabled=False):
                self.published.step(batch)
            self.seconds["published"].append(now() - started)
        self.started = now()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop the clock of our step."""
        self.seconds["ours"].append(now() - self.started)


def now() -> float:
    """Return CPU seconds, or where a GPU works, seconds on the wall when it has done its work."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(
    ours: LightningModule,
    published: Callable[[torch.device], Step] | None,
    samples: Sequence[Batch],
    batch: int,
    steps: int,
    precision: Any,
    accelerator: str = "auto",
) -> dict[str, list[float]]:
    """Return the seconds of each step after two to warm up, `published` and `ours`; ours as the Trainer runs it.

    Args:
        ours: the model.
        published: makes the published method on a device; None: there is none.
        samples: training samples, repeated as often as it takes.
        batch: samples per step.
        steps: number of them.
        precision: of ours; the published method works in float32.
        accelerator: as the Trainer knows it.
    """
    turns = Turns(published)
    fit(ours, samples, batch, steps + 2, precision, accelerator, turns)
    return {name: seconds[2:] for name, seconds in turns.seconds.items()}


def fit(
    module: LightningModule,
    samples: Sequence[Batch],
    batch: int,
    steps: int,
    precision: Any,
    accelerator: str = "auto",
    *callbacks: Callback,
) -> None:
    """Train for so many steps, with nothing written; arguments as for `in_turns`."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator=accelerator, devices=1, max_epochs=1, precision=precision, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=_Repeated(samples, batch, steps, getattr(module, "classes", ())))


class _Repeated(LightningDataModule):
    """Samples over and over, at 0.25 um/px and with the types that the model has."""

    def __init__(self, samples: Sequence[Batch], batch: int, steps: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.info = DataInfo(mpp=0.25, classes=classes)
        self.batch = batch
        self.needed = [samples[i % len(samples)] for i in range(steps * batch)]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.needed, batch_size=self.batch)  # type: ignore[arg-type]
