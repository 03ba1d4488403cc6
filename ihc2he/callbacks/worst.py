"""Pictures of the worst tiles of a test."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ihc2he.callbacks.panels import panel, plain_name
from ihc2he.images.writing import write_png
from ihc2he.metrics.cards import badness
from ihc2he.models.task import Ranking, Task, rows_of
from ihc2he.ranks import from_all_ranks
from ihc2he.report.tiles import TilePages

Row = TypeVar("Row", bound=Mapping[str, Any])


class WorstPanels(Callback):
    """Writes the pictures of `pl_module.panels(batch)` for the worst tiles of a test, which are read again for this.

    Args:
        dirpath: pictures go to `<dirpath>/worst/`, which replaces those of an earlier test.
        n_tiles: number of tiles shown.
        max_side: larger pictures are reduced to this many px.
    """

    def __init__(self, dirpath: str, n_tiles: int = 8, max_side: int = 512) -> None:
        self.dirpath = Path(dirpath)
        self.n_tiles = n_tiles
        self.max_side = max_side
        self._names: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset after an earlier test."""
        self._names, self._rows = [], []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep the tiles of the batch and their results."""
        self._names += batch["name"]
        self._rows += rows_of(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the worst tiles of all ranks, each on the rank that tested it."""
        rows = [row for part in from_all_ranks(self._rows) for row in part]
        found = ranking(trainer, pl_module, rows[0]) if rows else None
        if trainer.is_global_zero:
            for old in (self.dirpath / "worst").glob("*.png"):
                old.unlink()
        from_all_ranks(None)  # no rank writes before this is done
        if found is not None:
            for number, row in enumerate(worst(rows, found.column, found.better, self.n_tiles, found.group), 1):
                picture = self._picture(trainer, pl_module, row["name"]) if row["name"] in self._names else None
                if picture is not None:
                    write_png(self.dirpath / "worst" / f"{number:02d}_{plain_name(row['name'])}.png", picture)
        from_all_ranks(None)  # no rank reads before all are written

    def _picture(self, trainer: Trainer, pl_module: Any, name: str) -> Any:
        loader: Any = trainer.test_dataloaders
        index = list(loader.sampler)[self._names.index(name)]
        batch = trainer.strategy.batch_to_device(loader.collate_fn([loader.dataset[index]]))
        shown = pl_module.panels(batch)
        return panel(shown[0], self.max_side) if shown else None


def worst(rows: Sequence[Row], metric: str, better: str, n: int, group: str | None = None) -> list[Row]:
    """Return the rows with the worst values of a metric, the worst first; ties are decided by name.

    Args:
        rows: results per tile, or their text as in `results.csv`.
        metric: a column; rows without a number are ignored.
        better: its direction, as `Card.better` has it.
        n: number of rows.
        group: only the rows of this group.

    >>> rows = [{"name": "a", "ssim": 0.5}, {"name": "b", "ssim": "0.2"}, {"name": "c", "ssim": "nan"}]
    >>> [row["name"] for row in worst(rows, "ssim", "higher", n=1)]
    ['b']
    """
    own = [row for row in rows if row.get(metric) not in (None, "") and group in (None, row.get("group"))]
    known = [row for row in own if math.isfinite(float(row[metric]))]
    return sorted(known, key=lambda row: (-badness(float(row[metric]), better), row["name"]))[:n]


def ranking(trainer: Trainer, task: Task, columns: Collection[str]) -> Ranking | None:
    """Return by which column tiles are ranked; None: there is no such column.

    It is the metric that chooses checkpoints, or, where that has no value per tile, what the model says, or else its
    first card that has one. Pages of tiles may name another group than the model does.

    Args:
        trainer: of the test.
        task: the model.
        columns: of the results per tile.
    """
    for keeper in trainer.checkpoint_callbacks:
        if isinstance(keeper, ModelCheckpoint):
            metric = (keeper.monitor or "").removeprefix("val/")
            if metric in columns:
                return Ranking(metric, "higher" if keeper.mode == "max" else "lower")
    if own := task.ranking:
        pages = [callback.worst_by for callback in trainer.callbacks if isinstance(callback, TilePages)]  # type: ignore[attr-defined]
        return own._replace(group=next(filter(None, pages), own.group))
    return next((Ranking(key, card.better) for key, card in task.cards.items() if key in columns), None)
