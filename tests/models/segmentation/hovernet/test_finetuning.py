"""Two phases: what is frozen, what restarts, and that a resumed run does the same."""

import logging

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader

from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.callbacks.finetuning import TwoPhases
from ihc2he.errors import ConfigError
from ihc2he.models.segmentation.encoders import PreactResNet

STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.1}


class Watch(Callback):
    """Notes of each epoch the batch sizes, learning rates, and what of the encoder moved."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {k: v.clone() for k, v in pl_module.encoder.state_dict().items()}
        self.sizes = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sizes.append(len(batch["image"]))
        self.rates = [round(group["lr"], 8) for group in trainer.optimizers[0].param_groups]

    def on_train_epoch_end(self, trainer, pl_module):
        after = pl_module.encoder.state_dict()
        moved = sum(not torch.equal(self.before[k], after[k]) for k in after)
        self.epochs.append((trainer.current_epoch, self.sizes, self.rates, moved))


@pytest.fixture
def pretrained(monkeypatch):
    """Make the encoder say that it has pretrained weights, of which it loads none."""
    monkeypatch.setattr(PreactResNet, "load_pretrained", lambda self: None)
    return {
        "_target_": "ihc2he.models.segmentation.encoders.PreactResNet",
        "width": 8,
        "units": [1, 1, 1, 1],
        "weights": "given.tar",
    }


def test_the_encoder_stands_still_and_then_all_of_it_moves(segmenter, fit, data, pretrained):
    watch = Watch()
    module = segmenter(encoder=pretrained, scheduler=STEP, lr_encoder=1e-3)
    fit(module, data(n=8, batch_size=4), TwoPhases(3, batch_size=2), watch, max_epochs=5)
    n = len(module.encoder.state_dict())
    assert watch.epochs == [
        (0, [4, 4], [3e-3, 1e-3], 0),
        (1, [4, 4], [3e-3, 1e-3], 0),
        (2, [4, 4], [3e-4, 1e-4], 0),
        (3, [2, 2, 2, 2], [3e-3, 1e-3], n),  # a new schedule
        (4, [2, 2, 2, 2], [3e-3, 1e-3], n),
    ]


def test_without_restart_optimiser_and_schedule_go_on(segmenter, fit, data, pretrained):
    watch = Watch()
    fit(segmenter(encoder=pretrained, scheduler=STEP), data(), TwoPhases(1, restart=False), watch, max_epochs=3)
    assert [(sizes, rates[0]) for _, sizes, rates, _ in watch.epochs] == [([2, 2], r) for r in (3e-3, 3e-3, 3e-4)]
    assert [moved > 0 for *_, moved in watch.epochs] == [False, True, True]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_equals_the_one_in_one_piece(segmenter, fit, data, pretrained, tmp_path, stop):
    def build(seed=0):
        return segmenter(seed, encoder=pretrained, scheduler=STEP)

    whole = fit(build(), data(n=4), TwoPhases(2, batch_size=1), max_epochs=4).lightning_module.state_dict()
    fit(build(), data(n=4), TwoPhases(2, batch_size=1), LastCheckpoint(str(tmp_path)), max_epochs=stop)
    watch = Watch()
    again = fit(build(9), data(n=4), TwoPhases(2, batch_size=1), watch, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert [(epoch, len(sizes)) for epoch, sizes, *_ in watch.epochs] == [
        (e, 2 if e < 2 else 4) for e in range(stop, 4)
    ]
    assert all(torch.equal(whole[k], v) for k, v in again.lightning_module.state_dict().items())


def test_without_a_first_phase_the_second_begins_at_once_and_after_a_resume_too(
    segmenter, fit, data, pretrained, tmp_path
):
    watch = Watch()
    first = [TwoPhases(0, batch_size=1), LastCheckpoint(str(tmp_path)), watch]
    fit(segmenter(encoder=pretrained), data(), *first, max_epochs=1)
    again = [TwoPhases(0, batch_size=1), watch]
    fit(segmenter(encoder=pretrained), data(), *again, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert [sizes for _, sizes, *_ in watch.epochs] == [[1, 1, 1, 1]] * 2
    assert all(moved for *_, moved in watch.epochs)


def test_validation_between_epochs_leaves_the_encoder_frozen(segmenter, fit, data, pretrained):
    watch = Watch()
    fit(segmenter(encoder=pretrained), data(), TwoPhases(3), watch, max_epochs=3, limit_val_batches=1)
    assert [moved for *_, moved in watch.epochs] == [0, 0, 0]


def test_random_weights_are_not_frozen_and_it_says_so(segmenter, fit, data, caplog):
    watch = Watch()
    with caplog.at_level(logging.WARNING):
        fit(segmenter(), data(), TwoPhases(1), watch, max_epochs=1)
    assert watch.epochs[0][-1] > 0
    assert "The encoder starts from random weights" in caplog.text


def test_a_second_batch_size_needs_a_datamodule_that_has_one(segmenter, trainer, data):
    class Fixed(LightningDataModule):
        info = data().info

        def train_dataloader(self):
            return DataLoader(data().train_dataloader().dataset, batch_size=2)

    with pytest.raises(ConfigError, match="batch_size=1 of the second phase needs a DataModule"):
        trainer(callbacks=[TwoPhases(1, batch_size=1)], max_epochs=2).fit(segmenter(), Fixed())
