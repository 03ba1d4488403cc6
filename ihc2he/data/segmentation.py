"""The shared part of the DataModules of nuclei: stored tiles, and batches with targets.

Shape suffixes: b = batch, c = colour (3), h, w = height, width, 2 = x and y.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ihc2he.build import build
from ihc2he.data.augmentation import NucleiAugmentation
from ihc2he.data.exploration import write_nuclei_index
from ihc2he.data.painting import Painter
from ihc2he.data.samplers import SampleIndex, balancing_weights, presence_weights
from ihc2he.data.store import WHOLE, Record, TileStore
from ihc2he.data.stored import StoreDataModule
from ihc2he.data.transforms import to_tensor
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.labels import number_consecutively
from ihc2he.nuclei.decoders.base import Decoder
from ihc2he.nuclei.instances import instance_types
from ihc2he.nuclei.targets import relabel_pieces
from ihc2he.tiling.resampling import resample, resized_labels

log = logging.getLogger(__name__)

SAMPLERS = ("uniform", "class_balanced", "tissue_balanced", "class_tissue_balanced", "source_balanced")


class Labelled(NamedTuple):
    """A tile with its nuclei at its own pixel size.

    Attributes:
        image: HxWx3 uint8 RGB.
        inst_hw: int32, 0 = background.
        type_hw: int32, 1 to the number of classes on nuclei, 0 elsewhere; None if there are no types.
    """

    image: NDArray[np.uint8]
    inst_hw: NDArray[np.int32]
    type_hw: NDArray[np.int32] | None


@dataclass(kw_only=True, eq=False)
class SegmentationDataModule(StoreDataModule):
    """Batches of H&E with nuclei.

    A training batch is ``{"image": (N, 3, H, W) float32 in [0, 1], "inst": (N, H, W) int32, "type": (N, H, W) int64}``
    and the targets of the decoder, for instance ``"hv": (N, 2, H, W) float32``: random crops, augmented, reflected
    where a tile is smaller than the crop; the pieces into which a crop cuts a nucleus are instances of their own. 0 =
    background in ``inst`` and ``type``; ``type`` is absent if there are no types. ``painted`` (N,) says which crops the
    augmentation has painted as IHC; it is absent without one. A validation or test batch holds
    whole tiles, no targets, and also ``name`` and ``group`` (the tissue) as lists of str. Order and randomness depend
    on (seed, epoch, index) alone. `StoreDataModule` documents the other arguments.

    Args:
        classes: names of the types from 1; empty if there are none.
        sampler: "uniform"; "class_balanced": each class is drawn equally often;
            "tissue_balanced": each tissue is drawn equally often; "class_tissue_balanced": half of the draws of each;
            "source_balanced": each source of tiles is drawn equally often.
        augmentation: a `NucleiAugmentation`, or its configuration; None: none.
        decoder: of the model, or its configuration: its targets are in the training batches; None: no targets.

    Raises:
        ConfigError: for a value outside its range.
    """

    batch_size: int = 8
    classes: Sequence[str] = ()
    augmentation: dict[str, Any] | NucleiAugmentation | None = None
    decoder: dict[str, Any] | Decoder | None = None

    reports: ClassVar = {"index.csv": write_nuclei_index}
    samplers = SAMPLERS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classes = list(self.classes)
        self._augmentation = None if self.augmentation is None else build(self.augmentation, NucleiAugmentation)
        self._decoder = None if self.decoder is None else build(self.decoder, Decoder)  # type: ignore[type-abstract]

    @property
    def info(self) -> DataInfo:
        """What models, callbacks and the runner can know about the images."""
        return DataInfo(self.target_mpp, self.classes, store=self.store_path)

    @property
    def painter(self) -> Painter | None:
        """What paints crops of the training as IHC; None: nothing does."""
        painter = None if self._augmentation is None else self._augmentation.paint
        return painter if painter is not None and painter.share else None

    @abstractmethod
    def divide(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
        """Return the numbers of the records of "train", "val" and "test"."""

    def prepare_data(self) -> None:
        super().prepare_data()
        rows = TileStore(self.store_path).rows
        if vanished := sum(row.get("vanished", 0) for row in rows):
            of = vanished + sum(row["nuclei"] for row in rows)
            log.warning(
                "%d of %d nuclei are smaller than a pixel of %g um and are lost.", vanished, of, self.target_mpp
            )

    def setup(self, stage: str | None = None) -> None:
        """Open the store, divide its records, and prepare the augmentation of a training; reads no image of them."""
        if self._augmentation is not None and stage in (None, "fit"):
            self._augmentation.prepare()
        self.tiles = TileStore(self.store_path)
        self.records = self.divide(self.tiles.rows)

    def train_crops(self, augmented: bool = True) -> "NucleiCrops":
        """Return the crops of the training tiles.

        Args:
            augmented: or as they are in the tiles.
        """
        return NucleiCrops(
            self.tiles,
            self._required("train"),
            crop_size=self.crop_size,
            augmentation=self._augmentation if augmented else None,
            seed=self.seed,
            targets=None if self._decoder is None else partial(self._decoder.targets, mpp=self.target_mpp),
        )

    def training_set(self) -> Dataset[dict[str, torch.Tensor]]:
        """Return the samples of the training, numbered as the training tiles are."""
        return self.train_crops()

    def train_dataloader(self) -> DataLoader:
        records = self._required("train")
        sampler = self._epoch_sampler(len(records), self.samples_per_epoch or len(records), self._weights(records))
        return self._loader(self.training_set(), sampler, self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(self.records["val"], "val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(self._required("test"), "test")

    def _required(self, split: str) -> list[int]:
        if not self.records[split]:
            counts = ", ".join(f"{len(records)} {name}" for name, records in self.records.items())
            msg = f"{self.store_path}: found no {split} tiles (of {counts}); expected at least one."
            raise DataError(msg)
        return self.records[split]

    def _eval_loader(self, records: Sequence[int], split: str) -> DataLoader:
        sizes = {tuple(self.tiles.rows[i]["shapes"]["image"]) for i in records}
        if self.eval_batch_size > 1 and len(sizes) > 1:
            msg = f"data.eval_batch_size={self.eval_batch_size}: {split} tiles have {len(sizes)} sizes. Pass 1."
            raise ConfigError(msg)
        sampler = self._shard_sampler(len(records), split)
        return self._loader(NucleiTiles(self.tiles, records), sampler, self.eval_batch_size)

    def _weights(self, records: Sequence[int]) -> list[float] | None:
        """Return a weight per training tile, or None if all are equal."""
        rows = [self.tiles.rows[i] for i in records]
        parts = []
        if self.sampler in ("class_balanced", "class_tissue_balanced"):
            if not self.classes:
                msg = f"data.sampler={self.sampler} needs types of nuclei; this dataset has none. Pass uniform."
                raise ConfigError(msg)
            parts.append(presence_weights([[name for name, n in row["counts"].items() if n] for row in rows]))
        if self.sampler in ("tissue_balanced", "class_tissue_balanced"):
            if not all(row["group"] for row in rows):
                msg = (
                    f"data.sampler={self.sampler} needs the tissue of every tile; this dataset has none. Pass uniform."
                )
                raise ConfigError(msg)
            parts.append(balancing_weights([row["group"] for row in rows]))
        if self.sampler == "source_balanced":
            if not all(row.get("source") for row in rows):
                msg = "data.sampler=source_balanced needs several roots, or the column source in tiles.csv."
                raise ConfigError(msg)
            parts.append(balancing_weights([row["source"] for row in rows]))
        if not parts:
            return None
        return np.mean([np.asarray(part) / sum(part) for part in parts], axis=0).tolist()

    def _to_record(self, tile: Labelled, source_mpp: float, row: dict[str, Any]) -> Record:
        """Return the stored arrays of a tile, at `target_mpp` and with instances from 1 to n."""
        image = resample(tile.image, source_mpp, self.target_mpp)
        inst_hw = number_consecutively(resized_labels(tile.inst_hw, *image.shape[:2]))
        vanished = len(np.unique(tile.inst_hw[tile.inst_hw > 0])) - int(inst_hw.max())
        arrays = {"image": image, "inst": _compact(inst_hw)}
        row = row | {"nuclei": int(inst_hw.max())} | ({"vanished": vanished} if vanished else {})
        if tile.type_hw is not None:
            type_hw = resized_labels(tile.type_hw, *image.shape[:2])
            counts = np.bincount(instance_types(inst_hw, type_hw)[0], minlength=len(self.classes) + 1)[1:]
            arrays["type"] = _compact(type_hw)
            row["counts"] = dict(zip(self.classes, counts.tolist(), strict=True))
        return Record(arrays, row)


class NucleiCrops(Dataset[dict[str, torch.Tensor]]):
    """Random augmented crops with their targets.

    Everything random is a pure function of (seed, epoch, index).

    Args:
        store: with fields ``image``, ``inst`` and perhaps ``type``.
        records: record numbers; index i means record i modulo their number.
        crop_size: side of the crops in px.
        augmentation: of image and labels; None for none.
        seed: of the windows and the augmentation.
        targets: from an instance map to further training targets; None: none.
    """

    def __init__(
        self,
        store: TileStore,
        records: Sequence[int],
        *,
        crop_size: int,
        augmentation: NucleiAugmentation | None,
        seed: int,
        targets: Callable[[NDArray[np.int32]], Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> None:
        self.store = store
        self.records = records
        self.crop_size = crop_size
        self.augmentation = augmentation
        self.seed = seed
        self.targets = targets

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | SampleIndex) -> dict[str, torch.Tensor]:
        epoch, index = key if isinstance(key, SampleIndex) else (0, key)
        rng = np.random.default_rng((self.seed, epoch, index))
        image, *labels = random_crop(self.store, self.records[index % len(self.records)], self.crop_size, rng)
        known = {}
        if self.augmentation is not None:
            seed = int(rng.integers(2**32))
            image, labels = self.augmentation(image, labels, seed)
            known = {"painted": torch.tensor(self.augmentation.paints(seed))}
        inst_hw = relabel_pieces(labels[0])
        targets = {} if self.targets is None else self.targets(inst_hw)
        learned = {name: torch.from_numpy(target) for name, target in targets.items()}
        return _tensors(image, inst_hw, *labels[1:]) | learned | known


class NucleiTiles(Dataset[dict[str, Any]]):
    """Every tile once, whole and unchanged."""

    def __init__(self, store: TileStore, records: Sequence[int]) -> None:
        self.store = store
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.records[index]
        row = self.store.rows[number]
        arrays = (_read(self.store, number, field) for field in row["shapes"])
        return _tensors(*arrays) | {"name": row["name"], "group": row["group"]}


def random_crop(store: TileStore, number: int, side: int, rng: np.random.Generator) -> list[NDArray]:
    """Return the same random window of the image of a tile and its label maps, reflected if the tile is smaller.

    Args:
        store: of the tile.
        number: of its record.
        side: of the window, px.
        rng: source of randomness.
    """
    height, width = store.rows[number]["shapes"]["image"][:2]
    top, left = rng.integers((max(height - side, 0) + 1, max(width - side, 0) + 1))
    window = (slice(top, top + side), slice(left, left + side))
    missing = [((m := max(side - length, 0)) // 2, m - m // 2) for length in (height, width)]
    arrays = [_read(store, number, field, window) for field in store.rows[number]["shapes"]]
    if height < side or width < side:
        arrays = [np.pad(array, missing + [(0, 0)] * (array.ndim - 2), mode="symmetric") for array in arrays]
    return arrays


def _read(store: TileStore, number: int, field: str, window: tuple[slice, slice] = WHOLE) -> NDArray[Any]:
    array = store.read(number, field, window)
    return array if field == "image" else array.astype(np.int32)


def _tensors(
    image: NDArray[np.uint8], inst_hw: NDArray[np.int32], type_hw: NDArray[np.int32] | None = None
) -> dict[str, torch.Tensor]:
    sample = {"image": to_tensor(image.astype(np.float32) / np.float32(255)), "inst": torch.from_numpy(inst_hw)}
    return sample if type_hw is None else sample | {"type": torch.from_numpy(type_hw.astype(np.int64))}


def _compact(labels: NDArray[np.integer]) -> NDArray[Any]:
    return labels.astype(np.min_scalar_type(int(labels.max())))
