"""Images to find nuclei in, with their names and pixel sizes, in batches of lists; large ones block by block."""

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ihc2he.build import build
from ihc2he.data.evaluation import TileLoader, WholeTilesDataModule
from ihc2he.data.finished import Notes, check_sources, each_once, is_done, read_notes
from ihc2he.data.stored import require
from ihc2he.data.tables import by_name, pixel_size, read_table, stem
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import SUFFIXES, endings, find_images, regular_files, walk
from ihc2he.images.pixelsize import compare_with_files
from ihc2he.images.source import ArraySource, FileSource, ImageSource
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

LARGE = 2**23  # bytes of a file from which it is worth a look whether it is divided into blocks


class Tile(NamedTuple):
    """An image before it is read.

    Attributes:
        name: its path in the given folder, without extension.
        path: of the file.
        mpp: um/px.
        version: size in bytes and time of the last change of the file that its blocks are of; None: of any.
    """

    name: str
    path: Path
    mpp: float
    version: tuple[int, int] | None = None


class Piece(NamedTuple):
    """What is read at once: an image, or a block of a large one.

    Attributes:
        tile: the image.
        number: of the block; None: the image is read as a whole.
        rows: of the block.
        columns: of the block.
    """

    tile: Tile
    number: int | None = None
    rows: slice = slice(None)
    columns: slice = slice(None)


class TilesDataModule(WholeTilesDataModule):
    """Images of any size to find nuclei in.

    A batch has the keys ``name``, ``image`` (HxWx3 uint8 RGB), ``mpp``, ``path`` and ``error``, each a list. An image
    that cannot be read is None and has a text under ``error``, which is None for the others.

    A file from 8 MB on, or of any size with an own ``source``, comes block by block, in their order, if the model
    divides images of its size. Then ``block`` is the block's number, ``image`` its pixels, or None where the file
    cannot be read by region, and the first block has under ``open`` a function that returns the `ImageSource`; both
    are None for all others. A file that is changed after it was divided is an error.

    Args:
        path: a file, a folder (searched with its sub-folders) or a glob.
        mpp: um/px of the images that are not in ``tiles.csv`` next to them (columns name, um_per_px).
        done: folder ``done`` of the results. An image is skipped if ``<done>/<name>.json`` has its present ``size`` in
            bytes, ``mtime_ns`` and ``mpp``. Images below the folder that holds ``done`` are results,
            not read.
        source: node of an `ihc2he.images.source.ImageSource` of your own, which is given ``path`` and ``mpp``, for
            files that this package cannot read; name such files one by one or rename them, since folders are searched
            for PNG, JPEG and TIFF. None: those are read.
        batch_size: images per batch and process.
        num_workers: processes that load images.
    """

    def __init__(
        self,
        *,
        path: str | None,
        mpp: float | None = None,
        done: str | None = None,
        source: dict[str, Any] | None = None,
        batch_size: int = 1,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images left than devices
        require("path", path, bool(path), "an image, a folder of images, or a glob such as 'slides/*/*.png'")
        require("mpp", mpp, mpp is None or is_pixel_size(mpp), PIXEL_SIZE)
        self.path = str(path)
        self.mpp = mpp
        self.source = source
        self.done = None if done is None else Path(done).expanduser()

    @property
    def info(self) -> DataInfo:
        """What models, callbacks and the runner can know about the images."""
        return DataInfo(mpp=None)

    def setup(self, stage: str | None = None) -> None:
        """Find the images that are still to do, without reading them."""
        base, files = find_files(self.path)
        if self.done is not None:
            files = _without_results(base, files, self.done.parent)
        if not files:
            msg = (
                f"data.path={self.path}: found no image there, expected PNG, JPEG or TIFF files.{_others(base)} "
                "Pass a file, a folder or a glob in quotes."
            )
            raise DataError(msg)
        named = each_once(by_name(base, files))
        table = base / "tiles.csv"
        said = read_table(table, ("um_per_px",), _names_below(base, named) if table.is_file() else None)
        notes: Notes = {}
        if self.done is not None:
            notes = read_notes(self.done)
            check_sources(self.done, notes, named)
        found = [
            Tile(name, file, pixel_size(said.get(name, {}).get("um_per_px"), self.mpp, file, table))
            for name, file in named.items()
        ]
        compare_with_files({tile.path: tile.mpp for tile in found})
        self.tiles = [tile for tile in found if not is_done(notes.get(tile.name), tile.path, tile.mpp)]
        if len(self.tiles) < len(found):
            skipped = len(found) - len(self.tiles)
            log.info("%d of %d images were finished before and are skipped.", skipped, len(found))
        if not self.tiles:
            log.info("No image is left to do.")

    def predict_dataloader(self) -> TileLoader:
        pieces = [piece for tile in self._own(self.tiles) for piece in self._pieces(tile)]
        return self._own_loader(pieces, _Reader(self.source))

    def _pieces(self, tile: Tile) -> list[Piece]:
        """Return the blocks of a large image, or the whole of a small one."""
        if self.trainer is None:
            return [Piece(tile)]
        try:
            size, changed = _version(tile.path)
            if size < LARGE and self.source is None:
                return [Piece(tile)]
            tile = tile._replace(version=(size, changed))
            source = _opened(self.source, tile)
        except (DataError, OSError):
            return [Piece(tile._replace(version=None))]  # reading it shows what is wrong
        blocks = self.trainer.lightning_module.divide(*source.shape, tile.mpp)  # type: ignore[operator]  # of Task
        if len(blocks) <= 1:
            return [Piece(tile)]
        return [Piece(tile, k, block.rows, block.columns) for k, block in enumerate(blocks)]


def find_files(path: str, suffixes: Sequence[str] = SUFFIXES) -> tuple[Path, list[Path]]:
    """Return the folder above all images of a file name, folder or glob, and the images, sorted.

    A single file is returned with any extension.

    Args:
        path: as the user gives it.
        suffixes: of the files to look for, in small letters.

    Raises:
        DataError: if the file or folder is not there.
    """
    given = Path(path).expanduser()
    if given.is_dir() and suffixes == SUFFIXES:
        return given, [given / name for name in find_images(given)]
    if given.is_dir():
        return given, _chosen(walk(given), suffixes)
    if given.is_file():
        return given.parent, [given]
    fixed = next((i for i, part in enumerate(given.parts) if set(part) & set("*?[")), None)
    if fixed is None:
        beside = [entry.name for entry in given.parent.iterdir()] if given.parent.is_dir() else []
        hint = did_you_mean(given.name, beside) if beside else ""
        msg = f"data.path={path}: there is no such file or folder.{hint} Pass a file, a folder or a glob in quotes."
        raise DataError(msg)
    base = Path(*given.parts[:fixed])
    pattern = given.parts[fixed:]
    if "**" in pattern:  # through links too, which Path.glob ignores
        found = [path for path in walk(base) if _matches(path.relative_to(base).parts, pattern)]
    else:
        found = sorted(base.glob(str(Path(*pattern))))
    return base, _chosen(found, suffixes)


def _chosen(found: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    return regular_files(p for p in found if p.suffix.lower() in suffixes and not p.name.startswith("."))


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return whether the parts of a path fit a glob, in which ``**`` means any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[k:], pattern[1:]) for k in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _others(base: Path) -> str:
    found = ", ".join(f"{n} {ending}" for ending, n in endings(walk(base)).items())
    return f" Found: {found}." if found else ""


def _names_below(base: Path, named: Iterable[str]) -> set[str]:
    """Return the names that a table may have: of the chosen images, and of those next to them."""
    return {*named, *map(stem, find_images(base))}


def _without_results(base: Path, files: list[Path], results: Path) -> list[Path]:
    if results.resolve() == base.resolve():
        msg = f"{results}: the results would lie among the images, and be read as such next time. Choose another out=."
        raise ConfigError(msg)
    if not results.resolve().is_relative_to(base.resolve()):
        return files
    return [file for file in files if not file.resolve().is_relative_to(results.resolve())]


class _Reader:
    """Reads pieces, and keeps the file of the last one open.

    Args:
        source: as `TilesDataModule` has it.
    """

    def __init__(self, source: dict[str, Any] | None) -> None:
        self._source = source
        self._last: tuple[Tile, ImageSource] | None = None

    def __call__(self, piece: Piece) -> dict[str, Any]:
        tile = piece.tile
        entry: dict[str, Any] = {
            "name": tile.name, "image": None, "mpp": tile.mpp, "path": str(tile.path), "error": None,
            "block": piece.number, "open": None,
        }  # fmt: skip
        try:
            entry |= self._pixels(piece)
        except DataError as problem:
            entry["error"] = str(problem)
        except MemoryError:
            entry["error"] = f"{tile.path}: needs more memory than is free. Cut it into tiles."
        return entry

    def _pixels(self, piece: Piece) -> dict[str, Any]:
        """Return what is to be known of a piece."""
        if piece.number is None:
            whole = read_image(piece.tile.path) if self._source is None else _opened(self._source, piece.tile).whole()
            return {"image": whole}
        if self._last is None or self._last[0] != piece.tile:
            self._last = (piece.tile, _opened(self._source, piece.tile))
        source = self._last[1]
        if source.by_region:
            opened = partial(_opened, self._source, piece.tile) if piece.number == 0 else None
            return {"image": source.read(piece.rows, piece.columns), "open": opened}
        if piece.number:
            return {}
        return {"open": partial(ArraySource, source.whole(), piece.tile.mpp, str(piece.tile.path))}


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _opened(node: dict[str, Any] | None, tile: Tile) -> ImageSource:
    if tile.version is not None and tile.path.exists() and _version(tile.path) != tile.version:
        msg = f"{tile.path}: was changed while it was being read. Repeat the command when it is complete."
        raise DataError(msg)
    if node is None:
        return FileSource(tile.path, tile.mpp)
    return build(node, ImageSource, path=str(tile.path), mpp=tile.mpp)  # type: ignore[type-abstract]
