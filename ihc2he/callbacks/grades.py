"""The table of a prediction of grades: a row for each image with its class and the probability of each."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.errors import DataError
from ihc2he.files import write_csv
from ihc2he.models.classification.module import Grade
from ihc2he.ranks import from_all_ranks

log = logging.getLogger(__name__)


class GradeTable(Callback):
    """Writes `levels.csv`: name, level, and the probability of each level; `failed.csv` where images have none.

    Args:
        out: folder for both.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out).expanduser()
        self._grades: list[Grade] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset after an earlier prediction."""
        self._grades = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep the grades of the batch."""
        self._grades += outputs

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the tables, on the first rank.

        Raises:
            DataError: if images could not be graded.
        """
        grades = sorted(grade for part in from_all_ranks(self._grades) for grade in part)
        if not trainer.is_global_zero:
            return
        rows = [
            {"name": name, "level": max(prob, key=prob.__getitem__)} | {f"p {k}": f"{p:.4f}" for k, p in prob.items()}
            for name, prob, _ in grades
            if prob
        ]
        failed = [{"name": grade.name, "error": grade.error} for grade in grades if grade.error]
        (self.out / "failed.csv").unlink(missing_ok=True)
        if rows:
            write_csv(self.out / "levels.csv", rows)
            log.info("Levels of %d images: %s", len(rows), self.out / "levels.csv")
        if failed:
            write_csv(self.out / "failed.csv", failed)
            msg = f"{len(failed)} of {len(grades)} images have no level, such as {failed[0]['name']}: "
            msg += f"{failed[0]['error']}; see {self.out / 'failed.csv'}."
            raise DataError(msg)
