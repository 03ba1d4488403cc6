"""Asks for the test tiles before anything is trained."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from ihc2he.data.stored import StoreDataModule


class CheckTestTiles(Callback):
    """Raises before a training what the test after it would raise, for instance that there are no test tiles.

    Of DataModules without a tile store it knows nothing: theirs may be set up for one stage at a time.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Make the loader of the test tiles, and read none of them; the DataModule was set up before.

        Raises:
            DataError: if there are no test tiles.
            ConfigError: if the settings of the evaluation do not fit them.
        """
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, StoreDataModule):
            data.test_dataloader()
