"""Ends a trial of an Optuna search early if it is worse than the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from ihc2he.files import write_text

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports each validation to the study of a search, and ends a training that is worse than the other trials.

    It is worse if its best value so far is worse than the median of the finished trials' values at the same epoch
    (Optuna's `MedianPruner`). The training then ends as after its last epoch, the trial counts with the value that it
    has reached, and `pruned.txt` in its folder says so.

    Hydra's Optuna plugin gives a job no trial to report to. Therefore the job opens the study itself; its trial is the
    running one whose parameters are all among the job's overrides. Several are, if the sampler has drawn the same
    values for two jobs that run at a time, or if a killed job has left one. Then the number of the job decides: the
    plugin creates the trials of jobs that run at a time one after the other, and the next ones when all have ended.
    Only the first rank asks the study, and all ranks stop together. If the study cannot be used, training continues.

    Args:
        storage: URL of the study's database; None = there is none.
        study_name: name of the study in it.
        overrides: of this job, `key=value` each.
        monitor: a logged key; the study knows which direction is better.
        dirpath: the run's folder.
        n_startup_trials: finished trials before the first one can be ended.
        n_warmup_epochs: epochs of a trial before it can be ended.
        job: number of the job in its sweep, from 0; None: unknown, and the newest of several trials is taken.
        n_jobs: jobs at a time.
        n_trials: jobs of the sweep.
    """

    def __init__(
        self,
        storage: str | None,
        study_name: str | None,
        overrides: Sequence[str],
        monitor: str,
        dirpath: str,
        n_startup_trials: int = 5,
        n_warmup_epochs: int = 20,
        job: int | None = None,
        n_jobs: int = 1,
        n_trials: int | None = None,
    ) -> None:
        self.storage = storage
        self.study_name = study_name
        self.overrides = set(overrides)
        self.monitor = monitor
        self.dirpath = Path(dirpath)
        self.n_startup_trials = n_startup_trials
        self.n_warmup_epochs = n_warmup_epochs
        self.job = job
        self.n_jobs = n_jobs
        self.n_trials = n_trials
        self._study: Any = None
        self._storage: Any = None
        self._trial: int | None = None  # its id in the storage

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find this job's trial."""
        if not trainer.is_global_zero:
            return
        try:
            self._find_trial()
        except Exception as error:  # from any library; no such error should stop a training
            log.info("No pruning: this job has no trial in a study (%s).", _first_line(error))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the value, and stop all ranks if the study says so."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        lags = self._trial is not None and self.monitor in trainer.callback_metrics and self._lags_behind(trainer)
        if trainer.strategy.broadcast(lags):
            trainer.should_stop = True

    def _find_trial(self) -> None:
        if self.storage is None:
            msg = "hydra.sweeper.storage=null: the study is in the memory of another process"
            raise LookupError(msg)
        import optuna

        self._storage = storage = optuna.storages.RDBStorage(self.storage)
        pruner = optuna.pruners.MedianPruner(self.n_startup_trials, self.n_warmup_epochs)
        self._study = study = optuna.load_study(study_name=self.study_name, storage=storage, pruner=pruner)
        running = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        own = [trial.number for trial in running if trial.params  # those of another process may have none yet
               and self.overrides.issuperset(f"{key}={value}" for key, value in trial.params.items())]  # fmt: skip
        if not own:
            msg = f"study {self.study_name}: no running trial has this job's parameters"
            raise LookupError(msg)
        study_id = storage.get_study_id_from_name(study.study_name)
        asked = max(trial.number for trial in study.get_trials(deepcopy=False))
        self._trial = storage.get_trial_id_from_study_id_trial_number(study_id, self._own(own, asked))

    def _own(self, numbers: Sequence[int], asked: int) -> int:
        """Return which of the trials with this job's parameters is this job's.

        Args:
            numbers: of these trials.
            asked: number of the study's newest trial, which is that of the last of the jobs that run together.

        Raises:
            LookupError: where two sweeps add to the study at a time, so that the numbers tell nothing.
        """
        if self.job is None or len(numbers) == 1:
            return max(numbers)
        together = self.job // self.n_jobs * self.n_jobs
        last = min(together + self.n_jobs, self.n_trials or together + self.n_jobs) - 1
        own = asked - (last - self.job)
        if own not in numbers:
            msg = f"study {self.study_name}: several running trials have this job's parameters"
            raise LookupError(msg)
        return own

    def _lags_behind(self, trainer: Trainer) -> bool:
        value, epoch = float(trainer.callback_metrics[self.monitor]), trainer.current_epoch
        try:
            self._storage.set_trial_intermediate_value(self._trial, epoch, value)
            lags = self._study.pruner.prune(self._study, self._storage.get_trial(self._trial))
        except Exception as error:  # as above: a locked database for instance
            log.warning("The study did not accept this epoch's value; training continues (%s).", _first_line(error))
            return False
        if not lags or epoch + 1 == trainer.max_epochs:  # it is done anyway
            return False
        text = f"Pruned after epoch {epoch}: {self.monitor} was never as good as the median trial of the study."
        write_text(self.dirpath / "pruned.txt", text + "\n")
        log.info("%s", text)
        return True


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
