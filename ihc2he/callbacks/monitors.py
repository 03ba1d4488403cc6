"""Finds a misspelt name of a metric before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ihc2he.callbacks.checkpoint import BestCheckpoint
from ihc2he.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)


class CheckMonitors(Callback):
    """Checks that each monitored or optimised key is one of the module's metrics, which its cards list.

    Nothing can be checked in advance for a module without cards. Keys that begin with `train/` are checked after the
    first step, against what it has logged.

    Args:
        optimized: the key that a sweep optimises, or None.
    """

    def __init__(self, optimized: str | None = None) -> None:
        self.optimized = optimized

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Check callbacks, schedulers and the metric of a sweep.

        Raises:
            ConfigError: for a key that is never logged.
        """
        for who, key in _monitored(trainer):
            self._check(who, key, pl_module.cards)
        self._check("optimized_metric", self.optimized, pl_module.cards)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Check the metric of a sweep, where nothing is trained."""
        self._check("optimized_metric", self.optimized, pl_module.cards)

    on_test_start = on_validation_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say after the first step which monitored key of the training it has not logged."""
        if batch_idx or trainer.current_epoch:
            return
        logged = [key for key in trainer.callback_metrics if key.startswith("train/")]
        for who, key in _monitored(trainer):
            if key.startswith("train/") and key not in logged:
                hint = did_you_mean(key, logged)
                log.warning("%s: the first step has not logged '%s'. Only the end of an epoch may still do so.%s",
                            who, key, hint)  # fmt: skip

    def _check(self, who: str, key: str | None, cards: Mapping[str, Any]) -> None:
        if key is None or not cards or is_known(key, cards):
            return
        start = key.partition("/")[0]
        hint = did_you_mean(key, (f"{start}/{name}" for name in cards))
        if who == BestCheckpoint.__name__:  # which keeps no best one then; the training is none the worse
            log.warning("%s: '%s' is not logged, so no best checkpoint will be kept.%s", who, key, hint)
            return
        msg = f"{who}: '{key}' is not logged.{hint}"
        raise ConfigError(msg)


def is_known(key: str, cards: Iterable[str]) -> bool:
    """Return whether a logged key may be one of a module's: the metric, or the metric of a group.

    >>> [is_known(key, ["he/psnr"]) for key in ("val/he/psnr", "val/he/psnr/3+", "val/he/snr", "train/loss", "epoch")]
    [True, True, False, True, True]
    """
    stage, _, name = key.partition("/")
    parts = name.split("/")
    return stage not in ("val", "test") or any("/".join(parts[:n]) in cards for n in range(1, len(parts) + 1))


def _monitored(trainer: Trainer) -> list[tuple[str, str]]:
    """Return what is monitored, with who does so."""
    found = [
        (type(callback).__name__, callback.monitor)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping | ModelCheckpoint)
    ]
    found += [
        (type(entry.scheduler).__name__, entry.monitor)
        for entry in trainer.lr_scheduler_configs
        if entry.reduce_on_plateau
    ]
    return [(who, key) for who, key in found if key]
