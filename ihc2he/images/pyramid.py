"""Writing slides: tiled pyramids as OME-TIFF, from top to bottom, in little memory.

Shape suffixes: h, w = height, width; c = colour (3).
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from uuid import NAMESPACE_OID, uuid5

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.files import complete
from ihc2he.images.writing import as_jpeg

_BIG = 2**32 - 2**25  # bytes; a TIFF with more needs 64-bit offsets


def write_pyramid(
    path: Path,
    shape: tuple[int, int],
    mpp: float,
    strips: Iterable[NDArray[np.uint8]],
    tile: int = 512,
    quality: int | None = 90,
) -> None:
    """Write a pyramidal OME-TIFF, of which each level is half as large as the one before, down to a single tile.

    A pixel of a level is the rounded mean of the up to four pixels of the level before that it covers. Levels are
    SubIFDs, as OME wants it: tifffile, Bio-Formats and QuPath read all of them, openslide the full resolution only.

    Args:
        path: of the file, such as ``slide.ome.tif``, which gets its name when it is complete.
        shape: height and width of the image, px.
        mpp: um/px.
        strips: the image from top to bottom, each hxWx3 uint8 RGB, of any heights. A few rows of tiles are in memory.
        tile: side of the tiles, px; a multiple of 16.
        quality: of JPEG, 0 to 100; None: without loss (deflate).

    Raises:
        ValueError: for another width, or more or fewer rows than the shape has; nothing is left of the file then.
    """
    import tifffile

    if tile < 16 or tile % 16:
        msg = f"tile={tile}: TIFF has tiles whose sides are multiples of 16 px."
        raise ValueError(msg)
    shapes = [shape]
    while max(shapes[-1]) > tile:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    jpeg = quality is not None
    settings: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": (tile, tile),
        "photometric": "ycbcr" if jpeg else "rgb",
        "subsampling": (2, 2) if jpeg else None,
        "compression": "jpeg" if jpeg else "zlib",
        "resolutionunit": "CENTIMETER",
    }
    uuid = uuid5(NAMESPACE_OID, f"{path.name} {shape} {mpp}")  # with one of the moment equal images would differ
    metadata: dict[str, Any] = {"axes": "YXS", "UUID": uuid.urn}
    metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    with complete(path) as temporary, ExitStack() as stack:
        spools = [_Spool(stack.enter_context(TemporaryFile(dir=path.parent))) for _ in shapes[1:]]
        # Tiles of other levels follow the last of level 0, where tifffile would close a generator.
        full = chain(_full_resolution(_tiles(strips, [_Bands(level, tile) for level in shapes], quality), spools))
        # Compression cannot be foreseen, so that the limit is that of an image without.
        tiff = stack.enter_context(tifffile.TiffWriter(temporary, ome=True, bigtiff=4 * shape[0] * shape[1] > _BIG))
        per_cm = [1e4 / mpp / 2**k for k in range(len(shapes))]
        settings["resolution"] = per_cm[0], per_cm[0]
        tiff.write(full, shape=(*shape, 3), subifds=len(spools), metadata=metadata, **settings)
        deque(full, maxlen=0)
        for level, spool, scaled in zip(shapes[1:], spools, per_cm[1:], strict=True):
            settings["resolution"] = scaled, scaled
            tiff.write(spool.tiles(), shape=(*level, 3), subfiletype=1, metadata=None, **settings)


class _Spool:
    """Encoded tiles in a temporary file, until those of the level before are written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lengths: list[int] = []

    def add(self, tile: bytes) -> None:
        self._lengths.append(self._stream.write(tile))

    def tiles(self) -> Iterator[bytes]:
        self._stream.seek(0)
        for length in self._lengths:
            yield self._stream.read(length)


class _Bands:
    """Rows of a level that wait until a row of tiles is complete."""

    def __init__(self, shape: tuple[int, int], tile: int) -> None:
        self._missing, self._width = shape
        self.tile = tile
        self._band_hwc = np.empty((tile, self._width, 3), np.uint8)
        self._filled = 0

    def add(self, rows_hwc: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Yield the bands that these rows complete; a band is valid until the next."""
        if rows_hwc.shape[1:] != (self._width, 3) or len(rows_hwc) > self._missing:
            msg = (
                f"A strip of shape {rows_hwc.shape} came where {self._missing} rows of {self._width} px were expected."
            )
            raise ValueError(msg)
        while len(rows_hwc):
            taken = min(len(self._band_hwc) - self._filled, len(rows_hwc))
            self._band_hwc[self._filled : self._filled + taken] = rows_hwc[:taken]
            self._filled += taken
            self._missing -= taken
            rows_hwc = rows_hwc[taken:]
            if self._filled == len(self._band_hwc) or not self._missing:
                yield self._band_hwc[: self._filled]
                self._filled = 0

    def finish(self) -> None:
        if self._missing:
            msg = f"{self._missing} rows of the image are missing."
            raise ValueError(msg)


def _tiles(
    strips: Iterable[NDArray[np.uint8]], levels: list[_Bands], quality: int | None
) -> Iterator[tuple[int, bytes]]:
    """Yield the level and the content of each tile; those of one level come row by row."""

    def of_level(k: int, rows_hwc: NDArray[np.uint8]) -> Iterator[tuple[int, bytes]]:
        for band_hwc in levels[k].add(rows_hwc):
            yield from ((k, tile) for tile in _encoded(band_hwc, levels[k].tile, quality))
            if k + 1 < len(levels):
                yield from of_level(k + 1, _halved(band_hwc))

    for rows_hwc in strips:
        yield from of_level(0, rows_hwc)
    levels[0].finish()


def _full_resolution(tiles: Iterable[tuple[int, bytes]], spools: list[_Spool]) -> Iterator[bytes]:
    """Yield the tiles of level 0, and keep the others."""
    for level, tile in tiles:
        if level:
            spools[level - 1].add(tile)
        else:
            yield tile


def _encoded(band_hwc: NDArray[np.uint8], tile: int, quality: int | None) -> Iterator[bytes]:
    """Yield the tiles of a band, those at the image's end filled up with its last pixels."""
    for left in range(0, band_hwc.shape[1], tile):
        part_hwc = band_hwc[:, left : left + tile]
        bottom, right = tile - part_hwc.shape[0], tile - part_hwc.shape[1]
        if bottom or right:
            part_hwc = np.pad(part_hwc, ((0, bottom), (0, right), (0, 0)), "edge")
        yield zlib.compress(part_hwc.tobytes()) if quality is None else as_jpeg(part_hwc, quality)


def _halved(band_hwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the means of 2x2 px; of what there is, where a side is odd.

    >>> _halved(np.array([[[0] * 3, [1] * 3, [9] * 3], [[2] * 3, [7] * 3, [9] * 3]], np.uint8))[..., 0].tolist()
    [[3, 9]]
    """
    bottom, right = band_hwc.shape[0] % 2, band_hwc.shape[1] % 2
    if bottom or right:
        band_hwc = np.pad(band_hwc, ((0, bottom), (0, right), (0, 0)), "edge")
    height, width = band_hwc.shape[:2]
    return cv2.resize(band_hwc, (width // 2, height // 2), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
