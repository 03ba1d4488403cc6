"""Which grade a tile has, from a folder of tiles with labels.csv: name, split, grade."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ihc2he.datainfo import DataInfo
from ihc2he.images.decoding import read_image
from ihc2he.metrics.cards import Card
from ihc2he.models.task import Export, Scores, Task

NET = {"_target_": "grader.Net"}


class GradedTiles(LightningDataModule):
    """Tiles and their grades."""

    def __init__(self, root: str, classes: list[str], mpp: float, batch_size: int = 4) -> None:
        super().__init__()
        self.root, self.batch_size = Path(root), batch_size
        self.info = DataInfo(mpp, classes)

    def _loader(self, split: str) -> DataLoader[Any]:
        with (self.root / "labels.csv").open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == split]
        items = [
            {
                "image": torch.from_numpy(read_image(self.root / row["name"])).permute(2, 0, 1).float() / 255,
                "grade": list(self.info.classes).index(row["grade"]),
                "name": row["name"],
                "group": row["grade"],
            }
            for row in rows
        ]
        return DataLoader(items, self.batch_size, shuffle=split == "train")

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    test_dataloader = val_dataloader


class Net(nn.Module):
    """Two convolutions and the mean of what they see."""

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, n, 1))

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.body(x_bchw).mean((2, 3))


class Grader(Task):
    """Learns the grade of a tile."""

    def __init__(self, lr: float, n: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(n)

    @property
    def cards(self) -> dict[str, Card]:
        return {"accuracy": Card("accuracy", "Accuracy", True, "0 to 1", 1, "share of the tiles")}

    def exports(self) -> dict[str, Export]:
        info = {"module": {**NET, "n": self.hparams["n"]}, "role": "classifier", "classes": list(self.data.classes)}
        return {"grader": Export(self.net, info)}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.hparams["lr"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch["image"]), batch["grade"])

    def _judge(self, batch: dict[str, Any], stage: str) -> Scores:
        right = (self.net(batch["image"]).argmax(1) == batch["grade"]).float()
        self.log(f"{stage}/accuracy", right.mean(), batch_size=len(right), on_epoch=True)
        each = zip(batch["name"], batch["group"], right.tolist(), strict=True)
        return {"rows": [{"name": name, "group": group, "accuracy": value} for name, group, value in each]}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        return self._judge(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        return self._judge(batch, "test")
