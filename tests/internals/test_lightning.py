"""What Lightning does and does not promise to go on doing: a new version that breaks it is found here first."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ihc2he.internals import lightning as internals


@pytest.mark.parametrize("silent", [False, True])
def test_each_optimiser_counts_a_step_unless_it_is_told_not_to(toy, tiles, trainer, silent):
    class Both(toy):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=1.0), torch.optim.SGD(self.parameters(), lr=1.0)]

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            if silent:
                internals.count_no_steps(second)
            for optimizer in (first, second):
                loss = self.net.weight.sum()
                self.manual_backward(loss)
                optimizer.step()
            return loss.detach()

        def on_train_epoch_end(self):
            pass

    runner = trainer(max_epochs=1)
    runner.fit(Both(), tiles)
    assert runner.global_step == (2 if silent else 4)


def test_a_module_knows_its_trainer_or_none(toy, tiles, trainer):
    module = toy()
    assert internals.trainer_of(module) is None
    runner = trainer(max_epochs=1)
    runner.fit(module, tiles)
    assert internals.trainer_of(module) is runner


def test_whether_statistics_are_shared(trainer):
    assert not internals.shares_batch_statistics(trainer())
    for shared in (False, True):
        assert internals.shares_batch_statistics(trainer(strategy="ddp", devices=2, sync_batchnorm=shared)) is shared


def test_the_counters_of_a_checkpoint_are_those_of_the_trainer(toy, tiles, trainer, tmp_path):
    runner = trainer(max_epochs=3)
    runner.fit(toy(), tiles)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert internals.knows_progress(content)
    assert internals.epochs_done(content) == 3
    assert internals.next_step(content) == internals.logged_step(runner) == 6


def test_a_checkpoint_is_written_when_asked_for_once_a_step_and_is_told(toy, tiles, trainer, tmp_path):
    class Told(internals.Saving):
        saved = 0

        def after_save(self, trainer):
            self.saved += 1

        def on_train_batch_end(self, trainer, *args):
            before = self.saved
            if self.may_save(trainer):
                self.save_now(trainer)
            assert not self.may_save(trainer)
            assert self.saved == before + 1

    callback = Told(tmp_path, filename="x", save_top_k=1)
    runner = trainer(callback, max_epochs=1)
    runner.fit(toy(), tiles)
    assert callback.saved == 2
    assert (tmp_path / "x.ckpt").is_file()
    assert not callback.may_save(runner)  # it no longer trains
    assert isinstance(callback, ModelCheckpoint)


def test_the_list_of_processes_is_the_one_that_the_trainer_watches(tmp_path):
    runner = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=tmp_path)
    assert internals.started_processes(runner) is runner.strategy.launcher.procs
    assert internals.started_processes(Trainer(accelerator="cpu", logger=False)) == []


def test_only_the_first_rank_has_an_experiment(monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    class Own:
        @property
        @internals.rank_zero_experiment
        def experiment(self):
            return 17

    assert Own().experiment == 17
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert Own().experiment.anything() is None


def test_warnings_about_itself_are_left_out():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        internals.silence()
        warnings.warn("Checkpoint directory /a exists and is not empty.", stacklevel=1)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(entry.message) for entry in heard] == ["another"]


def test_the_progress_bar_counts_epochs_from_one(toy, tiles, trainer):
    bar, seen = internals.ProgressBar(), []

    class Looking(Callback):
        def on_train_batch_end(self, *args):
            seen.append(bar.progress.tasks[bar.train_progress_bar_id].description.strip())

    trainer(bar, Looking(), max_epochs=2, enable_progress_bar=True).fit(toy(), tiles)
    assert list(dict.fromkeys(seen)) == ["Epoch 1/2", "Epoch 2/2"]
    seen.clear()
    trainer(bar, Looking(), max_epochs=-1, max_steps=1, enable_progress_bar=True).fit(toy(), tiles)
    assert seen == ["Epoch 1"]
