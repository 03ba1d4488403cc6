"""Images to find nuclei in; and what the readers of whole tiles share: names, pixel sizes, batches of lists."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from ihc2he.data.base import require
from ihc2he.data.images import PIXEL_SIZE, SUFFIXES, find_images, is_pixel_size, read_image, regular_files
from ihc2he.data.nuclei import read_table
from ihc2he.data.samplers import ShardSampler
from ihc2he.errors import ConfigError, DataError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Tiles(Dataset[dict[str, Any] | DataError]):
    """What `read` returns of each tile, or the DataError that it raises.

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
    """Batches of `Tiles` as a dict of lists, since tiles differ in size.

    A tile's error is raised here, so that its message comes without the traceback of a loading process.
    """

    def __iter__(self) -> Iterator[dict[str, list[Any]]]:  # type: ignore[override]
        for items in super().__iter__():
            for item in items:
                if isinstance(item, DataError):
                    raise item
            yield {key: [item[key] for item in items] for key in items[0]}


class WholeTilesDataModule(LightningDataModule):
    """Every tile once, as it is, straight from its file.

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
        shard = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return TileLoader(
            Tiles(tiles, read),
            batch_size=self.batch_size,
            sampler=ShardSampler(len(tiles), *shard),
            num_workers=self.num_workers,
            collate_fn=list,
        )


class Tile(NamedTuple):
    """An image before it is read.

    Attributes:
        name: its path below the folder that was asked for, without extension.
        path: of the file.
        mpp: um/px.
    """

    name: str
    path: Path
    mpp: float


class TilesDataModule(WholeTilesDataModule):
    """Images of any size to find nuclei in.

    A batch has the keys ``name``, ``image`` (HxWx3 uint8 RGB), ``mpp``, ``path`` and ``error``, each a list. An image
    that cannot be read is None and has a text under ``error``, which is None for the others.

    Args:
        path: a file, a folder (searched with its sub-folders) or a glob.
        mpp: um/px of the images that ``tiles.csv`` beside them does not tell of (columns name, um_per_px).
        done: folder ``done`` of the results. An image is skipped where ``<done>/<name>.json`` notes its ``size`` in
            bytes and ``mtime_ns`` as they are now. Images below the folder that holds ``done`` are results, not read.
        batch_size: images per batch and process.
        num_workers: processes that load images.
    """

    def __init__(
        self,
        *,
        path: str | None,
        mpp: float | None = None,
        done: str | None = None,
        batch_size: int = 1,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images left than devices
        require("path", path, bool(path), "an image, a folder of images, or a glob such as 'slides/*/*.png'")
        require("mpp", mpp, mpp is None or is_pixel_size(mpp), PIXEL_SIZE)
        self.path = str(path)
        self.mpp = mpp
        self.done = None if done is None else Path(done).expanduser()

    def setup(self, stage: str | None = None) -> None:
        """Find the images that are still to do; reads none."""
        base, files = find_files(self.path)
        if self.done is not None:
            files = _without_results(base, files, self.done.parent)
        if not files:
            msg = (
                f"data.path={self.path}: found no image there, expected PNG, JPEG or TIFF files. "
                "Pass a file, a folder or a glob in quotes."
            )
            raise DataError(msg)
        named = by_name(base, files)
        todo = {name: file for name, file in named.items() if self.done is None or not _is_done(self.done, name, file)}
        if len(todo) < len(named):
            log.info("%d of %d images were finished before and are skipped.", len(named) - len(todo), len(named))
        if not todo:
            log.info("No image is left to do.")
        table = base / "tiles.csv"
        said = read_table(table)
        self.tiles = [
            Tile(name, file, pixel_size(said.get(name, {}).get("um_per_px"), self.mpp, file, table))
            for name, file in todo.items()
        ]

    def predict_dataloader(self) -> TileLoader:
        return self._loader(self.tiles, _read)


def find_files(path: str) -> tuple[Path, list[Path]]:
    """Return the images that a file name, folder or glob stands for, sorted, after the folder that they lie below.

    A file named by itself is returned whatever its extension.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        return given, [given / name for name in find_images(given)]
    if given.is_file():
        return given.parent, [given]
    fixed = next((i for i, part in enumerate(given.parts) if set(part) & set("*?[")), None)
    if fixed is None:
        return given.parent, []
    base = Path(*given.parts[:fixed])
    found = sorted(base.glob(str(Path(*given.parts[fixed:]))))
    return base, regular_files(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def by_name(base: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return files by their path below a folder without extension.

    Raises:
        DataError: where two files get one name.

    >>> list(by_name(Path("a"), [Path("a/b/tile.1.png")]))
    ['b/tile.1']
    """
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(base).with_suffix("").as_posix()
        if name in named:
            msg = f"{file}: {named[name].name} beside it has the same name but for the extension. Leave or rename one."
            raise DataError(msg)
        named[name] = file
    return named


def pixel_size(said: str | None, otherwise: float | None, image: Path, table: Path) -> float:
    """Return um/px of an image.

    Args:
        said: the entry ``um_per_px`` of the table, or nothing.
        otherwise: the pixel size where the table says nothing.
        image: whose pixel size it is.
        table: the ``tiles.csv`` that the entry is from.

    Raises:
        ConfigError: where nothing tells it.
        DataError: where the entry is not a positive number.
    """
    if not said:
        if otherwise is None:
            msg = (
                f"data.mpp=null: the pixel size of {image} is not known. Pass data.mpp in um/px: the scanner notes it, "
                "QuPath shows it as pixel width; about 0.25 for a 40x scan, 0.5 for 20x. Or write it, tile by tile, "
                f"to {table} with the columns name and um_per_px."
            )
            raise ConfigError(msg)
        return otherwise
    try:
        mpp = float(said)
    except ValueError:
        mpp = -1.0
    if not is_pixel_size(mpp):
        msg = f"{table}: um_per_px {said!r} for {image.name}, expected {PIXEL_SIZE}, such as 0.25."
        raise DataError(msg)
    return mpp


def _without_results(base: Path, files: list[Path], results: Path) -> list[Path]:
    if results.resolve() == base.resolve():
        msg = f"{results}: the results would lie among the images, and be read as such next time. Choose another out=."
        raise ConfigError(msg)
    if not results.resolve().is_relative_to(base.resolve()):
        return files
    return [file for file in files if not file.resolve().is_relative_to(results.resolve())]


def _is_done(done: Path, name: str, file: Path) -> bool:
    try:
        note = json.loads((done / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or a damaged one: the image is done again
        return False
    now = file.stat()
    return (note.get("size"), note.get("mtime_ns")) == (now.st_size, now.st_mtime_ns)


def _read(tile: Tile) -> dict[str, Any]:
    image, error = None, None
    try:
        image = read_image(tile.path)
    except DataError as problem:
        error = str(problem)
    except MemoryError:
        error = f"{tile.path}: needs more memory than is free. Cut it into tiles."
    return {"name": tile.name, "image": image, "mpp": tile.mpp, "path": str(tile.path), "error": error}
