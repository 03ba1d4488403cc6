"""A HoVer-Net small enough for a test, tiles with nuclei, and how to fit one to the others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from ihc2he.datainfo import DataInfo
from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter
from ihc2he.nuclei.targets import hv_maps

SMALL = {
    "encoder": {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 8, "units": [1, 1, 1, 1]},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 3e-3},
    "classes": ["round", "square"],
    "width": 32,
    "window": 64,
    "overlap": 16,
    "workers": 0,
}


class Tiles(Dataset[dict[str, Any]]):
    """Dark discs (type 1) and squares (type 2), some of which touch, on a light ground."""

    def __init__(self, n: int, side: int, train: bool) -> None:
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:side, :side]
        self.train = train
        self.items = []
        for i in range(n):
            inst_hw, type_hw = np.zeros((side, side), np.int32), np.zeros((side, side), np.int64)
            for k in range(1, side * side // 400 + 1):
                cx, cy = rng.integers(6, side - 6, 2)
                inside = abs(x - cx) + abs(y - cy) < 8 if k % 2 else np.maximum(abs(x - cx), abs(y - cy)) < 6
                inside &= inst_hw == 0
                inst_hw[inside], type_hw[inside] = k, 2 - k % 2
            image = np.where(inst_hw[None] > 0, [[[0.3]], [[0.1]], [[0.5]]], [[[0.9]], [[0.7]], [[0.9]]])
            image = (image + rng.normal(0, 0.03, (3, side, side))).clip(0, 1)
            self.items.append((image.astype(np.float32), inst_hw, type_hw, f"{i:03d}.png", ("Colon", "Liver")[i % 2]))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image, inst_hw, type_hw, name, group = self.items[i]
        more = {"hv": torch.from_numpy(hv_maps(inst_hw))} if self.train else {"name": name, "group": group}
        return {k: torch.from_numpy(v) for k, v in (("image", image), ("inst", inst_hw), ("type", type_hw))} | more


class Data(LightningDataModule):
    """The tiles, for training and for testing."""

    def __init__(self, n: int = 4, side: int = 64, batch_size: int = 2, classes: tuple[str, ...] = ("round", "square")):
        super().__init__()
        self.n, self.side, self.batch_size, self.classes = n, side, batch_size, list(classes)

    @property
    def info(self) -> DataInfo:
        return DataInfo(0.25, self.classes)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Tiles(self.n, self.side, train=True), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Tiles(self.n, self.side, train=False), batch_size=2)

    test_dataloader = val_dataloader


@pytest.fixture(scope="session")
def data() -> Callable[..., Data]:
    """Return `data(n, side, batch_size, classes)`."""
    return Data


@pytest.fixture(scope="session")
def segmenter() -> Callable[..., HoverNetSegmenter]:
    """Return `segmenter(**changes)`, which builds a small one from a fixed seed."""

    def build(seed: int = 0, **changes: Any) -> HoverNetSegmenter:
        torch.manual_seed(seed)
        return HoverNetSegmenter(**(SMALL | changes))

    return build


@pytest.fixture
def fit(trainer: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """Return `fit(module, data, *callbacks, ckpt_path, **changes of the Trainer)`, without validation by default."""

    def run(module: Any, data: Data, *callbacks: Any, ckpt_path: Any = None, **changes: Any) -> Trainer:
        runner = trainer(callbacks=list(callbacks), **({"limit_val_batches": 0} | changes))
        runner.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return runner

    return run
