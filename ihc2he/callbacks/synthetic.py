"""The files of synthetic tiles, in a folder that a later run completes."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.callbacks.claiming import claim, plain
from ihc2he.callbacks.imagefiles import write_json
from ihc2he.errors import ConfigError
from ihc2he.files import write_csv
from ihc2he.images.writing import write_png
from ihc2he.ranks import from_all_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ihc2he.models.generation.sampling import Made

log = logging.getLogger(__name__)

MANIFEST = ("name", "level", "number", "seed", "weights")


class SyntheticTiles(Callback):
    """Writes each tile as `LEVEL/NUMBER.png`, `settings.json`, and at the end `manifest.csv` with all tiles there are.

    Its columns are name, level, number, seed, and weights, the SHA-256 of the generator's. `trained_on.csv` has the
    digests of the tiles and cases that the generator was trained on, where they are known.

    Args:
        out: the folder.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out).expanduser()
        self._lock = ExitStack()
        self._settings: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Lock the folder, on the first rank.

        Raises:
            ConfigError: if another run is using it, or it was begun with other weights or another seed.
        """
        self._settings = plain(pl_module.fingerprint)
        problem = claim(self.out, self._settings, self._lock) if trainer.is_global_zero else None
        problem = trainer.strategy.broadcast(problem)  # so that no rank waits for one that has stopped
        if problem:
            self._lock.close()
            raise ConfigError(problem)
        if trainer.is_global_zero:
            write_json(self.out / "settings.json", self._settings)
            if pl_module.trained_on:
                write_csv(self.out / "trained_on.csv", [{"digest": digest} for digest in pl_module.trained_on])

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the tiles of the batch."""
        tiles: Iterable[Made] = outputs
        for tile in tiles:
            write_png(self.out / tile.level.replace("/", "_") / f"{tile.number:06d}.png", tile.image)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write the manifest, on the first rank; here, because a run without new tiles only comes here."""
        from_all_ranks(None)  # all have written their tiles
        if not trainer.is_global_zero:
            return
        found = sorted((int(path.stem), path) for path in self.out.glob("*/*.png") if path.stem.isdecimal())
        rows = [
            {
                "name": path.relative_to(self.out).as_posix(),
                "level": pl_module.levels[pl_module.level_of(number)],
                "number": number,
                "seed": self._settings["seed"],
                "weights": self._settings["weights"],
            }
            for number, path in found
        ]
        write_csv(self.out / "manifest.csv", rows, MANIFEST)
        self._lock.close()
        log.info("Synthetic tiles: %d in %s", len(rows), self.out)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Unlock the folder."""
        self._lock.close()
