"""Writes model bundles at the end of training, for the pipeline, the hub and other programs."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ihc2he.models.bundle import save_bundle

log = logging.getLogger(__name__)


class Bundles(Callback):
    """Writes a bundle for each network in `pl_module.exports()`, with the weights of the best checkpoint.

    Without a best checkpoint it uses the final weights. The pixel size is that of the DataModule.

    Args:
        dirpath: bundles go to `<dirpath>/<name>/`.
        half: save weights in half precision, in half the space.
    """

    def __init__(self, dirpath: str, half: bool = False) -> None:
        self.dirpath = Path(dirpath)
        self.half = half

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the bundles, on the first rank, unless the run was interrupted."""
        if not trainer.is_global_zero or trainer.interrupted:
            return
        keeper = best_keeper(trainer)
        final = None
        if keeper is None:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
            epoch = trainer.current_epoch
        else:
            final = copy.deepcopy(pl_module.state_dict())
            best = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)
            pl_module.load_state_dict(best["state_dict"])
            metrics, epoch = {str(keeper.monitor): float(keeper.best_model_score)}, best["epoch"]  # type: ignore[arg-type]
        shared = {"mpp": pl_module.data.mpp, "epoch": epoch, "metrics": metrics}
        for name, (network, info) in pl_module.exports().items():
            if info.get("module") is None:
                log.warning(
                    "No bundle '%s': its network was passed as an object, so it is not known how to build it.", name
                )
                continue
            log.info("Bundle: %s", save_bundle(network, self.dirpath / name, {**info, **shared}, self.half))
        if final is not None:
            pl_module.load_state_dict(final)


def best_keeper(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback with the best checkpoint by a metric, or None if there is no such checkpoint.

    A run that continues from a file, in a new folder, knows the former best path but no score of it; that checkpoint
    belongs to the other run and does not count.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.monitor or callback.best_model_score is None:
            continue
        if Path(callback.best_model_path).is_file():
            return callback
    return None
