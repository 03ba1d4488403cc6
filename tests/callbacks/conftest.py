"""A module of three weights that offers all that the callbacks ask for, and a run of it on four tiles."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

NODE = {"_target_": "torch.nn.PReLU", "num_parameters": 3}


class Toy(LightningModule):
    """Each step lowers its three weights by 1; `val/score` is what `scores` says of the epoch."""

    def __init__(self, scores: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.PReLU(3)
        self.node: dict[str, Any] | None = NODE
        self.scores = scores
        self.cards = {"he/psnr": SimpleNamespace(better="higher", protocol="whole tile")}
        nn.init.zeros_(self.net.weight)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)]

    def loss(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.net.weight.sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/loss_g", loss)
        return loss.detach()

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.current_epoch < len(self.scores):
            self.log("val/score", self.scores[self.current_epoch], batch_size=1)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        rows = [
            {"name": n, "group": g, "he/psnr": 20.0 + len(g)}
            for n, g in zip(batch["name"], batch["group"], strict=True)
        ]
        self.log_dict({"test/he/psnr": 21.5, "test/he/psnr/3+": 22.0}, batch_size=1)
        return {"rows": rows}

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        return [[("IHC", image), ("made H&E", -image)] for image in batch["ihc"]]

    def exports(self) -> dict[str, Any]:
        return {"net": (self.net, {"module": self.node, "role": "translator"})}


class FourTiles(LightningDataModule):
    """Tiles of 16 px in batches of 2, two of them with the same file name in two folders."""

    mpp = 0.46

    def loader(self) -> DataLoader[Any]:
        names, groups = ("b/1.png", "a/1.png", "a/2.png", "a/3.png"), ("", "3+", "3+", "3+")
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        rows = zip(images, names, groups, strict=True)
        return DataLoader([{"ihc": i, "name": n, "group": g} for i, n, g in rows], batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = loader


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def tiles() -> FourTiles:
    return FourTiles()


@pytest.fixture
def trainer(tmp_path) -> Callable[..., Trainer]:
    """Return `trainer(*callbacks, ...)`, which builds a quiet one that keeps no checkpoints of its own."""

    def build(*callbacks: Callback, **changes: Any) -> Trainer:
        keeps = any(isinstance(callback, Checkpoint) for callback in callbacks)
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "logger": False, "log_every_n_steps": 1}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": keeps}
        return Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **(defaults | quiet | changes))

    return build


@pytest.fixture(autouse=True)
def _wandb_keeps_out_of_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb_cache"))
