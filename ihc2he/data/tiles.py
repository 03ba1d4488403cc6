"""Images to find nuclei in, with their names and pixel sizes, in batches of lists."""

import logging
from collections.abc import Iterable
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
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import SUFFIXES, endings, find_images, regular_files, walk
from ihc2he.images.pixelsize import compare_with_files
from ihc2he.images.source import ImageSource
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)


class Tile(NamedTuple):
    """An image before it is read.

    Attributes:
        name: its path in the given folder, without extension.
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
        return self._loader(self.tiles, partial(_read, source=self.source))


def find_files(path: str) -> tuple[Path, list[Path]]:
    """Return the folder above all images of a file name, folder or glob, and the images, sorted.

    A single file is returned with any extension.
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
    pattern = given.parts[fixed:]
    if "**" in pattern:  # through links too, which Path.glob ignores
        found = [path for path in walk(base) if _matches(path.relative_to(base).parts, pattern)]
    else:
        found = sorted(base.glob(str(Path(*pattern))))
    return base, regular_files(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


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


def _read(tile: Tile, source: dict[str, Any] | None) -> dict[str, Any]:
    image, error = None, None
    try:
        if source is None:
            image = read_image(tile.path)
        else:
            image = build(source, ImageSource, path=str(tile.path), mpp=tile.mpp).whole()  # type: ignore[type-abstract]
    except DataError as problem:
        error = str(problem)
    except MemoryError:
        error = f"{tile.path}: needs more memory than is free. Cut it into tiles."
    return {"name": tile.name, "image": image, "mpp": tile.mpp, "path": str(tile.path), "error": error}
