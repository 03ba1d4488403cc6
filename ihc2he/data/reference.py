"""Unlabelled IHC tiles as a reference: their stains are measured once and kept beside the tile store."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.store import map_in_threads
from ihc2he.data.stored import unless_read_only
from ihc2he.errors import ConfigError, DataError
from ihc2he.files import exclusive, write_text
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images
from ihc2he.images.pixelsize import stated_mpp
from ihc2he.stain.measuring import StainStatistics, measure

log = logging.getLogger(__name__)

VERSION = 2  # of the measurement; another version measures again
FIELD = 128.0  # um, about the side of the parts into which an image is cut
_KEY = "data.augmentation.paint"


@dataclass(frozen=True)
class ReferenceTile:
    """A part of a reference image.

    Attributes:
        file: the image, relative to the folder.
        window: first row, first column, height and width in px.
        mpp: um/px.
        stains: what was measured in it.
    """

    file: str
    window: tuple[int, int, int, int]
    mpp: float
    stains: StainStatistics

    def read(self, folder: Path) -> NDArray[np.uint8]:
        """Return its pixels, HxWx3 uint8 RGB."""
        top, left, height, width = self.window
        return read_image(folder / self.file)[top : top + height, left : left + width]


def reference_tiles(folder: Path, mpp: float | None, store: Path) -> list[ReferenceTile]:
    """Return the tiles of a reference with their stains, which are measured if `store` has no measurement of them.

    A measurement is that of a folder if names, sizes and times of all images are the same.

    Args:
        folder: of images of IHC: PNG, JPEG or TIFF, also in sub-folders.
        mpp: um/px of the images; None: as the TIFF states.
        store: folder for the measurement.

    Raises:
        ConfigError: if there is no image, or the pixel size of one is not known.
        DataError: if none of the images shows tissue.
    """
    names = find_images(folder)
    if not names:
        what = "holds no PNG, JPEG or TIFF" if folder.is_dir() else "is no folder"
        msg = f"{_KEY}.reference={folder}: {what}. Expected a folder with tiles of your IHC; null = no reference."
        raise ConfigError(msg)
    sizes = {name: _mpp(folder / name, mpp) for name in names}
    path = store / f"stains-{_key(folder, sizes)}.json"
    with exclusive(path.with_suffix(".lock")):  # one process measures for all
        if path.is_file():
            return [_tile(row) for row in json.loads(path.read_text(encoding="utf-8"))]
        tiles = _measured(folder, sizes)
        with unless_read_only(path):
            write_text(path, json.dumps([asdict(tile) for tile in tiles]))
    return tiles


def _mpp(file: Path, mpp: float | None) -> float:
    found = mpp or stated_mpp(file)
    if found is None:
        msg = f"{file}: does not state its pixel size. Pass {_KEY}.reference_mpp, in um/px."
        raise ConfigError(msg)
    return found


def _key(folder: Path, mpps: dict[str, float]) -> str:
    found: list[Any] = [VERSION, FIELD]
    for name, mpp in mpps.items():
        stat = (folder / name).stat()
        found.append((name, mpp, stat.st_size, stat.st_mtime_ns))
    return sha256(json.dumps(found).encode()).hexdigest()[:16]


def _measured(folder: Path, mpps: dict[str, float]) -> list[ReferenceTile]:
    from rich.progress import track

    def of_image(name: str) -> list[ReferenceTile]:
        image, mpp = read_image(folder / name), mpps[name]
        tiles = []
        for window in parts(image.shape[:2], FIELD / mpp):
            top, left, height, width = window
            stains = measure(np.ascontiguousarray(image[top : top + height, left : left + width]), mpp)
            if stains is not None:
                tiles.append(ReferenceTile(name, window, mpp, stains))
        return tiles

    results = track(map_in_threads(of_image, list(mpps)), "Measuring the stains of the reference", total=len(mpps))
    tiles = [tile for found in results for tile in found]
    if not tiles:
        msg = f"{_KEY}.reference={folder}: none of its {len(mpps)} images shows tissue. Choose tiles of stained IHC."
        raise DataError(msg)
    log.info(
        "%s: the stains of %d tiles of about %g um in %d images are measured.", folder, len(tiles), FIELD, len(mpps)
    )
    return tiles


def parts(shape: Sequence[int], side: float) -> list[tuple[int, int, int, int]]:
    """Return equal windows of about a side that cover an image: first row, first column, height and width.

    >>> parts((100, 210), 100)
    [(0, 0, 100, 105), (0, 105, 100, 105)]
    """
    edges = [np.linspace(0, length, max(1, round(length / side)) + 1).round().astype(int).tolist() for length in shape]
    rows, columns = (list(pairwise(ends)) for ends in edges)
    return [(top, left, bottom - top, right - left) for top, bottom in rows for left, right in columns]


def _tile(row: dict[str, Any]) -> ReferenceTile:
    stains: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row["stains"].items()
    }
    return ReferenceTile(row["file"], tuple(row["window"]), row["mpp"], StainStatistics(**stains))
