"""Whole tiles directly from their files, in batches of lists, for evaluation and prediction."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from ihc2he.data.samplers import ShardSampler
from ihc2he.data.stored import require
from ihc2he.errors import DataError

T = TypeVar("T")


class Tiles(Dataset[dict[str, Any] | DataError]):
    """The result of `read` for each tile, or the DataError that it raises.

    Args:
        tiles: what to read.
        read: a function of a module, so that it reaches processes.
    """

    def __init__(self, tiles: Sequence[T], read: Callable[[T], dict[str, Any]]) -> None:
        self.tiles = tiles
        self.read = read

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> dict[str, Any] | DataError:
        try:
            return self.read(self.tiles[index])
        except DataError as error:
            return error


class TileLoader(DataLoader):
    """Batches of `Tiles` as a dict of lists, because tiles differ in size.

    A tile's error is raised here, so that its message comes without the traceback of a loading process.
    """

    def __iter__(self) -> Iterator[dict[str, list[Any]]]:  # type: ignore[override]
        for items in super().__iter__():
            for item in items:
                if isinstance(item, DataError):
                    raise item
            yield {key: [item[key] for item in items] for key in items[0]}


class WholeTilesDataModule(LightningDataModule):
    """Every tile once, unchanged, directly from its file.

    Args:
        batch_size: tiles per batch and process.
        num_workers: processes that load tiles.
    """

    def __init__(self, *, batch_size: int, num_workers: int) -> None:
        super().__init__()
        require("batch_size", batch_size, batch_size >= 1, "at least 1")
        require("num_workers", num_workers, num_workers >= 0, "0 or more")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def _loader(self, tiles: Sequence[T], read: Callable[[T], dict[str, Any]]) -> TileLoader:
        """Return batches of this process's share of the tiles."""
        return self._own_loader(self._own(tiles), read)

    def _own(self, tiles: Sequence[T]) -> Sequence[T]:
        """Return this process's share of the tiles."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return [tiles[index] for index in ShardSampler(len(tiles), rank, world_size)]

    def _own_loader(self, own: Sequence[T], read: Callable[[T], dict[str, Any]]) -> TileLoader:
        """Return batches of all given tiles, in their order."""
        return TileLoader(
            Tiles(own, read),
            batch_size=self.batch_size,
            sampler=ShardSampler(len(own)),  # Lightning leaves it alone
            num_workers=self.num_workers,
            collate_fn=list,
        )
