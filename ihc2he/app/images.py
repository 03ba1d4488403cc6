"""Images that a page has opened, and their tiles for deep zoom."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError, Ihc2heError
from ihc2he.images import tiff
from ihc2he.images.decoding import image_size, read_image
from ihc2he.images.finding import regular_files, walk
from ihc2he.images.rescaled import Rescaled
from ihc2he.images.slides import SLIDE_SUFFIXES, open_slide
from ihc2he.images.source import ArraySource, ImageSource
from ihc2he.images.writing import as_jpeg
from ihc2he.tiling.resampling import resize

TILE = 256  # px
OVERLAP = 1  # px that a tile has of its neighbours, so that a viewer can interpolate without seams
UPLOAD_PX = 2**26  # of an uploaded image, which is kept in memory
WHOLE_PX = 2**27  # of an image that cannot be read by region
LISTED = 1000  # files that the page offers
_OVERVIEW = 2048  # px of the longer side from which smaller copies are made
_QUALITY = 88


class Locked(ImageSource):
    """An image that only one thread reads at a time: files of slides have one position.

    Args:
        source: the image.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source, self.name, self.shape, self.mpp = source, source.name, source.shape, source.mpp
        self.levels, self.by_region = source.levels, source.by_region
        self._lock = Lock()

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        with self._lock:
            return self.source.read(rows, columns, level)

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a level in px."""
        return self.source.level_shape(level)


class Layers(ImageSource):
    """An image with smaller copies down to `_OVERVIEW` px, which are made where its file has none.

    Its pixels are the unit: it has an mpp of 1.

    Args:
        source: the image.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source, self.name, self.shape, self.mpp = source, source.name, source.shape, 1.0
        self._lock = Lock()
        self._copies: list[NDArray[np.uint8]] = []  # from the largest to the smallest
        coarsest = max(source.level_shape(len(source.levels) - 1))
        more = max(0, math.ceil(math.log2(coarsest / _OVERVIEW)))
        self.levels = (*source.levels, *(source.levels[-1] * 2**k for k in range(1, 1 + more)))

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        first = len(self.source.levels)
        if level < first:
            return self.source.read(rows, columns, level)
        with self._lock:
            if not self._copies:
                made = self.source.thumbnail(max(self.level_shape(first)))
                for number in range(first, len(self.levels)):
                    made = resize(made, *self.level_shape(number))
                    self._copies.append(made)
        return self._copies[level - first][rows, columns]

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a level in px."""
        return self.source.level_shape(level) if level < len(self.source.levels) else super().level_shape(level)


def tile(image: Layers, level: int, column: int, row: int) -> bytes | None:
    """Return a tile as JPEG; None if there is no such tile.

    Args:
        image: of any size.
        level: as in DZI: at the highest an image has its own size, at each lower one half of that.
        column: of the tile.
        row: of the tile.
    """
    top = math.ceil(math.log2(max(image.shape)))
    if not 0 <= level <= top or min(column, row) < 0:
        return None
    factor = 2 ** (top - level)
    scaled = Rescaled(image, factor)
    parts = []
    for side, have, number in zip(image.shape, scaled.shape, (row, column), strict=True):
        side = math.ceil(side / factor)  # noqa: PLW2901  # of the level as viewers count it; one px more at most
        if number * TILE >= side:
            return None
        start, stop = max(number * TILE - OVERLAP, 0), min((number + 1) * TILE + OVERLAP, side)
        start_read = min(start, have - 1)
        parts.append((slice(start_read, max(min(stop, have), start_read + 1)), stop - start))
    (rows, height), (columns, width) = parts
    pixels = scaled.read(rows, columns)
    lacking = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
    return as_jpeg(np.pad(pixels, lacking, mode="edge"), _QUALITY)


@dataclass(frozen=True)
class Opened:
    """An image that a page shows.

    Attributes:
        id: in addresses.
        name: for people and for names of files.
        source: its pixels.
        layers: for tiles.
    """

    id: str
    name: str
    source: ImageSource
    layers: Layers

    @property
    def nbytes(self) -> int:
        """Memory that it takes, without smaller copies."""
        own = self.source.source if isinstance(self.source, Locked) else self.source
        in_memory = isinstance(own, ArraySource) or not own.by_region
        return 3 * own.shape[0] * own.shape[1] if in_memory else 0

    def facts(self) -> dict[str, object]:
        """Return what the page needs to know, as plain values."""
        height, width = self.source.shape
        return {
            "id": self.id, "name": self.name, "width": width, "height": height, "mpp": self.source.mpp,
            "tile": TILE, "overlap": OVERLAP, "levels": math.ceil(math.log2(max(width, height))),
        }  # fmt: skip


def read_upload(path: Path) -> ImageSource:
    """Return an uploaded image, which is then in memory.

    Raises:
        DataError: with the name of the file alone, if it is no image, damaged, or too large.
    """
    with _without_folder(path.parent):
        if tiff.is_tiff(path):
            slide = open_slide(path)
            _check_size(path.name, slide.shape, UPLOAD_PX)
            return ArraySource(slide.whole(), slide.mpp, path.name)
        _check_size(path.name, image_size(path), UPLOAD_PX)
        return ArraySource(read_image(path), None, path.name)


def open_below(folder: Path, name: str) -> ImageSource:
    """Return an image or slide below a folder.

    Args:
        folder: that may be read.
        name: of the file, relative to it.

    Raises:
        DataError: if it is not there, lies elsewhere, also through links, or cannot be read.
    """
    root = folder.resolve()
    path = (root / name).resolve()
    hidden = any(part.startswith(".") for part in Path(name).parts)
    if hidden or not path.is_relative_to(root) or not path.is_file() or path.suffix.lower() not in SLIDE_SUFFIXES:
        msg = f"{name}: there is no such image below the folder that this page may read."
        raise DataError(msg)
    with _without_folder(root):
        source = open_slide(path)
        if not source.by_region:
            _check_size(path.name, source.shape, WHOLE_PX)
        return source


def listed(folder: Path, out: Path | None = None) -> list[str]:
    """Return the images and slides below a folder, at most `LISTED`, without those that links lead to elsewhere.

    Args:
        folder: that may be read.
        out: folder of corrections, whose tiles and masks are left out.
    """
    root = folder.resolve()
    found = (path for path in walk(root) if path.suffix.lower() in SLIDE_SUFFIXES)
    inside = [path for path in regular_files(found) if path.resolve().is_relative_to(root)]
    if out is not None and out != root:
        inside = [path for path in inside if not path.resolve().is_relative_to(out)]
    return [path.relative_to(root).as_posix() for path in inside[:LISTED]]


@contextmanager
def _without_folder(folder: Path) -> Iterator[None]:
    """Leave a folder of this machine out of messages for the page."""
    try:
        yield
    except Ihc2heError as error:
        raise type(error)(str(error).replace(f"{folder}{os.sep}", "")) from error


def _check_size(name: str, shape: tuple[int, int], most: int) -> None:
    height, width = shape
    if height * width > most:
        msg = (
            f"{name}: {width} x {height} px are more than the {most / 1e6:.0f} million that are read at once. Save it "
            "as a tiled TIFF below the folder of the page (path=), which is read by region, or cut it."
        )
        raise DataError(msg)
