"""A CycleGAN small enough for a test, and the data and trainer to run it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ihc2he.data.samplers import EpochSampler, SampleIndex
from ihc2he.models.translation.cyclegan.module import CycleGAN

NETWORKS = "ihc2he.models.translation.cyclegan.networks"
SMALL = {
    "generator": {"_target_": f"{NETWORKS}.ResnetGenerator", "width": 4, "n_blocks": 1},
    "discriminator": {"_target_": f"{NETWORKS}.PatchDiscriminator", "width": 4, "n_layers": 1},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 2e-3, "betas": [0.5, 0.999]},
    "pool_size": 2,
}


class Tiles(Dataset[dict[str, Any]]):
    """Brown-grey IHC and pink-grey H&E tiles of noise."""

    def __init__(self, n: int, side: int) -> None:
        generator = torch.Generator().manual_seed(0)
        grey_n1hw = torch.rand(n, 1, side, side, generator=generator) - 0.5
        self.ihc = grey_n1hw + torch.tensor([0.2, -0.1, -0.4]).view(3, 1, 1)
        self.he = grey_n1hw.flip(0, 2) + torch.tensor([0.4, -0.3, 0.2]).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.ihc)

    def __getitem__(self, key: int | SampleIndex) -> dict[str, Any]:
        i = key.index if isinstance(key, SampleIndex) else key
        return {
            "ihc": self.ihc[i],
            "he": self.he[i],
            "name": f"{i:05d}.png",
            "group": "3+" if i else "0",
            "paired": True,
        }


@pytest.fixture(scope="session")
def tiles() -> Callable[..., Tiles]:
    """Return `tiles(n, side)`."""
    return Tiles


@pytest.fixture(scope="session")
def small() -> Callable[..., CycleGAN]:
    """Return `small(**changes)`, which builds a CycleGAN from a fixed seed."""

    def build(seed: int = 0, **changes: Any) -> CycleGAN:
        torch.manual_seed(seed)
        return CycleGAN(**(SMALL | changes))

    return build


@pytest.fixture
def trainer(tmp_path) -> Callable[..., Trainer]:
    """Return `trainer(**changes)`, which builds a quiet one on the CPU."""

    def build(**changes: Any) -> Trainer:
        keeps = any(isinstance(callback, Checkpoint) for callback in changes.get("callbacks", []))
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "log_every_n_steps": 1}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": keeps}
        own_order = {"use_distributed_sampler": False, "default_root_dir": tmp_path}
        return Trainer(**(defaults | quiet | own_order | changes))

    return build


@pytest.fixture
def fit(trainer) -> Callable[..., Trainer]:
    """Return `fit(module, *callbacks, ...)`, which trains on noise in the order of the project's own sampler."""

    def run(
        module: LightningModule,
        *callbacks: Callback,
        n: int = 3,
        side: int = 16,
        batch_size: int = 1,
        ckpt_path: Any = None,
        data: Dataset[Any] | None = None,
        **changes: Any,
    ) -> Trainer:
        dataset = data or Tiles(n, side)
        sampler = EpochSampler(size=len(dataset), num_samples=len(dataset), seed=0)
        loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler)
        runner = trainer(callbacks=list(callbacks), **changes)
        runner.fit(module, loader, ckpt_path=ckpt_path)
        return runner

    return run


@pytest.fixture(scope="session")
def negative() -> type[nn.Module]:
    """Return a class of generator that swaps bright and dark."""

    class Negative(nn.Module):
        def __init__(self, sign: float = -1.0) -> None:
            super().__init__()
            self.sign = nn.Parameter(torch.tensor(sign))

        def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
            return self.sign * x_bchw

    return Negative
