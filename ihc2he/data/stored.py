"""The base of DataModules with a tile store, which is built once and from which batches are loaded."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from ihc2he.data.samplers import EpochLoader, EpochSampler, ShardSampler
from ihc2he.data.store import Record, Skipped, TileStore, check_store, write_store
from ihc2he.errors import ConfigError, DataError, require_setting
from ihc2he.files import exclusive
from ihc2he.images.pixelsize import compare_with_files
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

require = partial(require_setting, "data")


@dataclass(kw_only=True, eq=False)
class StoreDataModule(LightningDataModule, ABC):
    """Batches from a tile store that `prepare_data` builds once from a raw dataset.

    The fields are the keys of ``data`` in a configuration; a subclass adds its own, and checks them in `__post_init__`.

    Args:
        store: folder for the tile store and its reports.
        target_mpp: um/px of the images it yields.
        crop_size: side of the training crops in px.
        batch_size: training crops per batch and process, of each stain.
        eval_batch_size: whole tiles per batch; more than 1 needs tiles of one size.
        num_workers: processes that load training batches; as many load each evaluation set.
        seed: of the splits, the order and the augmentation.
        samples_per_epoch: over all processes; None: one per training tile, of the stain that has more.
        sampler: how training tiles are drawn: one of `samplers`.
        rebuild: build the store again even if there is one.

    Attributes:
        reports: the function that writes each report next to the store, by file name.
        samplers: what `sampler` may be.
        min_crop: the smallest `crop_size`.

    Raises:
        ConfigError: for a value outside its range.
    """

    store: str
    target_mpp: float
    crop_size: int = 256
    batch_size: int
    eval_batch_size: int = 1
    num_workers: int = 4
    seed: int = 0
    samples_per_epoch: int | None = None
    sampler: str = "uniform"
    rebuild: bool = False

    reports: ClassVar[Mapping[str, Callable[[Path, TileStore], None]]]
    samplers: ClassVar[Sequence[str]]
    min_crop: ClassVar[int] = 1
    _compared = False

    def __post_init__(self) -> None:
        super().__init__()
        require("target_mpp", self.target_mpp, is_pixel_size(self.target_mpp), PIXEL_SIZE)
        require("crop_size", self.crop_size, self.crop_size >= self.min_crop, f"at least {self.min_crop} px")
        require("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        require("eval_batch_size", self.eval_batch_size, self.eval_batch_size >= 1, "at least 1")
        require("num_workers", self.num_workers, self.num_workers >= 0, "0 or more")
        require("seed", self.seed, self.seed >= 0, "0 or more")
        samples = self.samples_per_epoch
        require("samples_per_epoch", samples, samples is None or 1 <= samples <= 10**9, "1 to 10^9")
        require("sampler", self.sampler, self.sampler in self.samplers, " or ".join(self.samplers))
        self.store_folder = Path(self.store).expanduser()

    @abstractmethod
    def find_tiles(self) -> Sequence[Any] | None:
        """Return the tiles of the raw dataset without reading them, or None if the dataset is missing."""

    @abstractmethod
    def sources(self, tiles: Sequence[Any]) -> dict[str, Path]:
        """Return every file that the tiles are read from, under a name that stays valid when the dataset is moved."""

    @abstractmethod
    def read_record(self, tile: Any) -> Record | Skipped:
        """Return the stored record of a tile."""

    @abstractmethod
    def how_to_get(self) -> str:
        """Return the message for a user who has neither the dataset nor a store of it."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings that change the content of the store."""

    @property
    def store_path(self) -> Path:
        return self.store_folder / "tiles.h5"

    def prepare_data(self) -> None:
        """Build the store, or check that it still fits its source, and write the reports next to it."""
        tiles = self.find_tiles()
        sources = None
        if tiles is not None:
            sources = self.sources(tiles)
            self._build(tiles, sources)
        elif not self.store_path.is_file():
            raise DataError(self.how_to_get())
        check_store(self.store_path, sources, self.settings())
        store = TileStore(self.store_path)
        for name, write in self.reports.items():
            if not (self.store_folder / name).is_file():
                with unless_read_only(self.store_folder / name):
                    write(self.store_folder / name, store)

    def _build(self, tiles: Sequence[Any], sources: dict[str, Path]) -> None:
        if self.store_path.is_file() and not self.rebuild:
            return
        with exclusive(self.store_path.with_suffix(".lock")):
            if self.store_path.is_file() and not self.rebuild:  # built by another process meanwhile
                return
            for report in self.reports:
                (self.store_folder / report).unlink(missing_ok=True)
            write_store(self.store_path, tiles, self.read_record, sources, self.settings())
            self.rebuild = False  # the next stage of the same run comes here again

    def compare_once(self, mpps: Mapping[Path, float]) -> None:
        """Compare pixel sizes with those that the files state, at the first call; every stage finds the tiles again."""
        if not self._compared:
            compare_with_files(mpps)
        self._compared = True

    def _epoch_sampler(self, size: int, num_samples: int, weights: Sequence[float] | None) -> EpochSampler:
        rank, world_size = self._shard()
        return EpochSampler(
            size=size, num_samples=num_samples, seed=self.seed, weights=weights, rank=rank, world_size=world_size
        )

    def _loader(
        self, dataset: Dataset, sampler: EpochSampler | ShardSampler, batch_size: int, drop_last: bool = False
    ) -> DataLoader:
        if drop_last and len(sampler) < batch_size:
            msg = (
                f"data.batch_size={batch_size}: an epoch has only {len(sampler)} samples per process, "
                "less than one batch. Pass a smaller batch size, or a larger data.samples_per_epoch."
            )
            raise ConfigError(msg)
        return EpochLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
        )

    def _shard_sampler(self, size: int, split: str) -> ShardSampler:
        rank, world_size = self._shard()
        if 0 < size < world_size:  # a process without tiles would fail on its own
            msg = f"trainer.devices: {size} {split} tiles are too few for {world_size} processes. Use fewer."
            raise ConfigError(msg)
        return ShardSampler(size, rank, world_size)

    def _shard(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def require_native(mpp: float, native: float) -> None:
    """Raise a ConfigError unless a pixel size is that of the published files; it formerly meant `target_mpp`."""
    advice = f"{native}, the um/px of the published files; for images of {mpp} um/px pass data.target_mpp={mpp}"
    require("mpp", mpp, mpp == native, advice)


@contextmanager
def unless_read_only(report: Path) -> Iterator[None]:
    """Leave out a report that cannot be written, because a finished store may be on a read-only disk."""
    try:
        yield
    except OSError as error:
        log.warning("%s: could not be written (%s), and is left out.", report, error)
