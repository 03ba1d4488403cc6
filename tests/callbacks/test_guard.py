"""The guard lets a training pass that keeps its nuclei, and stops one that does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ihc2he import config
from ihc2he.callbacks.averaging import AveragedWeights
from ihc2he.callbacks.bundles import Bundles
from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.callbacks.guard import DriftError, DriftGuard, agreement
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError

NUCLEI = 25


class Tiles(LightningDataModule):
    info = DataInfo(mpp=0.5)

    def guarded(self):
        return [torch.zeros(1, 3, 100, 100)]

    def loader(self):
        return DataLoader([{"name": "a", "group": ""}] * 4, batch_size=2)

    train_dataloader = val_dataloader = loader


@pytest.fixture
def drifting(toy):
    """A network that finds a grid of nuclei, which `finds(step)` changes."""

    class Drifting(toy):
        mpp = 0.5

        def __init__(self, finds):
            super().__init__()
            self.finds = finds

        def predict_nuclei(self, x_bchw):
            assert not self.training
            inst_hw = np.zeros((100, 100), np.int32)
            shift, n = self.finds(self.trainer.global_step)
            for k in range(n):
                inst_hw[shift + k // 5 * 18 : shift + k // 5 * 18 + 3, k % 5 * 18 : k % 5 * 18 + 3] = k + 1
            return [SimpleNamespace(inst_hw=inst_hw)]

    return Drifting


def test_agreement_by_hand():
    start = [np.array([[0, 0], [20, 0], [40, 0]]), np.array([[0, 0]])]
    now = [np.array([[2, 0], [20, 9]]), np.zeros((0, 2))]
    assert agreement(start, now, 6) == {"agreement": pytest.approx(2 * 1 / (4 + 2)), "count_ratio": 0.5}


def test_a_training_that_keeps_its_nuclei_passes_and_logs_how_well(drifting, trainer, tmp_path):
    module = drifting(lambda step: (2 if step > 2 else 0, NUCLEI - 5 if step > 2 else NUCLEI))
    runner = trainer(DriftGuard(), Bundles(str(tmp_path / "bundles")), max_epochs=2)
    runner.fit(module, Tiles())
    assert float(runner.callback_metrics["val/agreement"]) == pytest.approx(2 * 20 / 45)  # moved by 1 um
    assert float(runner.callback_metrics["val/count_ratio"]) == pytest.approx(0.8)
    assert (tmp_path / "bundles" / "net").is_dir()
    assert module.training


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ((9, NUCLEI), r"drifted by step 4: on 1 tiles .* 1.00 times .* F1 of 0.000 \(bound 0.7\)"),
        ((0, 14), r"0.56 times as many nuclei as at the start \(bounds 0.67 and 1.50\)"),
    ],
    ids=["elsewhere", "fewer"],
)
def test_a_drift_ends_the_run_without_a_bundle_and_keeps_the_checkpoint_before_it(
    drifting, trainer, tmp_path, after, said
):
    module = drifting(lambda step: after if step > 2 else (0, NUCLEI))
    callbacks = [DriftGuard(), LastCheckpoint(str(tmp_path)), Bundles(str(tmp_path / "bundles"))]
    with pytest.raises(DriftError, match=said):
        trainer(*callbacks, max_epochs=3).fit(module, Tiles())
    assert not (tmp_path / "bundles").exists()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    with pytest.raises(DriftError):  # also where no validation would have noticed
        trainer(DriftGuard(), Bundles(str(tmp_path / "bundles")), max_epochs=3, limit_val_batches=0).fit(
            module, Tiles()
        )
    assert not (tmp_path / "bundles").exists()


def test_what_is_judged_at_the_end_is_what_is_exported(drifting, trainer, tmp_path):
    judged = []

    def finds(step):
        judged.append([parameter.detach().clone() for parameter in module.parameters()])
        return 0, NUCLEI

    module = drifting(finds)
    trainer(DriftGuard(), AveragedWeights(0.9), max_epochs=1, limit_val_batches=0).fit(module, Tiles())
    first, last = ([*map(torch.Tensor.tolist, weights)] for weights in (judged[0], judged[-1]))
    assert len(judged) == 2
    assert first != last == [parameter.tolist() for parameter in module.parameters()]


def test_the_guard_comes_before_bundles_and_averages():
    config.register()
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        names = [*compose("train", overrides=["experiment=nuclei_adapt"]).callbacks]
    assert names.index("guard") < min(names.index("bundles"), names.index("average"))


def test_a_continued_run_is_compared_with_the_first_start(drifting, trainer, tmp_path):
    module = drifting(lambda step: (0, NUCLEI))
    trainer(DriftGuard(), LastCheckpoint(str(tmp_path)), max_epochs=1).fit(module, Tiles())
    module = drifting(lambda step: (9, NUCLEI))
    with pytest.raises(DriftError, match="drifted by step 4"):
        trainer(DriftGuard(), max_epochs=2).fit(module, Tiles(), ckpt_path=str(tmp_path / "last.ckpt"))


def test_a_network_without_nuclei_and_data_without_tiles_are_refused(drifting, trainer, tiles):
    with pytest.raises(ConfigError, match=r"finds 3 nuclei on 1 tiles of data.ihc before it is adapted"):
        trainer(DriftGuard()).fit(drifting(lambda step: (0, 3)), Tiles())
    with pytest.raises(ConfigError, match=r"FourTiles has no unlabelled tiles to look at. Pass data=adapting."):
        trainer(DriftGuard()).fit(drifting(lambda step: (0, NUCLEI)), tiles)
    with pytest.raises(ConfigError, match=r"callbacks.guard.most_change=1: expected above 1"):
        DriftGuard(most_change=1)
