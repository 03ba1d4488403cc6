"""The study's word ends a training; without a study, or with one that fails, it goes on."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from ihc2he.callbacks.pruning import Pruning

EPOCHS = 4
VALUES = (0.1, 0.3, 0.2, 0.4)  # of the metric, by epoch


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/f1", VALUES[min(self.current_epoch, EPOCHS - 1)])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(callback, folder):
    """Return how many epochs were trained."""
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[callback], default_root_dir=folder, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    loader = DataLoader(torch.ones(2, 1), batch_size=1)
    trainer.fit(Model(), loader, loader)
    trainer.validate(trainer.model, loader, verbose=False)
    return trainer.current_epoch


def pruning(folder, **options):
    defaults = {"storage": f"sqlite:///{folder}/study.db", "study_name": "s", "overrides": ["lr=0.5", "experiment=x"]}
    return Pruning(**defaults | {"monitor": "val/f1", "dirpath": str(folder)} | options)


class Study:
    """Stands for a study and its storage: what was told to it, and from which epoch on it wants an end."""

    def __init__(self, end, error=None):
        self.end, self.error, self.told = end, error, {}
        self.pruner = self

    def set_trial_intermediate_value(self, trial, step, value):
        if self.error:
            raise self.error
        self.told[step] = value

    def get_trial(self, trial):
        return trial

    def prune(self, study, trial):
        return max(self.told) >= self.end


def beside(callback, study):
    def find_trial():
        callback._study, callback._storage, callback._trial = study, study, 7

    callback._find_trial = find_trial
    return callback


@pytest.mark.parametrize(("end", "epochs"), [(0, 1), (1, 2), (3, EPOCHS), (9, EPOCHS)])
def test_a_trial_that_lags_behind_ends_after_that_epoch(tmp_path, end, epochs):
    study = Study(end)
    assert train(beside(pruning(tmp_path), study), tmp_path) == epochs
    assert study.told == pytest.approx(dict(enumerate(VALUES[:epochs])))  # nothing of the stage `validate`
    assert (tmp_path / "pruned.txt").exists() == (epochs < EPOCHS)  # after the last epoch it is done anyway


def test_a_study_that_fails_ends_no_training(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ihc2he"):
        callback = beside(pruning(tmp_path), Study(0, RuntimeError("database is locked\nlong story")))
        assert train(callback, tmp_path) == EPOCHS
    lines = {record.getMessage() for record in caplog.records if record.name.startswith("ihc2he")}
    told = "The study did not accept this epoch's value; training continues (RuntimeError: database is locked)."
    assert lines == {told}


@pytest.mark.parametrize("options", [{"storage": None}, {"storage": "sqlite:///nowhere/study.db"}])
def test_without_a_study_one_line_says_so(tmp_path, caplog, options):
    with caplog.at_level(logging.INFO, "ihc2he"):
        assert train(pruning(tmp_path, **options), tmp_path) == EPOCHS
    (line,) = (record.getMessage() for record in caplog.records if record.name.startswith("ihc2he"))
    assert line.startswith("No pruning: this job has no trial in a study")


def test_all_ranks_stop_by_the_word_of_the_first(tmp_path):
    callback = pruning(tmp_path)
    trainer = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), callback_metrics={"val/f1": 0.0}, should_stop=False,
        strategy=SimpleNamespace(broadcast=lambda own: not own), is_global_zero=False,
    )  # fmt: skip
    callback.on_fit_start(trainer, None)
    callback.on_validation_end(trainer, None)
    assert trainer.should_stop


# ------------------------------------------------------------------ with Optuna itself


def ask(study, optuna, lr):
    trial = study.ask()
    trial.suggest_float("lr", lr, lr)
    return trial


@pytest.mark.parametrize(("startup", "warmup", "epochs"), [(3, 0, EPOCHS), (2, 2, 3), (2, 0, 2)])
def test_the_newest_running_trial_with_this_jobs_parameters_is_told(tmp_path, startup, warmup, epochs):
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s", direction="maximize")
    for value in (0.5, 0.6):  # finished trials that were better from the second epoch on
        trial = ask(study, optuna, 0.5)
        for epoch in range(EPOCHS):
            trial.report(0.0 if epoch == 0 else value, epoch)
        study.tell(trial, value)
    killed, own, other = (ask(study, optuna, lr) for lr in (0.5, 0.5, 0.25))
    assert train(pruning(tmp_path, n_startup_trials=startup, n_warmup_epochs=warmup), tmp_path) == epochs
    seen = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s")  # the first has its own memory
    told = {trial.number: trial.intermediate_values for trial in seen.trials[2:]}
    values = dict(enumerate(VALUES[:epochs]))
    assert told == {killed.number: {}, own.number: pytest.approx(values), other.number: {}}


def test_a_job_without_a_trial_is_not_pruned(tmp_path, caplog):
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s", direction="maximize")
    ask(study, optuna, 0.25)
    study.ask()  # that another process has not given its parameters yet
    with caplog.at_level(logging.INFO, "ihc2he"):
        assert train(pruning(tmp_path), tmp_path) == EPOCHS
    assert "study s: no running trial has this job's parameters" in caplog.text


@pytest.mark.parametrize(
    ("job", "numbers", "asked", "own"),
    [
        (0, [7], 9, 7),  # one alone has these parameters
        (None, [3, 7], 9, 7),  # the newest, where nothing else is known
        (0, [6, 7], 7, 6),  # two jobs at a time, which have drawn the same
        (1, [6, 7], 7, 7),
        (2, [2, 8, 9], 9, 8),  # the third was killed in an earlier sweep
        (4, [8, 9], 9, 9),  # the last one, alone
    ],
)
def test_of_trials_with_equal_parameters_each_job_knows_its_own(tmp_path, job, numbers, asked, own):
    assert pruning(tmp_path, job=job, n_jobs=2, n_trials=5)._own(numbers, asked) == own


def test_where_two_sweeps_add_to_a_study_none_is_guessed(tmp_path):
    with pytest.raises(LookupError, match="several running trials have this job's parameters"):
        pruning(tmp_path, job=0, n_jobs=2, n_trials=4)._own([3, 4], 9)


def test_two_jobs_at_a_time_with_equal_parameters_report_to_their_own_trials(tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    killed, first, second = (ask(study, optuna, 0.5) for _ in range(3))
    train(pruning(tmp_path, job=0, n_jobs=2, n_trials=2), tmp_path)
    told = {t.number: bool(t.intermediate_values) for t in optuna.load_study(storage=storage, study_name="s").trials}
    assert told == {killed.number: False, first.number: True, second.number: False}
    train(pruning(tmp_path, job=1, n_jobs=2, n_trials=2), tmp_path)
    told = {t.number: bool(t.intermediate_values) for t in optuna.load_study(storage=storage, study_name="s").trials}
    assert told == {killed.number: False, first.number: True, second.number: True}
