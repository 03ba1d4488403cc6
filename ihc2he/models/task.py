"""The contract of a model: what the runner, the callbacks and the export can use, with defaults.

A model of your own derives from `Task` and overrides what it offers; the rest is simply left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from ihc2he.datainfo import DataInfo, info_of
from ihc2he.errors import ConfigError
from ihc2he.metrics.fidelity import Card
from ihc2he.tiling.windows import Block, divide


class Scores(TypedDict, total=False):
    """What a step of a validation or test returns.

    Attributes:
        rows: a row per finished image, with at least `name` and `group`; they become `results.csv`.
        scored: the same images with everything known about them, for callbacks that draw them.
    """

    rows: list[dict[str, Any]]
    scored: list[Any]


class Export(NamedTuple):
    """A network to be saved as a model bundle.

    Attributes:
        network: with the weights to save.
        info: plain values that are needed to use it; see `ihc2he.models.bundle.save_bundle`. `module` is the node
            that builds the network, or None if it is not known how to build it.
    """

    network: nn.Module
    info: dict[str, Any]


class Ranking(NamedTuple):
    """The column of the results per image that selects the worst images.

    Attributes:
        column: a number per image.
        better: its direction, as `Card.better` has it.
        group: only the rows of this group; None: all.
    """

    column: str
    better: str
    group: str | None = None


class Task(LightningModule):
    """A LightningModule with the contract of this package."""

    @property
    def requires_checkpoint(self) -> bool:
        """Whether a test or prediction without a checkpoint would use random weights."""
        return False

    @property
    def data(self) -> DataInfo:
        """The `info` of the Trainer's DataModule; empty if there is no DataModule."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return DataInfo(mpp=None) if data is None else info_of(data)

    @property
    def cards(self) -> Mapping[str, Card]:
        """The name cards of the logged metrics by key, without `val/` or `test/`."""
        return {}

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Tables of the last test besides the usual ones: rows by file name."""
        return {}

    @property
    def figures(self) -> Mapping[str, NDArray[np.uint8]]:
        """Figures of the last test as a whole, HxWx3, by name."""
        return {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes predictions of two runs comparable, as plain values."""
        return {}

    @property
    def ranking(self) -> Ranking | None:
        """The column that ranks images, if the metric that the best checkpoint is chosen by has no value per image.

        None: the first of the cards that has one.
        """
        return None

    def divide(self, height: int, width: int, mpp: float) -> Sequence[Block]:
        """Return the blocks in which an image is predicted, row by row; by default it is one block.

        Args:
            height: of the image, px.
            width: of the image, px.
            mpp: um/px.
        """
        return divide(height, width, max(height, width), 0)

    def exports(self) -> Mapping[str, Export]:
        """Return the networks to save as bundles at the end of training, by the name of the bundle."""
        return {}

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of an optimiser, as Lightning does.

        Lightning refuses this for fused optimisers in mixed precision. In bf16-mixed gradients are not scaled, so
        it is done here.

        Args:
            optimizer: with the gradients.
            gradient_clip_val: largest norm, or value; None: the Trainer's.
            gradient_clip_algorithm: `norm` or `value`; None: the Trainer's, or `norm`.
        """
        value = gradient_clip_val or self.trainer.gradient_clip_val
        kind = gradient_clip_algorithm or self.trainer.gradient_clip_algorithm or "norm"
        if self.trainer.precision != "bf16-mixed":
            super().clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif value:
            clip = nn.utils.clip_grad_value_ if kind == "value" else nn.utils.clip_grad_norm_
            clip([p for group in optimizer.param_groups for p in group["params"]], value)

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        """Return, for each image of an evaluation batch, pictures and their titles; (3, H, W) in [-1, 1]."""
        return []

    def pictures(self) -> Mapping[str, Sequence[tuple[str, Tensor]]]:
        """Return pictures of the model itself after an evaluation, by name: images with titles, in rows of eight."""
        return {}


def rows_of(outputs: Any) -> list[dict[str, Any]]:
    """Return the rows in the result of a step of a test or validation; none if it is not an `Outcome`.

    Raises:
        ConfigError: for a row that does not name its image.
    """
    rows = outputs.get("rows", []) if isinstance(outputs, Mapping) else []
    for row in rows:
        if missing := [key for key in ("name", "group") if key not in row]:
            msg = (
                f"A step of the model returned a row without {' and '.join(missing)}: {row}. Every row of `rows` names "
                "its image and its group, which may be ''."
            )
            raise ConfigError(msg)
    return rows


def as_task(module: LightningModule) -> Task:
    """Return a module if it follows the contract.

    Raises:
        ConfigError: if it does not.
    """
    if not isinstance(module, Task):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        msg = (
            f"model._target_: {kind} is a plain LightningModule. Write `class {type(module).__name__}(Task)` with "
            "`from ihc2he.models.task import Task`, which has a default for everything that a model needs."
        )
        raise ConfigError(msg)
    return module


def required_mpp(info: DataInfo, of: str) -> float:
    """Return the pixel size of the data, um/px.

    Args:
        info: of the DataModule.
        of: the model that needs it, for the message.

    Raises:
        ConfigError: if every image has its own.
    """
    if info.mpp is None:
        msg = f"{of} needs images of one pixel size, and this data does not name one. Pass data.target_mpp in um/px."
        raise ConfigError(msg)
    return info.mpp
