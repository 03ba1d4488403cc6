"""Figures of a test as a whole, such as a confusion matrix, as PNG files and in every logger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from ihc2he.images.writing import write_png
from ihc2he.internals.lightning import logged_step


class TestFigures(Callback):
    """Writes `pl_module.figures` after a test.

    Args:
        dirpath: figures go to `<dirpath>/<name>.png`.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write and log them, on the first rank."""
        if not trainer.is_global_zero:
            return
        for name, picture in pl_module.figures.items():
            write_png(self.dirpath / f"{name}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"test/{name}", [picture], step=logged_step(trainer))
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"test/{name}", picture, logged_step(trainer), dataformats="HWC")
