"""Tiles with one label each, such as a HER2 level: for classifiers, and for GANs that make such tiles.

Shape suffixes: n = tiles; h, w = height, width; c = channels, three for each stain.
"""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ihc2he.data.leaks import warn_of_leaks
from ihc2he.data.origins import digests, read_origins, refuse_known
from ihc2he.data.pseudocases import pseudo_cases
from ihc2he.data.samplers import SampleIndex, balancing_weights
from ihc2he.data.splits import reduced, split_as_published, split_by_case
from ihc2he.data.store import TileStore, map_in_threads
from ihc2he.data.stored import StoreDataModule, require
from ihc2he.data.synthetic import SYNTHETIC, read_synthetic, synthetic_counts
from ihc2he.data.transforms import augment, normalise, training_transform
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError
from ihc2he.tiling.resampling import resize

if TYPE_CHECKING:
    import albumentations

log = logging.getLogger(__name__)

KINDS = ("published", "cases", "pseudo_cases")
MIN_SIZE = 16  # px


@dataclass
class Tiles:
    """Tiles of one size in memory, with what is known about each.

    Attributes:
        image_nhwc: uint8.
        label_n: numbers of their classes, from 0.
        names: of the tiles.
        cases: of the tiles; "" where none is known.
    """

    image_nhwc: NDArray[np.uint8]
    label_n: NDArray[np.int64]
    names: list[str]
    cases: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def joined(self, other: "Tiles") -> "Tiles":
        """Return both, one after the other."""
        return Tiles(
            np.concatenate([self.image_nhwc, other.image_nhwc]),
            np.concatenate([self.label_n, other.label_n]),
            self.names + other.names,
            self.cases + other.cases,
        )


class LabelledTiles(Dataset[dict[str, Any]]):
    """Tiles as the models get them; an augmentation is a pure function of (seed, epoch, index).

    Args:
        tiles: index i means tile i modulo their number.
        transform: from uint8 HxWxC to float32 in [-1, 1]; None: unchanged.
        seed: of the augmentation.
    """

    def __init__(self, tiles: Tiles, transform: "albumentations.Compose | None" = None, seed: int = 0) -> None:
        self.tiles = tiles
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, key: int | SampleIndex) -> dict[str, Any]:
        epoch, index = key if isinstance(key, SampleIndex) else (0, key)
        i = index % len(self.tiles)
        image_hwc = self.tiles.image_nhwc[i]
        if self.transform is None:
            image_chw = normalise(image_hwc)
        else:
            own_seed = int(np.random.default_rng((self.seed, epoch, index)).integers(2**32))
            image_chw = augment(self.transform, image_hwc, own_seed)
        known = {"label": int(self.tiles.label_n[i]), "name": self.tiles.names[i], "case": self.tiles.cases[i]}
        return {"image": image_chw, **known}


@dataclass(kw_only=True, eq=False)
class LabelledDataModule(StoreDataModule):
    """Batches of whole tiles with their class, reduced to one size.

    A batch is ``{"image": (N, C, size, size) float32 in [-1, 1], "label": (N,) int64, "name": list of str, "case": list
    of str}``; labels are positions in ``info.classes``. C is 3, or 6 for two stains. Of each tile the central square is
    used, as large as in the smallest tile, so ``info.mpp`` is known once the store is built. The reduced tiles are kept
    in memory: 49 kB for 128 px. Order and augmentation depend on (seed, epoch, index) alone. `StoreDataModule`
    documents the other arguments.

    Args:
        size: side of the tiles that the model sees, px.
        split_seed: of the division into training, validation and test, whatever `seed` is.
        split: "published", the splits of the dataset, where a missing one is a share of the training tiles, or of their
            cases if all are known; "cases":
            whole cases; "pseudo_cases": whole clusters of tiles that look like one slide, see `data.pseudocases`.
        val_fraction: of the tiles or cases, for validation.
        test_fraction: of the tiles or cases, for testing.
        case_share: of the training cases, or of the training tiles where no case is known, that are used; every class
            keeps its share.
        real_share: of the training tiles of these cases; 0: train on synthetic tiles only.
        synthetic: folder with synthetic training tiles: PNG files and `manifest.csv` with the columns name and level.
        synthetic_share: synthetic tiles for each training tile at `real_share` 1, in the ratio of its classes; or
            "balance": as many of each class as make it as frequent as the most frequent one.
        flip: augment by left-right and up-down flips.
        rotate90: augment by rotations of multiples of 90 degrees.
        rotate: augment by rotations of up to this many degrees; the corners are mirrored.
        crop: smallest share of a tile's area that a random crop, enlarged again, keeps; 1: no crops.
        brightness_contrast: largest relative change of both.

    Attributes:
        one_class_a_case: whether all tiles of a case have the same class.

    Raises:
        ConfigError: for a value outside its range.
    """

    size: int = 128
    batch_size: int = 32
    eval_batch_size: int = 32
    crop_size: int = field(default=1, init=False)
    split: str = "published"
    split_seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.2
    case_share: float = 1.0
    real_share: float = 1.0
    synthetic: str | None = None
    synthetic_share: float | str = 1.0
    flip: bool = True
    rotate90: bool = True
    rotate: float = 0.0
    crop: float = 1.0
    brightness_contrast: float = 0.0

    reports: ClassVar = {}
    samplers = ("uniform", "level_balanced")
    one_class_a_case: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require("size", self.size, self.size >= MIN_SIZE, f"at least {MIN_SIZE} px")
        require("split", self.split, self.split in KINDS, " or ".join(KINDS))
        require("split_seed", self.split_seed, self.split_seed >= 0, "0 or more")
        for name in ("val_fraction", "test_fraction"):
            require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "from 0 to below 1")
        require("case_share", self.case_share, 0 < self.case_share <= 1, "above 0 and at most 1")
        require("real_share", self.real_share, 0 <= self.real_share <= 1, "from 0 to 1")
        share = self.synthetic_share
        good = share == "balance" if isinstance(share, str) else share > 0
        require("synthetic_share", share, good, "above 0, or balance")
        require("rotate", self.rotate, 0 <= self.rotate <= 180, "0 to 180 degrees")
        require("crop", self.crop, 0 < self.crop <= 1, "above 0 and at most 1")
        change = self.brightness_contrast
        require("brightness_contrast", change, 0 <= change < 1, "from 0 to below 1")
        if not self.real_share and self.synthetic is None:
            msg = "data.real_share=0: there is nothing to train on. Pass data.synthetic=FOLDER too."
            raise ConfigError(msg)
        self._parts: dict[str, Tiles] = {}
        self._trained_on: set[str] = set()

    # ------------------------------------------------------------------ what a subclass says

    @property
    @abstractmethod
    def fields(self) -> Sequence[str]:
        """The arrays of a record that make the channels of a tile."""

    @abstractmethod
    def classes_of(self, store: TileStore) -> list[str]:
        """Return the names of the classes; the ``group`` of a row is one of them."""

    @abstractmethod
    def cases_of(self, store: TileStore) -> list[str]:
        """Return the case of each record; "" where it is not known."""

    # ------------------------------------------------------------------ what others may know

    @property
    def info(self) -> DataInfo:
        """What models, callbacks and the runner can know; pixel size and classes once there is a store."""
        info = DataInfo(None, store=self.store_path, size=self.size, channels=3 * len(self.fields))
        if not self.store_path.is_file():
            return info
        store = self._store()
        mpp = self.target_mpp * self._field(store) / self.size
        classes = self.classes_of(store)
        counts = np.bincount(self._parts["train"].label_n, minlength=len(classes)).tolist() if self._parts else ()
        trained_on = sorted(self._trained_on)
        return replace(info, mpp=mpp, classes=classes, class_counts=counts, trained_on=trained_on)

    def _store(self) -> TileStore:
        if getattr(self, "tiles", None) is None:
            self.tiles = TileStore(self.store_path)
        return self.tiles

    def _field(self, store: TileStore) -> int:
        """Return the side of the square that is used of each tile, px of the store."""
        return min(min(row["shapes"][name][:2]) for row in store.rows for name in self.fields)

    # ------------------------------------------------------------------ preparation

    def prepare_data(self) -> None:
        """Build the store, and the pseudo-cases if they are asked for."""
        super().prepare_data()
        self.look_at_store()

    def look_at_store(self) -> None:
        """Find the pseudo-cases if they are asked for, once there is a store."""
        self.tiles = TileStore(self.store_path)
        if self.split == "pseudo_cases":
            self._pseudo_cases(self.tiles)

    def _pseudo_cases(self, store: TileStore) -> list[str]:
        return pseudo_cases(self.store_folder, store, self.one_class_a_case)

    def setup(self, stage: str | None = None) -> None:
        """Divide the tiles and read them, once."""
        if self._parts:
            return
        store = self._store()
        self.field = self._field(store)
        if self.field < self.size:
            msg = (
                f"data.size={self.size}: the tiles in {self.store_path} are only {self.field} px wide at "
                f"{self.target_mpp} um/px. Pass data.size={self.field} or less."
            )
            raise ConfigError(msg)
        self.records = self.divide(store)
        classes = self.classes_of(store)
        number = {name: i for i, name in enumerate(classes)}
        if unknown := sorted({row["group"] for row in store.rows} - {*classes}):
            msg = f"data.classes={classes}: {self.store_path} has tiles of {', '.join(unknown)} too. Name all classes."
            raise ConfigError(msg)
        for split, records in self.records.items():
            images = [*map_in_threads(lambda i: self._read(store, i), records)]
            self._parts[split] = Tiles(
                np.stack(images) if images else np.zeros((0, self.size, self.size, 3 * len(self.fields)), np.uint8),
                np.array([number[store.rows[i]["group"]] for i in records], np.int64),
                [store.rows[i]["name"] for i in records],
                [self._cases[i] for i in records],
            )
        warn_of_leaks({split: (part.image_nhwc, part.names, part.cases) for split, part in self._parts.items()})
        self._parts["train"] = self._with_synthetic(self._parts["train"], classes)

    def divide(self, store: TileStore) -> dict[str, list[int]]:
        """Return the record numbers of each split.

        Raises:
            DataError: if a case is to be kept together that is not known.
        """
        labels = [row["group"] for row in store.rows]
        self._cases = self._pseudo_cases(store) if self.split == "pseudo_cases" else self.cases_of(store)
        shares = {"test": self.test_fraction, "val": self.val_fraction}
        if self.split == "published":
            published = [row["split"] for row in store.rows]
            records = split_as_published(published, labels, shares, self.split_seed, self._cases)
        else:
            if unknown := self._cases.count(""):
                msg = (
                    f"data.split={self.split}: the case of {unknown} of {len(labels)} tiles is not known. "
                    f"{self.how_to_name_cases()} Or pass data.split=pseudo_cases, which guesses them by their looks."
                )
                raise DataError(msg)
            records = split_by_case(self._cases, labels, shares, self.split_seed)
        records["train"] = reduced(records["train"], self._cases, labels, self.case_share, self.seed)
        return records

    @abstractmethod
    def how_to_name_cases(self) -> str:
        """Return a sentence: where a user writes the case of each tile."""

    def _read(self, store: TileStore, number: int) -> NDArray[np.uint8]:
        """Return the central square of a tile, at the size of the model."""
        parts = []
        for name in self.fields:
            height, width = store.rows[number]["shapes"][name][:2]
            top, left = (height - self.field) // 2, (width - self.field) // 2
            window = (slice(top, top + self.field), slice(left, left + self.field))
            parts.append(resize(store.read(number, name, window), self.size, self.size))
        return np.concatenate(parts, axis=-1)

    def _with_synthetic(self, real: Tiles, classes: Sequence[str]) -> Tiles:
        """Return the training tiles: the share of the real ones that is used, and the synthetic ones."""
        labels = [classes[i] for i in real.label_n]
        kept = (
            reduced(range(len(real)), [""] * len(real), labels, self.real_share, self.seed) if self.real_share else []
        )
        used = Tiles(
            real.image_nhwc[kept], real.label_n[kept], [real.names[i] for i in kept], [real.cases[i] for i in kept]
        )
        self._trained_on = digests(used.names, [] if self.split == "pseudo_cases" else used.cases)
        if self.synthetic is None:
            return used
        self._trained_on |= self._known_to_generator(Path(self.synthetic).expanduser())
        present = [labels[i] for i in kept]
        counts = synthetic_counts(labels, present, classes, self.synthetic_share)
        images, names, levels = read_synthetic(
            self.synthetic, counts, (self.size, self.size, real.image_nhwc.shape[-1]), self.seed
        )
        label_n = np.array([classes.index(level) for level in levels], np.int64)
        log.info("Training on %d real and %d synthetic tiles.", len(used), len(names))
        return used.joined(Tiles(images, label_n, names, [SYNTHETIC] * len(names)))

    def _known_to_generator(self, folder: Path) -> set[str]:
        """Return digests of what the generator of the synthetic tiles was trained on, none of it validation or test."""
        known = read_origins(folder)
        parts = {split: (part.names, part.cases) for split, part in self._parts.items() if split != "train"}
        refuse_known(folder, known, parts, self.split)
        return known

    # ------------------------------------------------------------------ batches

    def part(self, split: str) -> Tiles:
        """Return the tiles of a split, after `setup`; those of the training include synthetic ones.

        Raises:
            DataError: if there are none.
        """
        if not len(self._parts[split]):
            counts = ", ".join(f"{len(tiles)} {name}" for name, tiles in self._parts.items())
            msg = f"{self.store_path}: found no {split} tiles (of {counts}). Pass a larger data.{split}_fraction."
            raise DataError(msg)
        return self._parts[split]

    def train_dataloader(self) -> DataLoader:
        tiles = self.part("train")
        transform = training_transform(
            flip=self.flip,
            rotate90=self.rotate90,
            brightness_contrast=self.brightness_contrast,
            rotate=self.rotate,
            crop=self.crop,
            size=self.size,
            channels=tiles.image_nhwc.shape[-1],
        )
        weights = balancing_weights(tiles.label_n.tolist()) if self.sampler == "level_balanced" else None
        sampler = self._epoch_sampler(len(tiles), self.samples_per_epoch or len(tiles), weights)
        return self._loader(LabelledTiles(tiles, transform, self.seed), sampler, self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def known_dataloader(self) -> DataLoader:
        """Return the training tiles, each once and unchanged, in which copies are searched."""
        return self._eval_loader("train")

    def _eval_loader(self, split: str) -> DataLoader:
        tiles = self.part(split)
        return self._loader(LabelledTiles(tiles), self._shard_sampler(len(tiles), split), self.eval_batch_size)
