"""What all tests share: one thread per process, no network, the command line as a function, a reader of W&B's files.

Also a module of three weights that offers all that the callbacks ask for, and a run of it on four tiles.
"""

import json
import os
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ihc2he.datainfo import DataInfo
from ihc2he.models.task import Export, Task

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "1024"  # slides would take it from the trainings that follow
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)


@dataclass
class Done:
    """How a command line ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run `ihc2he.train` in this process and in a fresh working directory; return how it ended."""
    from ihc2he import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "FULL_ERROR", False)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["ihc2he", *arguments])
        status = 0
        try:
            train.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return run


@pytest.fixture
def command(tmp_path):
    """Run `python -m ihc2he.train` as a process of its own in a fresh working directory."""

    def run(*arguments: str, cwd: Path | None = None, timeout: float = 240) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "ihc2he.train", *arguments],
            cwd=cwd or tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, request):
    """Make a test fail that reaches for anything but this machine."""
    real = socket.socket.connect

    def connect(self, address):
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1"):
            msg = f"a test reached for the network: {address}"
            raise OSError(msg)
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@dataclass
class OfflineRun:
    """What an offline run of W&B has written, as its server would understand it; nested keys are joined by dots."""

    run: Any  # the record that opens it: project, run_group, display_name, tags
    history: list[dict[str, Any]]
    config: dict[str, Any]
    summary: dict[str, Any]
    artifacts: dict[str, list[Any]]  # by type
    tables: dict[str, dict[str, Any]]  # by key: columns and data
    status: int  # with which it ended
    folder: Path


@pytest.fixture
def offline_runs(tmp_path) -> Callable[..., list[OfflineRun]]:
    """Return `offline_runs(folder)`, which reads back all offline runs below a folder, oldest first."""

    def read(folder: Path = tmp_path) -> list[OfflineRun]:
        import wandb

        wandb.finish()
        wandb.teardown()  # ends the process that writes the files; until then they may be empty
        files = folder.rglob("wandb/offline-run-*/*.wandb")
        return [_offline_run(file) for file in sorted(files, key=lambda file: file.stat().st_mtime)]

    return read


def _offline_run(file: Path) -> OfflineRun:
    found: dict[str, list[Any]] = defaultdict(list)
    for record in _records(file):
        kind = record.WhichOneof("record_type")
        found[kind].append(getattr(record, kind))
    run = found["run"][0]
    summary, config = {}, {}
    for content in found["summary"]:
        summary |= _items(content.update)
    for content in (run.config, *found["config"]):
        config |= _items(content.update)
    artifacts = defaultdict(list)
    for artifact in found["artifact"]:
        artifacts[artifact.type].append(artifact)
    tables = {
        entry.path.removesuffix(".table.json"): json.loads(Path(entry.local_path).read_text())
        for table in artifacts["run_table"]
        for entry in table.manifest.contents
        if entry.path.endswith(".table.json")
    }
    status = found["exit"][0].exit_code if found["exit"] else -1
    history = [_items(row.item) for row in found["history"]]
    return OfflineRun(run, history, config, summary, artifacts, tables, status, file.parent)


def _items(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        rest = 32768 - position % 32768
        if rest < 7:  # too short for a record's header: filled with zeros
            position += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


NODE = {"_target_": "torch.nn.PReLU", "num_parameters": 3}


class Toy(Task):
    """Each step lowers its three weights by 1; `val/score` is what `scores` says of the epoch."""

    def __init__(self, scores: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.PReLU(3)
        self.node: dict[str, Any] | None = NODE
        self.scores = scores
        self.known = {"he/psnr": SimpleNamespace(better="higher", protocol="whole tile")}
        nn.init.zeros_(self.net.weight)

    @property
    def cards(self) -> dict[str, Any]:
        return self.known

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
        return {"net": Export(self.net, {"module": self.node, "role": "translator"})}


class FourTiles(LightningDataModule):
    """Tiles of 16 px in batches of 2, two of them with the same file name in two folders."""

    info = DataInfo(mpp=0.46)

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
