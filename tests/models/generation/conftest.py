"""Tiny GANs, and tiles of four levels to train them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningDataModule, Trainer
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from ihc2he import config
from ihc2he.data.samplers import EpochSampler, SampleIndex
from ihc2he.datainfo import DataInfo
from ihc2he.models.generation.module import Gan

NAMES = ("dcgan", "acgan", "wgan_gp", "sngan")
LEVELS = ("0", "1+", "2+", "3+")


class LevelTiles(Dataset[dict[str, Any]]):
    """Tiles whose brownness is their level, with noise."""

    def __init__(self, n: int, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.label = torch.arange(n) % len(LEVELS)
        noise = torch.rand(n, 3, size, size, generator=generator) - 0.5
        brown = torch.tensor([0.1, -0.1, -0.4]).view(3, 1, 1)
        self.image = 0.6 * noise + self.label.view(-1, 1, 1, 1) / 3 * brown
        self.start = 1000 * seed

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, key: int | SampleIndex) -> dict[str, Any]:
        i = key.index if isinstance(key, SampleIndex) else key
        return {"image": self.image[i], "label": int(self.label[i]), "name": f"{self.start + i:05d}", "case": "a"}


class Levels(LightningDataModule):
    """Training tiles, and as many others for evaluation."""

    info = DataInfo(mpp=1.84, classes=LEVELS, trained_on=("0a", "1b"))

    def __init__(self, n: int = 8, size: int = 16, batch_size: int = 4, eval_batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train, self.unseen = LevelTiles(n, size, 0), LevelTiles(n, size, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = EpochSampler(size=len(self.train), num_samples=len(self.train), seed=0)
        return DataLoader(self.train, self.batch_size, sampler=sampler)

    def known_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.eval_batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.unseen, self.eval_batch_size)

    test_dataloader = val_dataloader


@pytest.fixture(scope="session")
def published() -> dict[str, dict[str, Any]]:
    """The shipped settings of `model` by the name of the GAN."""
    config.register()
    found = {}
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        for name in (*NAMES, "acgan_small"):
            cfg = compose("train", overrides=["model=gan", f"model/gan={name}", "seed=0"])
            found[name] = OmegaConf.to_container(cfg.model, resolve=True)
    return found  # type: ignore[return-value]


@pytest.fixture(scope="session")
def tiny(published) -> Callable[..., Gan]:
    """Return `tiny(name, start, **changes)`, which builds a small one for tiles of 16 px from a seed of its weights."""

    def build(name: str = "dcgan", start: int = 0, **changes: Any) -> Gan:
        settings = {key: value for key, value in published[name].items() if key != "_target_"}
        for part in ("generator", "discriminator"):
            settings[part] = settings[part] | {"width": 4} | changes.pop(part, {})
        small = {"size": 16, "latent_size": 5, "n_epochs": 2, "metrics": [], "features": None}
        torch.manual_seed(start)
        return Gan(**(settings | small | changes))

    return build


@pytest.fixture(scope="session")
def levels() -> type[Levels]:
    return Levels


@pytest.fixture
def run(trainer) -> Callable[..., Trainer]:
    """Return `run(module, *callbacks, data=None, stage="fit", ...)`, which trains or tests on tiles of 16 px."""

    def go(
        module: Gan,
        *callbacks: Callback,
        data: Any = None,
        stage: str = "fit",
        ckpt_path: Any = None,
        **changes: Any,
    ) -> Trainer:
        runner = trainer(callbacks=list(callbacks), **changes)
        getattr(runner, stage)(module, datamodule=data or Levels(), ckpt_path=ckpt_path)
        return runner

    return go
