"""Where no progress bar is seen, lines say that a run goes on."""

import logging
import re
import sys
from types import SimpleNamespace

import pytest

from ihc2he.callbacks import lines
from ihc2he.callbacks.checkpoint import BestCheckpoint
from ihc2he.callbacks.lines import ProgressLines


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "ihc2he")
    return lambda: [r.getMessage() for r in caplog.records if r.name == lines.__name__]


def test_a_line_per_epoch_has_losses_validation_and_time_left(toy, tiles, trainer, tmp_path, said):
    class Shown(toy):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss, prog_bar=True)
            return loss

    best = BestCheckpoint(str(tmp_path), "val/score", "max")
    trainer(ProgressLines(), best, max_epochs=3).fit(Shown(scores=(0.25, 0.5, 0.75)), tiles)
    first, second, third = said()
    assert re.fullmatch(r"Epoch 1 of 3: \d+ s, about \d+ s left, train/loss -3, val/score 0\.25", first)
    assert re.fullmatch(r"Epoch 2 of 3: \d+ s, about \d+ s left, train/loss -9, val/score 0\.5", second)
    assert re.fullmatch(r"Epoch 3 of 3: \d+ s, train/loss -15, val/score 0\.75", third)


def test_a_terminal_has_its_progress_bar(toy, tiles, trainer, said, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    trainer(ProgressLines(), max_epochs=1).fit(toy(), tiles)
    assert said() == []


def test_a_long_first_epoch_speaks_before_it_ends_less_and_less_often(toy, tiles, trainer, said, monkeypatch):
    clock = iter(range(0, 4000, 40))  # 40 s from one look at it to the next
    monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    trainer(ProgressLines(), max_epochs=2).fit(toy(), tiles)
    assert [line for line in said() if "batch" in line] == ["Epoch 1 of 2: batch 2 of 2, about 0 s left of it"]
    assert [line.partition(",")[0] for line in said() if "batch" not in line] == [
        "Epoch 1 of 2: 2 min 0 s",
        "Epoch 2 of 2: 2 min 0 s",
    ]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_long_pass_over_the_tiles_says_how_far_it_is(stage, toy, tiles, trainer, said, monkeypatch):
    class Predicting(toy):
        def predict_step(self, batch, batch_idx):
            return None

    tiles.predict_dataloader = tiles.loader
    clock = iter(range(0, 4000, 70))
    monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    getattr(trainer(ProgressLines()), stage)(Predicting(), datamodule=tiles)
    what = {"validate": "Validation", "test": "Test", "predict": "Prediction"}[stage]
    assert said() == [
        f"{what}: batch 1 of 2, about 1 min 10 s left",
        f"{what}: batch 2 of 2, about 0 s left",
    ]
