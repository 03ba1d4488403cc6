"""A misspelt name of a metric ends a run before its first step."""

import logging
from types import MappingProxyType

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ihc2he.callbacks.checkpoint import BestCheckpoint
from ihc2he.callbacks.monitors import CheckMonitors
from ihc2he.errors import ConfigError


@pytest.mark.parametrize(
    ("callback", "optimized", "who"),
    [
        (lambda folder: EarlyStopping("val/he/psnrr"), None, "EarlyStopping"),
        (lambda folder: ModelCheckpoint(folder, monitor="val/he/psnrr"), None, "ModelCheckpoint"),
        (lambda folder: CheckMonitors(), "val/he/psnrr", "optimized_metric"),
    ],
)
def test_a_misspelt_metric_is_found_before_the_first_step(toy, tiles, trainer, tmp_path, callback, optimized, who):
    module = toy()
    runner = trainer(CheckMonitors(optimized), callback(tmp_path), max_epochs=1)
    with pytest.raises(ConfigError, match=f"{who}: 'val/he/psnrr' is not logged. Did you mean 'val/he/psnr'?"):
        runner.fit(module, tiles)
    assert runner.global_step == 0


def test_that_of_a_scheduler_too(toy, tiles, trainer):
    class Plateau(toy):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = True

        def training_step(self, batch, batch_idx):
            return self.net.weight.sum()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/he/pnsr"}}

        def on_train_epoch_end(self):
            pass

    runner = trainer(CheckMonitors(), max_epochs=1)
    with pytest.raises(ConfigError, match="ReduceLROnPlateau: 'val/he/pnsr' is not logged"):
        runner.fit(Plateau(), tiles)


def test_a_group_of_a_metric_is_known_and_a_module_without_cards_is_not_judged(toy, tiles, trainer, tmp_path):
    trainer(CheckMonitors("val/he/psnr/3+"), max_epochs=1).fit(toy(), tiles)

    class Plain(toy):
        cards = MappingProxyType({})

    trainer(CheckMonitors("val/anything"), max_epochs=1).fit(Plain(), tiles)


def test_what_the_first_step_has_not_logged_is_said_after_it(toy, tiles, trainer, tmp_path, caplog):
    stop = EarlyStopping("train/los_g", check_on_train_epoch_end=True, strict=False)
    best = BestCheckpoint(str(tmp_path), "val/he/pnsr", "max")
    with caplog.at_level(logging.WARNING, "ihc2he"):
        trainer(CheckMonitors(), stop, best, max_epochs=2).fit(toy(), tiles)
    said = [record.getMessage() for record in caplog.records if record.name.endswith("monitors")]
    assert said == [
        "BestCheckpoint: 'val/he/pnsr' is not logged, so no best checkpoint will be kept. Did you mean 'val/he/psnr'?",
        "EarlyStopping: the first step has not logged 'train/los_g'. Only the end of an epoch may still do so. Did you "
        "mean 'train/loss_g'?",
    ]
