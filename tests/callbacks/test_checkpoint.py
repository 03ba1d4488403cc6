import logging

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from ihc2he.callbacks.checkpoint import BestCheckpoint, LastCheckpoint, StopOnNaN, TrainingDivergedError
from ihc2he.models.task import Task


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.ckpt"))


def load(path):
    return torch.load(path, weights_only=True)


def test_the_last_checkpoint_is_written_after_the_schedulers_have_stepped(toy, tiles, trainer, tmp_path):
    trainer(LastCheckpoint(str(tmp_path))).fit(toy(), tiles)
    assert checkpoints(tmp_path) == ["last.ckpt"]
    checkpoint = load(tmp_path / "last.ckpt")
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 3
    assert checkpoint["global_step"] == 6
    assert checkpoint["state_dict"]["net.weight"].tolist() == [-6, -6, -6]


@pytest.mark.parametrize(("mode", "best", "epoch"), [("max", 0.9, 1), ("min", 0.1, 0)])
def test_the_best_checkpoint_is_that_of_the_best_epoch(toy, tiles, trainer, tmp_path, mode, best, epoch):
    keeper = BestCheckpoint(str(tmp_path), "val/score", mode)
    trainer(keeper).fit(toy(scores=(0.1, 0.9, 0.5)), tiles)
    assert checkpoints(tmp_path) == [f"best_epoch{epoch:03d}.ckpt"]  # and no '=' in it
    assert load(tmp_path / checkpoints(tmp_path)[0])["epoch"] == epoch
    assert keeper.best_model_score.item() == pytest.approx(best)


def test_a_metric_that_is_not_logged_is_said_once(toy, tiles, trainer, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ihc2he"):
        keepers = [BestCheckpoint(str(tmp_path), "val/he/ssim", "max"), LastCheckpoint(str(tmp_path))]
        trainer(*keepers).fit(toy(scores=(0.1, 0.9, 0.5)), tiles)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("ihc2he")] == [
        "'val/he/ssim' is not logged, so only the last checkpoint is kept, not the best. Logged: val/score."
    ]
    assert checkpoints(tmp_path) == ["last.ckpt"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "kept"), [((NAN, NAN, NAN), ["last.ckpt"]), ((NAN, 0.5, NAN), ["best_epoch001.ckpt", "last.ckpt"])]
)
def test_a_metric_that_is_nan_makes_no_checkpoint_the_best(toy, tiles, trainer, tmp_path, caplog, scores, kept):
    with caplog.at_level(logging.WARNING, "ihc2he"):
        trainer(*keepers(tmp_path)).fit(toy(scores=scores), tiles)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("ihc2he")] == [
        "'val/score' is NaN in epoch 0, so it does not count for the best checkpoint."
    ]
    assert checkpoints(tmp_path) == kept


def spoilt_loss(toy, epoch, value):
    class Spoilt(toy):
        def loss(self, batch, batch_idx):
            loss = super().loss(batch, batch_idx)
            return loss * value if self.current_epoch == epoch and batch_idx == 0 else loss

    return Spoilt(scores=(0.1, 0.9, 0.95))


def spoilt_weights(toy, epoch):
    """Return a module whose last step of an epoch leaves a NaN in a weight, after a loss that was a number."""

    class Spoilt(toy):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.current_epoch == epoch and batch_idx == 1:
                self.net.weight.data[1] = torch.nan

    return Spoilt(scores=(0.1, 0.9, 0.95))


def keepers(folder):
    return [BestCheckpoint(str(folder), "val/score", "max"), LastCheckpoint(str(folder))]


@pytest.mark.parametrize(
    "spoil",
    [lambda t: spoilt_loss(t, 1, torch.nan), lambda t: spoilt_loss(t, 1, torch.inf), lambda t: spoilt_weights(t, 1)],
)
def test_a_run_that_diverges_ends_and_leaves_its_good_checkpoints(toy, tiles, trainer, tmp_path, spoil):
    with pytest.raises(TrainingDivergedError, match=r"NaN or infinite in epoch 1.*gradient_clip_val=1") as caught:
        trainer(*keepers(tmp_path), StopOnNaN()).fit(spoil(toy), tiles)
    assert f"The last good checkpoint is {tmp_path / 'last.ckpt'}." in str(caught.value)
    assert checkpoints(tmp_path) == ["best_epoch000.ckpt", "last.ckpt"]
    for name in checkpoints(tmp_path):
        assert load(tmp_path / name)["epoch"] == 0
        assert load(tmp_path / name)["state_dict"]["net.weight"].isfinite().all()


@pytest.mark.parametrize("spoil", [lambda t: spoilt_loss(t, 0, torch.nan), lambda t: spoilt_weights(t, 0)])
def test_a_run_that_diverges_at_once_keeps_nothing(toy, tiles, trainer, tmp_path, spoil):
    with pytest.raises(TrainingDivergedError, match=r"epoch 0.*No checkpoint had been written yet"):
        trainer(*keepers(tmp_path), StopOnNaN()).fit(spoil(toy), tiles)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize(("every", "steps"), [(1, 1), (50, 2)])
def test_losses_are_looked_at_every_n_steps_and_at_the_end(toy, tiles, trainer, every, steps):
    seen = []

    class Count(Callback):
        def on_train_batch_start(self, *args):
            seen.append(1)

    with pytest.raises(TrainingDivergedError):
        trainer(StopOnNaN(every), Count()).fit(spoilt_loss(toy, 0, torch.nan), tiles)
    assert len(seen) == steps


def test_a_sound_run_is_left_alone_and_so_is_the_judging_of_any_weights(toy, tiles, trainer):
    trainer(StopOnNaN(1)).fit(toy(), tiles)
    broken = toy()
    torch.nn.init.constant_(broken.net.weight, torch.nan)
    trainer(StopOnNaN(1)).validate(broken, tiles)


def test_the_clipping_that_is_advised_is_one_that_the_model_has(trainer, tiles):
    class Automatic(Task):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(torch.nan))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def training_step(self, batch, batch_idx):
            return self.weight * 1.0

    with pytest.raises(TrainingDivergedError, match=r"with \+trainer\.gradient_clip_val=1, or"):
        trainer(StopOnNaN(1)).fit(Automatic(), tiles)
