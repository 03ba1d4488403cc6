"""Pictures of the same few tiles after every validation, as PNG files and in every logger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from torch import Tensor

from ihc2he.images.writing import write_png
from ihc2he.internals.lightning import logged_step
from ihc2he.nuclei.drawing import LINE_PX, write

HEADER_PX = LINE_PX
COLUMNS = 8  # of a picture of the model itself


class ImagePanels(Callback):
    """Writes the pictures of `pl_module.panels(batch)` for the first tiles of a validation or test set.

    After it those of `pl_module.pictures()` follow, which show the model itself.

    Args:
        dirpath: pictures go to `<dirpath>/<stage>/`.
        n_images: number of tiles shown.
        every_n_epochs: epochs between two validations with pictures.
        max_side: larger pictures are reduced to this many px.
    """

    def __init__(self, dirpath: str, n_images: int = 4, every_n_epochs: int = 1, max_side: int = 512) -> None:
        self.dirpath = Path(dirpath)
        self.n_images = n_images
        self.every_n_epochs = every_n_epochs
        self.max_side = max_side
        self._shown = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        skip = trainer.sanity_checking or trainer.current_epoch % self.every_n_epochs
        self._shown = self.n_images if skip else 0

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._shown = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Show the tiles of the batch, while there are too few."""
        self._show(trainer, pl_module, batch, "val")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Show the tiles of the batch, while there are too few."""
        self._show(trainer, pl_module, batch, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the model itself, where tiles were shown."""
        if not trainer.sanity_checking and trainer.current_epoch % self.every_n_epochs == 0:
            self._show_model(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the model itself."""
        self._show_model(trainer, pl_module, "test")

    def _show_model(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        for name, row in pl_module.pictures().items():
            self._write(trainer, panel(row, self.max_side, COLUMNS), stage, name, name)

    def _show(self, trainer: Trainer, pl_module: Any, batch: dict[str, Any], stage: str) -> None:
        if not trainer.is_global_zero or self._shown >= self.n_images:
            return
        rows = pl_module.panels(batch)[: self.n_images - self._shown]
        for name, row in zip(batch["name"], rows, strict=False):
            self._write(trainer, panel(row, self.max_side), stage, f"{self._shown:02d}", name)
            self._shown += 1

    def _write(self, trainer: Trainer, picture: NDArray[np.uint8], stage: str, key: str, name: str) -> None:
        """Write a picture as a file and to every logger.

        Args:
            trainer: of the stage.
            picture: HxWx3.
            stage: `val` or `test`.
            key: the same for the same place in each evaluation, for loggers.
            name: of what it shows.
        """
        write_png(self.dirpath / stage / f"epoch{trainer.current_epoch:03d}_{plain_name(name)}.png", picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"panels/{stage}_{key}", [picture], step=logged_step(trainer), caption=[str(name)])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"panels/{stage}_{key}", picture, logged_step(trainer), dataformats="HWC")


def panel(row: Sequence[tuple[str, Tensor]], max_side: int = 512, columns: int = 4) -> NDArray[np.uint8]:
    """Return pictures next to each other with their titles above, as HxWx3 uint8 RGB.

    Args:
        row: titles and (3, H, W) images in [-1, 1].
        max_side: the largest picture is reduced to this many px, and smaller ones are enlarged to its size.
        columns: pictures per line.
    """
    side = min(max_side, max(max(image.shape[-2:]) for _, image in row))
    cells = [_cell(title, image, side) for title, image in row]
    height, width = (max(cell.shape[i] for cell in cells) for i in (0, 1))
    canvas = np.full((-(-len(cells) // columns) * height, min(columns, len(cells)) * width, 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return canvas


def _cell(title: str, image_chw: Tensor, side: int) -> NDArray[np.uint8]:
    image = ((image_chw.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    picture = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    scale = side / max(picture.shape[:2])
    if scale != 1:
        kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=kind)
    cell = np.full((picture.shape[0] + HEADER_PX + 2, max(picture.shape[1], 96) + 4, 3), 255, np.uint8)
    cell[HEADER_PX : HEADER_PX + picture.shape[0], 2 : 2 + picture.shape[1]] = picture
    write(cell, title, 3, 0)
    return cell


def plain_name(name: str) -> str:
    """Return the name of a tile as part of a file's name.

    >>> plain_name("3+/00001.png")
    '3+_00001'
    """
    return Path(name).with_suffix("").as_posix().replace("/", "_")
