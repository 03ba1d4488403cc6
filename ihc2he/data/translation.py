"""Batches of IHC and H&E for models that translate: training crops, and whole tiles for evaluation."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ihc2he.data.exploration import draw_exploration, stain_statistics, warn_if_swapped, write_index
from ihc2he.data.samplers import SampleIndex, balancing_weights
from ihc2he.data.splits import STAINS, split_records
from ihc2he.data.store import Record, Skipped, TileStore
from ihc2he.data.stored import StoreDataModule, require, unless_read_only
from ihc2he.data.transforms import augment, normalise, training_transform
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError
from ihc2he.files import write_csv

if TYPE_CHECKING:
    import albumentations

log = logging.getLogger(__name__)


class TrainingCrops(Dataset[dict[str, torch.Tensor]]):
    """Random crops of IHC tiles, each with a crop of an H&E tile drawn independently of it.

    Everything random is a pure function of (seed, epoch, index): the H&E tile, both windows and both augmentations.

    Args:
        store: with fields ``ihc`` and ``he``.
        ihc: record numbers of the IHC tiles; index i means tile i modulo their number.
        he: record numbers of the H&E tiles.
        crop_size: side of the crops in px.
        transform: from uint8 HxWx3 to float32 in [-1, 1].
        seed: of all of the above.
        he_weights: one per H&E tile, to draw them in proportion; None: uniform.
        paired: take the same window, with the same augmentation, from the H&E array of the same record.
    """

    def __init__(
        self,
        store: TileStore,
        *,
        ihc: Sequence[int],
        he: Sequence[int],
        crop_size: int,
        transform: "albumentations.Compose",
        seed: int,
        he_weights: Sequence[float] | None = None,
        paired: bool = False,
    ) -> None:
        self.store = store
        self.ihc = ihc
        self.he = he
        self.crop_size = crop_size
        self.transform = transform
        self.seed = seed
        self.he_cumulative = None if he_weights is None else list(accumulate(he_weights))
        self.paired = paired

    def __len__(self) -> int:
        return max(len(self.ihc), len(self.he))

    def __getitem__(self, key: int | SampleIndex) -> dict[str, torch.Tensor]:
        epoch, index = key if isinstance(key, SampleIndex) else (0, key)
        rng = np.random.default_rng((self.seed, epoch, index))
        ihc_seed, he_seed = (int(seed) for seed in rng.integers(2**32, size=2))
        ihc = self.ihc[index % len(self.ihc)]
        he = self._draw_he(rng)
        if self.paired:
            he, he_seed = ihc, ihc_seed
        return {"ihc": self._crop(ihc, "ihc", ihc_seed), "he": self._crop(he, "he", he_seed)}

    def _draw_he(self, rng: np.random.Generator) -> int:
        if self.he_cumulative is None:
            return self.he[int(rng.integers(len(self.he)))]
        drawn = rng.random() * self.he_cumulative[-1]
        return self.he[min(int(np.searchsorted(self.he_cumulative, drawn, side="right")), len(self.he) - 1)]

    def _crop(self, number: int, field: str, seed: int) -> torch.Tensor:
        height, width = self.store.rows[number]["shapes"][field][:2]
        top, left = np.random.default_rng(seed).integers((height - self.crop_size + 1, width - self.crop_size + 1))
        window = (slice(top, top + self.crop_size), slice(left, left + self.crop_size))
        return augment(self.transform, self.store.read(number, field, window), seed)


Truth = Callable[[Mapping[str, Any]], NDArray[np.int32]]  # from a row of the store to its instance map


class WholeTiles(Dataset[dict[str, Any]]):
    """Every IHC tile once, whole, with the H&E tile at the same position (from the start again if there are fewer).

    ``paired`` is true if both are the same record and so show the same place. With `truth`, the true instance map of
    the IHC is there as ``inst``, and its pixel size as ``mpp``.
    """

    def __init__(
        self,
        store: TileStore,
        ihc: Sequence[int],
        he: Sequence[int],
        truth: Truth | None = None,
        mpp: float | None = None,
    ) -> None:
        self.store = store
        self.ihc = ihc
        self.he = he
        self.truth = truth
        self.mpp = mpp

    def __len__(self) -> int:
        return len(self.ihc) if self.he else 0

    def __getitem__(self, key: int | SampleIndex) -> dict[str, Any]:
        index = key.index if isinstance(key, SampleIndex) else key
        ihc, he = self.ihc[index], self.he[index % len(self.he)]
        row = self.store.rows[ihc]
        known = {"inst": torch.from_numpy(self.truth(row)), "mpp": self.mpp} if self.truth else {}
        return known | {
            "ihc": normalise(self.store.read(ihc, "ihc")),
            "he": normalise(self.store.read(he, "he")),
            "name": row["name"],
            "group": row["group"],
            "paired": ihc == he,
        }


MIN_SIDE = 32  # px; the generators' deepest layers need some pixels to pad by reflection


POLICIES = ("error", "skip")


SAMPLERS = ("uniform", "level_balanced")


REPORTS: dict[str, Callable[[Path, TileStore], None]] = {"index.csv": write_index, "exploration.png": draw_exploration}


class RawTile(NamedTuple):
    """A tile of the raw dataset before it is read.

    Attributes:
        name: of the tile, relative to its split's folder.
        split: "train", "val" or "test", as the dataset is laid out on disk.
        group: its HER2 level, or "".
        files: what to read, by role, for instance "ihc" and "he".
    """

    name: str
    split: str
    group: str
    files: dict[str, Path]


@dataclass(kw_only=True, eq=False)
class TranslationDataModule(StoreDataModule):
    """Batches of IHC and H&E.

    A training batch is ``{"ihc": x_bchw, "he": x_bchw}``, float32 in [-1, 1]: random crops, drawn independently
    of each other. A validation or test batch holds whole tiles and also ``name`` and ``group`` (lists of str) and
    ``paired`` (bool tensor: both show the same place). A test batch of simulated tissue also has ``inst``, the true
    instance maps of the IHC, and ``mpp``. Order and randomness depend on (seed, epoch, index) alone.
    `StoreDataModule` documents the other arguments.

    Args:
        val_fraction: of the training tiles, for validation, if the dataset has no validation folder.
        test_fraction: of the training tiles, for testing, if the dataset has no test folder.
        fraction: of the remaining training tiles to keep; every level keeps its share.
        sampler: "uniform", or "level_balanced": each level is drawn equally often, in both stains.
        paired: train on registered crops of the same place instead of independent ones.
        flip: augment by left-right and up-down flips.
        rotate90: augment by rotations of multiples of 90 degrees.
        brightness_contrast: largest relative change; 0 = off, because it changes the stain that is to be learned.
        on_bad_file: "error", or "skip": leave out unreadable and too small images, counted and listed.

    Raises:
        ConfigError: for a value outside its range.
    """

    batch_size: int = 1
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    fraction: float = 1.0
    paired: bool = False
    flip: bool = True
    rotate90: bool = True
    brightness_contrast: float = 0.0
    on_bad_file: str = "error"

    reports = REPORTS
    samplers = SAMPLERS
    min_crop = MIN_SIDE

    def __post_init__(self) -> None:
        super().__post_init__()
        require("on_bad_file", self.on_bad_file, self.on_bad_file in POLICIES, " or ".join(POLICIES))
        require("val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "from 0 to below 1")
        require("test_fraction", self.test_fraction, 0 <= self.test_fraction < 1, "from 0 to below 1")
        require("fraction", self.fraction, 0 < self.fraction <= 1, "above 0 and at most 1")
        change = self.brightness_contrast
        require("brightness_contrast", change, 0 <= change < 1, "from 0 to below 1")

    @property
    def info(self) -> DataInfo:
        """What models, callbacks and the runner can know about the images."""
        return DataInfo(self.target_mpp, store=self.store_path, paired=self.paired)

    @abstractmethod
    def find_tiles(self) -> list[RawTile] | None:
        """Return the tiles of the raw dataset without reading them, or None if the dataset is missing."""

    @abstractmethod
    def read_tile(self, tile: RawTile) -> dict[str, NDArray]:
        """Return the images of a tile at `target_mpp`, by stain: HxWx3 uint8."""

    @property
    def truth(self) -> Truth | None:
        """How to read the true nuclei of the IHC; None: they are not known."""
        return None

    def sources(self, tiles: Sequence[RawTile]) -> dict[str, Path]:
        return {f"{role}/{tile.split}/{tile.name}": file for tile in tiles for role, file in tile.files.items()}

    def prepare_data(self) -> None:
        super().prepare_data()
        store = TileStore(self.store_path)
        warn_if_swapped(store)
        self._report_skipped(store)

    def setup(self, stage: str | None = None) -> None:
        """Open the store and divide its records; reads no image."""
        self.tiles = TileStore(self.store_path)
        self.records, too_small = self._split(self.tiles)
        if too_small and self.on_bad_file == "error" and stage in (None, "fit"):
            found = "; ".join(_tile_name(self.tiles.rows[i]) for i in too_small[:3])
            msg = (
                f"{self.store_path}: {len(too_small)} training tiles are smaller than the crop of {self.crop_size} px "
                f"at {self.target_mpp} um/px, such as {found}. Pass a smaller data.crop_size, or data.on_bad_file=skip."
            )
            raise DataError(msg)

    def train_dataloader(self) -> DataLoader:
        ihc, he = (self.records["train", stain] for stain in STAINS)
        if not ihc or not he:
            msg = f"{self.store_path}: found {len(ihc)} IHC and {len(he)} H&E training tiles, expected some of each."
            raise DataError(msg)
        weights = he_weights = None
        if self.sampler == "level_balanced":
            weights, he_weights = (self._level_weights(records) for records in (ihc, he))
        transform = training_transform(
            flip=self.flip, rotate90=self.rotate90, brightness_contrast=self.brightness_contrast
        )
        dataset = TrainingCrops(
            self.tiles,
            ihc=ihc,
            he=he,
            crop_size=self.crop_size,
            transform=transform,
            seed=self.seed,
            he_weights=he_weights,
            paired=self.paired,
        )
        sampler = self._epoch_sampler(len(ihc), self.samples_per_epoch or len(dataset), weights)
        return self._loader(dataset, sampler, self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        if not self.records["test", "ihc"] or not self.records["test", "he"]:
            msg = f"{self.store_path}: found no test tiles. Pass data.test_fraction=0.1, or add a test folder."
            raise DataError(msg)
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        ihc, he = (self.records[split, stain] for stain in STAINS)
        for stain, records in zip(STAINS, (ihc, he), strict=True):
            sizes = {tuple(self.tiles.rows[i]["shapes"][stain]) for i in records}
            if self.eval_batch_size > 1 and len(sizes) > 1:
                msg = f"data.eval_batch_size={self.eval_batch_size}: {split} tiles have {len(sizes)} sizes. Pass 1."
                raise ConfigError(msg)
        dataset = WholeTiles(self.tiles, ihc, he, self.truth if split == "test" else None, self.target_mpp)
        return self._loader(dataset, self._shard_sampler(len(dataset), split), self.eval_batch_size)

    def _level_weights(self, records: Sequence[int]) -> list[float]:
        levels = [self.tiles.rows[i]["group"] for i in records]
        if "" in levels:
            msg = "data.sampler=level_balanced needs a HER2 level for every tile; this dataset has none. Pass uniform."
            raise ConfigError(msg)
        return balancing_weights(levels)

    def read_record(self, tile: RawTile) -> Record | Skipped:
        try:
            images = self.read_tile(tile)
            for image, file in zip(images.values(), tile.files.values(), strict=False):
                _require_size(image, file)
        except DataError as error:
            if self.on_bad_file == "error":
                raise
            return Skipped(", ".join(str(file) for file in tile.files.values()), str(error))
        statistics: dict[str, float] = {}
        for stain, image in images.items():
            statistics |= stain_statistics(image, stain)
        return Record(images, {"name": tile.name, "split": tile.split, "group": tile.group, "stains": statistics})

    def _report_skipped(self, store: TileStore) -> None:
        table = self.store_folder / "skipped.csv"
        if self.on_bad_file == "error":
            if store.skipped:
                msg = (
                    f"{self.store_path} was built without {len(store.skipped)} bad files, such as "
                    f"{store.skipped[0].name}. Correct or remove them and pass data.rebuild=true, or pass "
                    "data.on_bad_file=skip."
                )
                raise DataError(msg)
            if table.is_file():
                with unless_read_only(table):
                    table.unlink()
            return
        _, too_small = self._split(store)
        reason = f"smaller than the training crop of {self.crop_size} px"
        skipped = [*store.skipped, *(Skipped(_tile_name(store.rows[i]), reason) for i in too_small)]
        with unless_read_only(table):
            write_csv(table, [entry._asdict() for entry in skipped], Skipped._fields)
        if skipped:
            log.warning("%d images are left out, listed in %s:", len(skipped), table)
        for name, why in skipped:
            log.warning("  %s: %s", name, why)

    def _split(self, store: TileStore) -> tuple[dict[tuple[str, str], list[int]], list[int]]:
        return split_records(
            store.rows,
            crop_size=self.crop_size,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            fraction=self.fraction,
            seed=self.seed,
        )


def _tile_name(row: dict[str, Any]) -> str:
    return f"{row['name']} ({', '.join(f'{stain} {w}x{h}' for stain, (h, w, *_) in row['shapes'].items())})"


def _require_size(image: NDArray, file: Path) -> None:
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        msg = f"{file}: {width}x{height} px after resampling; expected at least {MIN_SIDE} px each way."
        raise DataError(msg)
