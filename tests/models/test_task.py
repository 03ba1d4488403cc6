"""The defaults of the contract that do something."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from ihc2he.models.task import Task


class Line(Task):
    """Its gradients are 30 and 40."""

    def __init__(self, fused):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.fused = fused

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, fused=self.fused)

    def training_step(self, batch, batch_idx):
        return (self.weight * torch.tensor([30.0, 40.0])).sum()


class Gradients(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen = pl_module.weight.grad.tolist()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [(None, 5.0, [3.0, 4.0]), ("value", 5.0, [5.0, 5.0]), ("value", 35.0, [30.0, 35.0]), (None, None, [30.0, 40.0])],
)
def test_the_trainer_clips_in_each_precision_for_fused_optimisers_too(fit, precision, fused, kind, value, expected):
    seen = Gradients()
    fit(Line(fused), seen, n=1, precision=precision, gradient_clip_val=value, gradient_clip_algorithm=kind)
    assert seen.seen == pytest.approx(expected, rel=1e-3)
