"""What a run returns to a sweep, without the command line."""

import json

import pytest
import torch
from torch.utils.data import DataLoader

from ihc2he.metrics.cards import Card
from ihc2he.models.task import Task
from ihc2he.runner import run


class Counting(Task):
    """Logs how often it was validated, and a distance when it is tested."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.validated = 0

    @property
    def cards(self):
        return {"score": Card("score", "Score", True, "", 1, ""), "distance": Card("distance", "", False, "", 1, "")}

    def train_dataloader(self):
        return DataLoader([torch.ones(1)])

    val_dataloader = test_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        self.validated += 1
        self.log("val/score", float(self.validated))

    def test_step(self, batch, batch_idx):
        self.log("test/distance", 0.5)


@pytest.mark.parametrize(
    ("stages", "key", "value", "better"),
    [
        (["fit", "test"], "val/score", 1, "higher"),
        (["fit", "validate", "test"], "val/score", 2, "higher"),
        (["fit", "test"], "test/distance", 0.5, "lower"),
    ],
)
def test_a_sweep_gets_a_metric_of_any_stage_as_it_was_logged_last(tmp_path, stages, key, value, better):
    trainer = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    cfg = {
        "paths": {"output_dir": str(tmp_path)}, "stages": stages, "optimized_metric": key, "ckpt_path": None,
        "model": {"_target_": f"{__name__}.Counting"}, "data": {}, "seed": 0,
        "float32_matmul_precision": "high", "callbacks": {}, "logger": {},
        "trainer": trainer | {"_target_": "lightning.pytorch.Trainer", "enable_progress_bar": False},
    }  # fmt: skip
    assert run(cfg) == value
    assert json.loads((tmp_path / "run.json").read_text())["better"] == better
