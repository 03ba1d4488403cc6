"""The numbers of a test: `results.csv`, one row per image, `test.csv`, the final table, and the module's own tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.files import write_csv
from ihc2he.models.task import rows_of
from ihc2he.ranks import from_all_ranks

COLUMNS = ("metric", "group", "value", "n", "better", "protocol", "versions")
NAMED = ("ihc2he", "torch", "torchmetrics", "numpy", "scikit-image", "opencv-python-headless")  # results depend on them


class Results(Callback):
    """Collects the `rows` that test steps return, from all ranks, and writes both tables.

    A metric's direction and protocol come from `pl_module.cards`. The module's `tables`, rows by file
    name, are also written.

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
            rows = sorted((row for part in parts for row in part), key=lambda row: str(row["name"]))
            write_csv(self.dirpath / "results.csv", rows)
            values = {key: float(value) for key, value in trainer.callback_metrics.items()}
            write_csv(self.dirpath / "test.csv", table(values, rows, pl_module.cards), COLUMNS)
            for name, own in pl_module.tables.items():
                if own:
                    write_csv(self.dirpath / name, own)


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
    n_images = len({row["name"] for row in rows})
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
                "n": counts[metric, group] if metric in columns else n_images,
                "better": card.better if card else "",
                "protocol": card.protocol if card else "",
                "versions": versions,
            }
        )
    return lines
