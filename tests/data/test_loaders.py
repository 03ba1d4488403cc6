"""The random order and content of training batches, over epochs, workers, processes and the real Trainer."""

from collections.abc import Iterable
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from ihc2he.data import stored
from ihc2he.data.samplers import SampleIndex


def prints(batches: Iterable[dict[str, Any]]) -> list[tuple[float, float]]:
    """One fingerprint per batch."""
    return [(b["ihc"].double().sum().item(), b["he"].double().sum().item()) for b in batches]


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return prints(loader)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(bci, num_workers):
    alone, many = bci().train_dataloader(), bci(num_workers=num_workers).train_dataloader()
    for epoch in (0, 1):
        assert epoch_of(alone, epoch) == epoch_of(many, epoch)


def test_epochs_and_seeds_differ_and_repeat(bci):
    loader = bci().train_dataloader()
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert not set(first) & set(second)
    assert epoch_of(loader, 0) == first
    assert epoch_of(bci().train_dataloader(), 1) == second, "a resumed run sees what the unbroken one saw"
    assert not set(epoch_of(bci(seed=1).train_dataloader(), 0)) & set(first)


def test_two_processes_share_what_one_would_see(bci):
    data = bci()
    alone = prints(data.train_dataloader())
    shards = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shards.append(prints(data.train_dataloader()))
        assert [b["name"][0] for b in data.test_dataloader()] == [
            data.tiles.rows[i]["name"] for i in data.records["test", "ihc"][rank::2]
        ]
    assert [batch for pair in zip(*shards, strict=True) for batch in pair] == alone[: len(alone) // 2 * 2]


def test_he_is_drawn_independently_of_ihc(bci):
    dataset = bci(flip=False, rotate90=False).train_dataloader().dataset
    partners = {dataset._draw_he(np.random.default_rng(epoch)) for epoch in range(200)}
    assert partners == set(dataset.he)


def test_crops_reach_every_corner(bci, make_bci, write_image):
    root = make_bci()
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:64, :64]
    for path in root.rglob("*.png"):
        write_image(path, ramp)
    dataset = bci(flip=False, rotate90=False).train_dataloader().dataset
    corners = {
        tuple(((dataset[SampleIndex(e, 0)]["ihc"][:2, 0, 0] + 1) * 127.5).round().int().tolist()) for e in range(400)
    }
    rows, columns = zip(*corners, strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 32, 0, 32)


def test_a_plain_index_is_epoch_zero(bci):
    dataset = bci().train_dataloader().dataset
    assert torch.equal(dataset[3]["ihc"], dataset[SampleIndex(0, 3)]["ihc"])


class Recorder(LightningModule):
    """Records what it is given; its loss trains nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[tuple[float, float]]] = {}

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).extend(prints([batch]))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        assert batch["paired"].all()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, tmp_path, **arguments):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, use_distributed_sampler=False, **(quiet | arguments)
    )
    trainer.fit(model, data)
    return model.seen


def test_the_trainer_advances_the_epoch(bci, tmp_path):
    data = bci(num_workers=1)
    seen = fit(data, tmp_path, max_epochs=2)
    data.trainer = None
    loader = data.train_dataloader()
    assert seen == {epoch: epoch_of(loader, epoch) for epoch in (0, 1)}


def test_overfitting_mode_repeats_its_batches(bci, tmp_path):
    seen = fit(bci(), tmp_path, max_epochs=2, overfit_batches=3)
    assert len(seen[0]) == 3
    assert seen[0] == seen[1]


def test_two_builders_at_once_build_once(bci, make_bci, tmp_path, monkeypatch):
    built = []
    write = stored.write_store
    monkeypatch.setattr(stored, "write_store", lambda *a, **k: (built.append(1), write(*a, **k)))
    make_bci()
    threads = [Thread(target=bci) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert built == [1]
