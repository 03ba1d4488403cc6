"""The numbers of a test: `results.csv`, one row per image, `test.csv`, the final table, and the module's own tables."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.files import read_csv, write_csv
from ihc2he.models.task import rows_of
from ihc2he.ranks import from_all_ranks

log = logging.getLogger(__name__)

WEIGHTS = ("checkpoint", "epoch", "step")
COLUMNS = ("metric", "group", "value", "n", "better", "protocol", "versions", *WEIGHTS)
NAMED = ("ihc2he", "torch", "torchmetrics", "numpy", "scikit-image", "opencv-python-headless")  # results depend on them


class Results(Callback):
    """Collects the `rows` that test steps return, from all ranks, and writes both tables.

    A metric's direction and protocol come from `pl_module.cards`. The module's `tables`, rows by file
    name, are also written. Tables of other weights that lie there are renamed after them.

    Args:
        dirpath: the run's folder.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)
        self._rows: list[dict[str, Any]] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete the rows of an earlier test."""
        self._rows = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep the rows of the batch."""
        self._rows += rows_of(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Gather the rows of all ranks and write the tables."""
        parts = from_all_ranks(self._rows)
        if trainer.is_global_zero:
            used = weights_in_use(trainer, trainer.ckpt_path, self.dirpath)
            self._keep_former(used, ("results.csv", *pl_module.tables, "test.csv"))
            rows = sorted((row for part in parts for row in part), key=lambda row: str(row["name"]))
            write_csv(self.dirpath / "results.csv", rows)
            values = {key: float(value) for key, value in trainer.callback_metrics.items()}
            lines = [line | used for line in table(values, rows, pl_module.cards)]
            write_csv(self.dirpath / "test.csv", lines, COLUMNS)
            for name, own in pl_module.tables.items():
                if own:
                    write_csv(self.dirpath / name, own)

    def _keep_former(self, used: Mapping[str, Any], names: Iterable[str]) -> None:
        """Rename the tables of an earlier test unless it was of the same weights."""
        file = self.dirpath / "test.csv"
        if not file.is_file():
            return
        former = next(iter(read_csv(file)), {})
        if all(former.get(key, "") == str(used.get(key, "")) for key in WEIGHTS):
            return
        ending = f"{Path(former.get('checkpoint') or 'former').stem}_step{former.get('step', '')}".removesuffix("_step")
        present = [path for name in names if (path := self.dirpath / name).is_file()]
        kept = [path.replace(path.with_stem(f"{path.stem}_{ending}")).name for path in present]
        log.info("A test of other weights was here before; its tables are now %s.", ", ".join(kept))


def weights_in_use(trainer: Trainer, checkpoint: str | Path | None, folder: Path) -> dict[str, Any]:
    """Return `checkpoint`, `epoch` (from 0) and `step` of the weights of a stage; empty if nothing was trained.

    Args:
        trainer: of the stage.
        checkpoint: that the stage loads; None: the weights are those in memory.
        folder: of the run, below which the path of a checkpoint is relative.
    """
    if checkpoint is None:
        last = {"checkpoint": "end_of_fit", "epoch": trainer.current_epoch - 1, "step": trainer.global_step}
        return last if trainer.global_step else {}
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    path, home = Path(checkpoint).resolve(), folder.resolve()
    shown = path.relative_to(home) if path.is_relative_to(home) else path
    return {"checkpoint": shown.as_posix(), "epoch": content.get("epoch", ""), "step": content.get("global_step", "")}


def table(
    values: Mapping[str, float], rows: Sequence[Mapping[str, Any]], cards: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the final table: a row for each metric and group, with its direction, protocol and versions.

    Args:
        values: logged values; keys `test/<metric>` and `test/<metric>/<group>` are used.
        rows: results per image, to count the images of a value: those with a number that is not NaN.
        cards: name cards by metric.
    """
    versions = " ".join(f"{name}={version(name)}" for name in NAMED)
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for key, value in row.items():
            if isinstance(value, float) and value == value:  # noqa: PLR0124  # NaN is not counted
                counts.update({(key, ""), (key, str(row.get("group", "")))})
    columns = {key for row in rows for key in row}
    images = {(row["name"], str(row.get("group", ""))) for row in rows}
    lines = []
    for key, value in values.items():
        name = key.removeprefix("test/")
        if name == key:
            continue
        metric, group = (name, "") if name in cards else (name.rpartition("/")[0], name.rpartition("/")[2])
        if metric not in cards:
            metric, group = name, ""
        card = cards.get(metric)
        lines.append(
            {
                "metric": metric,
                "group": group,
                "value": value,
                "n": counts[metric, group] if metric in columns else _number(images, group),
                "better": card.better if card else "",
                "protocol": card.protocol if card else "",
                "versions": versions,
            }
        )
    return lines


def _number(images: Iterable[tuple[str, str]], group: str) -> int:
    """Return how many images are of a group; "" for all."""
    return len({name for name, own in images if group in ("", own)})
