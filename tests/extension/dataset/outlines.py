"""H&E tiles whose nuclei are polygons, a JSON file beside each image, divided by patient: `P3_tile1.png` is of P3."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ihc2he.data.segmentation import Labelled, SegmentationDataModule
from ihc2he.data.store import Record
from ihc2he.errors import DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images


class OutlinesDataModule(SegmentationDataModule):
    """`SegmentationDataModule` documents the batches and the other arguments.

    Args:
        root: folder of the images; ``NAME.json`` is a list of nuclei with ``type`` and ``outline``, points x, y in px.
        patients: whose tiles are "train", "val" and "test".
        mpp: um/px of the files.
        target_mpp: um/px of the images it yields.
    """

    def __init__(
        self,
        *,
        root: str,
        store: str,
        patients: dict[str, list[str]],
        classes: list[str],
        mpp: float,
        target_mpp: float,
        crop_size: int = 256,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        seed: int = 0,
        augmentation: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        rebuild: bool = False,
    ) -> None:
        super().__init__(
            store=store,
            target_mpp=target_mpp,
            classes=classes,
            crop_size=crop_size,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            samples_per_epoch=None,
            sampler="uniform",
            augmentation=augmentation,
            decoder=decoder,
            rebuild=rebuild,
        )
        self.root = Path(root)
        self.mpp = mpp
        self.patients = patients

    def find_tiles(self) -> list[Path] | None:
        return [self.root / name for name in find_images(self.root)] or None

    def sources(self, tiles: Sequence[Path]) -> dict[str, Path]:
        files = [file for image in tiles for file in (image, image.with_suffix(".json"))]
        return {file.relative_to(self.root).as_posix(): file for file in files}

    def read_record(self, tile: Path) -> Record:
        image = read_image(tile)
        inst_hw, type_hw = np.zeros((2, *image.shape[:2]), np.int32)
        for number, nucleus in enumerate(json.loads(tile.with_suffix(".json").read_text()), 1):
            if nucleus["type"] not in self.classes:
                msg = f"{tile.with_suffix('.json')}: type {nucleus['type']!r}, expected one of {self.classes}."
                raise DataError(msg)
            outline = [np.array(nucleus["outline"], np.int32)]
            cv2.fillPoly(inst_hw, outline, number)
            cv2.fillPoly(type_hw, outline, 1 + self.classes.index(nucleus["type"]))
        row = {"name": tile.stem, "split": "", "group": tile.stem.split("_")[0]}
        return self._to_record(Labelled(image, inst_hw, type_hw), self.mpp, row)

    def divide(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
        return {
            split: [i for i, row in enumerate(rows) if row["group"] in patients]
            for split, patients in self.patients.items()
        }

    def how_to_get(self) -> str:
        return f"{self.root}: found no image. Pass data.root=FOLDER with images and a JSON file beside each."

    def settings(self) -> dict[str, Any]:
        return {"target_mpp": self.target_mpp, "mpp": self.mpp, "classes": self.classes}
