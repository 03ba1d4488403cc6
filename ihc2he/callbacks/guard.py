"""Stops an adaptation without labels that drifts away from the network it started from."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from ihc2he.errors import ConfigError, Ihc2heError, require_setting
from ihc2he.nuclei.instances import centroids
from ihc2he.nuclei.matching import match_points

log = logging.getLogger(__name__)

RADIUS_UM = 3.0
LEAST_NUCLEI = 20  # of the starting network on all tiles; fewer say nothing


class DriftError(Ihc2heError):
    """A network that adapts to unlabelled tiles finds other nuclei than the one it started from."""


class DriftGuard(Callback):
    """Compares, at each validation and at the end, the nuclei on a few unlabelled tiles with those found at the start.

    The DataModule has the tiles, `guarded()`. What is compared is what is validated, and at the end what is exported:
    put this callback before one that exchanges weights, and before `Bundles`. Logged are `val/agreement`, the F1 of
    matched centres within 3 um with the nuclei at the start as the truth, and `val/count_ratio`, their number now over
    that at the start. If a bound is broken the run ends there, so no bundle is written; after a validation, `last.ckpt`
    is that of an earlier epoch. The nuclei at the start are in the checkpoints, so a continued run keeps to them.

    Args:
        least_agreement: lower bound of the agreement.
        most_change: upper bound of the ratio, and one over the lower.

    Raises:
        ConfigError: for a bound outside its range.
    """

    def __init__(self, least_agreement: float = 0.7, most_change: float = 1.5) -> None:
        group = "callbacks.guard"
        require_setting(group, "least_agreement", least_agreement, 0 <= least_agreement < 1, "from 0 to below 1")
        require_setting(group, "most_change", most_change, most_change > 1, "above 1")
        self.least_agreement, self.most_change = least_agreement, most_change
        self._start: list[NDArray[np.float64]] = []  # centres on each tile, px
        self._tiles: list[Tensor] = []
        self._judged = -1  # the step

    def state_dict(self) -> dict[str, Any]:
        """Return the nuclei at the start."""
        return {"start": [torch.from_numpy(centres_n2) for centres_n2 in self._start]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep to the nuclei at the start of the run that is continued."""
        self._start = [centres_n2.numpy() for centres_n2 in state_dict["start"]]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Find the nuclei at the start.

        Raises:
            ConfigError: for another DataModule, or if there are hardly any nuclei.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "guarded"):
            msg = f"callbacks.guard: {type(data).__name__} has no unlabelled tiles to look at. Pass data=adapting."
            raise ConfigError(msg)
        self._tiles = data.guarded()
        self._start = self._start or self._found(pl_module)
        if (n := sum(map(len, self._start))) < LEAST_NUCLEI:
            msg = (
                f"callbacks.guard: the network finds {n} nuclei on {len(self._tiles)} tiles of data.ihc before it is "
                f"adapted, expected at least {LEAST_NUCLEI}. Check data.ihc_mpp, or begin with another model.init."
            )
            raise ConfigError(msg)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, and log how well both agree."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            values = self._judge(trainer, pl_module)
            pl_module.log_dict({f"val/{key}": value for key, value in values.items()}, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what was not validated; here, because an average has taken the place of the weights by now."""
        if self._tiles and self._judged < trainer.global_step and not trainer.interrupted:
            self._judge(trainer, pl_module)

    def _judge(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        self._judged = trainer.global_step
        # Ranks may differ in the statistics of batches; they have to decide alike.
        values = trainer.strategy.broadcast(agreement(self._start, self._found(pl_module), RADIUS_UM / pl_module.mpp))
        ratio = values["count_ratio"]
        if values["agreement"] >= self.least_agreement and 1 / self.most_change <= ratio <= self.most_change:
            return values
        msg = (
            f"The network has drifted by step {trainer.global_step}: on {len(self._tiles)} tiles of data.ihc it finds "
            f"{ratio:.2f} times as many nuclei as at the start (bounds {1 / self.most_change:.2f} and "
            f"{self.most_change:.2f}), and agrees with the start by an F1 of {values['agreement']:.3f} (bound "
            f"{self.least_agreement}). No bundle is written. Begin anew with a smaller model.optimizer.lr or "
            "model.weight_unlabelled, or a larger model.confidence."
        )
        raise DriftError(msg)

    def _found(self, pl_module: Any) -> list[NDArray[np.float64]]:
        was = pl_module.training
        pl_module.eval()
        nuclei = [pl_module.predict_nuclei(tile.to(pl_module.device))[0] for tile in self._tiles]
        pl_module.train(was)
        return [centroids(one.inst_hw) for one in nuclei]


def agreement(start: list[NDArray[np.float64]], now: list[NDArray[np.float64]], radius: float) -> dict[str, float]:
    """Return the F1 of matched points of two networks over all tiles, and the ratio of their numbers.

    Args:
        start: (N, 2) points on each tile, not all empty.
        now: likewise.
        radius: of a match, in the unit of the points.

    >>> agreement([np.array([[0, 0], [9, 0]])], [np.array([[1, 0]])], 3)
    {'agreement': 0.6666666666666666, 'count_ratio': 0.5}
    """
    matched = sum(len(match_points(before, after, radius)[0]) for before, after in zip(start, now, strict=True))
    n_start, n_now = (sum(map(len, points)) for points in (start, now))
    return {"agreement": 2 * matched / (n_start + n_now), "count_ratio": n_now / n_start}
