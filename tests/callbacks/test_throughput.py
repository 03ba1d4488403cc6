import csv
import time

import pytest
import torch
from lightning.pytorch import Callback

from ihc2he.callbacks import throughput
from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.callbacks.throughput import Throughput
from ihc2he.loggers.base import Csv


class Clock:
    """A clock that only `sleep` moves, so that the figures of a test are exact."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(throughput, "time", found)
    return found


@pytest.fixture
def slow(toy, tiles, clock):
    """A module whose steps take 3 s, those of the first epoch 100 s, and tiles of which a batch takes 1 s."""

    class Slow(toy):
        def training_step(self, batch, batch_idx):
            clock.sleep(100.0 if self.current_epoch == 0 else 3.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock.sleep(1000.0)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            clock.sleep(1.0)
            return batch

        def on_save_checkpoint(self, checkpoint):
            clock.sleep(1000.0)

    return Slow(), tiles


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as stream:
        found = [row for row in csv.DictReader(stream) if row["throughput/images_per_second"]]
    names = ("step", "throughput/images_per_second", "throughput/data_wait")
    return [tuple(float(row[name]) for name in names) for row in found]


# Epochs of 2 batches of 2 tiles: two steps of 3 s, and between them 1 s; the turn of the epoch is left out.
@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1, [(1, 2 / 100, 0.0), (2, 2 / 4, 1 / 4), (3, 2 / 3, 0.0), (4, 2 / 4, 1 / 4), (5, 2 / 3, 0.0)]),
        (2, [(3, 4 / 7, 1 / 7), (5, 4 / 7, 1 / 7)]),
        (3, [(5, 6 / 10, 1 / 10)]),
    ],
)
def test_validation_checkpoints_and_the_first_steps_do_not_count(slow, trainer, tmp_path, every, expected):
    module, tiles = slow
    keeper = LastCheckpoint(str(tmp_path / "checkpoints"))
    run = trainer(Throughput(), keeper, logger=Csv(str(tmp_path)), max_epochs=3, log_every_n_steps=every)
    run.fit(module, tiles)
    assert [pytest.approx(row) for row in expected] == rows(tmp_path)


def test_a_checkpoint_within_an_epoch_does_not_count(slow, trainer, tmp_path):
    module, tiles = slow
    keeper = LastCheckpoint(str(tmp_path / "checkpoints"), every_n_steps=1)
    run = trainer(Throughput(), keeper, logger=Csv(str(tmp_path)), max_epochs=3, log_every_n_steps=2)
    run.fit(module, tiles)
    assert [pytest.approx(row) for row in ((3, 4 / 6, 0.0), (5, 4 / 6, 0.0))] == rows(tmp_path)


def test_a_validation_within_an_epoch_does_not_count(slow, trainer, tmp_path):
    module, tiles = slow
    changes = {"max_epochs": 3, "log_every_n_steps": 2, "val_check_interval": 1}
    trainer(Throughput(), logger=Csv(str(tmp_path)), **changes).fit(module, tiles)
    assert [pytest.approx(row) for row in ((3, 4 / 6, 0.0), (5, 4 / 6, 0.0))] == rows(tmp_path)


def test_the_turn_of_an_epoch_does_not_count(slow, trainer, tmp_path, clock):
    class Turns(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            clock.sleep(1000.0)

    module, tiles = slow
    changes = {"max_epochs": 4, "log_every_n_steps": 4, "limit_val_batches": 0}
    trainer(Throughput(), Turns(), logger=Csv(str(tmp_path)), **changes).fit(module, tiles)
    assert [pytest.approx(row) for row in ((7, 8 / 14, 2 / 14),)] == rows(tmp_path)


def test_images_of_all_ranks_are_counted_and_the_memory_of_a_gpu_is_named(monkeypatch, clock):
    logged = []

    class Logger:
        def log_metrics(self, metrics, step):
            logged.append((metrics, step))

    class Loop:
        _batches_that_stepped = 0

    class Fit:
        epoch_loop = Loop()

    class Strategy:
        root_device = torch.device("cuda", 0)

    class Trainer:
        fit_loop, strategy, loggers, world_size, log_every_n_steps = Fit(), Strategy(), [Logger()], 4, 2

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2.5e9)
    callback, trainer = Throughput(), Trainer()
    for step in range(5):
        Loop._batches_that_stepped = step
        callback.on_train_batch_start(trainer, None, {"name": ["a"], "ihc": torch.zeros(8, 3)}, step)
        clock.sleep(4.0)
        callback.on_train_batch_end(trainer, None, None, None, step)
    shown = {
        "throughput/images_per_second": 4 * 16 / 8,
        "throughput/data_wait": 0.0,
        "throughput/gpu_memory_gb": 2.5,
    }
    assert logged == [(shown, 3)]


def test_nothing_is_logged_where_the_trainer_logs_no_steps(toy, tiles, trainer, tmp_path):
    trainer(Throughput(), logger=Csv(str(tmp_path)), log_every_n_steps=0).fit(toy(scores=(0.5,)), tiles)
    assert "throughput" not in (tmp_path / "metrics.csv").read_text()


def test_it_costs_less_than_a_tenth_of_a_millisecond_a_step():
    class Loop:
        _batches_that_stepped = 7

    class Fit:
        epoch_loop = Loop()

    class Trainer:
        fit_loop, log_every_n_steps = Fit(), 50

    batch = {"ihc": torch.zeros(1, 3), "he": torch.zeros(1, 3)}
    callback, trainer = Throughput(), Trainer()
    best = 1.0
    for _ in range(5):
        started = time.perf_counter()
        for step in range(100):
            callback.on_train_batch_start(trainer, None, batch, step)
            callback.on_train_batch_end(trainer, None, None, batch, step)
        best = min(best, (time.perf_counter() - started) / 100)
    assert best < 1e-4


def test_the_callback_never_waits_for_the_device(monkeypatch, slow, trainer, tmp_path):
    """What would make the CPU wait for a GPU, such as `item` or `synchronize`, is not called by it."""
    module, tiles = slow
    own = []

    class Watched(Throughput):
        def on_train_batch_start(self, *args):
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "item", lambda *_: own.append("item"))
                patch.setattr(torch.cuda, "synchronize", lambda *_: own.append("synchronize"))
                super().on_train_batch_start(*args)

    trainer(Watched(), Callback(), logger=Csv(str(tmp_path)), log_every_n_steps=1).fit(module, tiles)
    assert rows(tmp_path)
    assert own == []
