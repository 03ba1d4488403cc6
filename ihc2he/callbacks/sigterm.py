"""What a stage that does not train does on SIGTERM, which clusters and `kill` send."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException


def hears_signals() -> bool:
    """Return whether this thread is the one that gets signals, and alone may say what they do."""
    return threading.current_thread() is threading.main_thread()


class EndOnSigterm(Callback):
    """Ends validation, test and prediction at once; the next run goes on after the last result that was written.

    Lightning notes the signal and looks at it in training only. In training, `LastCheckpoint` does this.
    """

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Listen from before the data is prepared until the last file of the stage is written."""
        if not hears_signals():
            yield
            return
        former = signal.signal(signal.SIGTERM, _end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)

    def _listen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handler of Lightning, which waits until all ranks were told."""
        if trainer.state.fn != TrainerFn.FITTING and hears_signals():
            signal.signal(signal.SIGTERM, _end)

    on_validation_start = on_test_start = on_predict_start = _listen


def _end(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; files are being closed
    raise SIGTERMException
