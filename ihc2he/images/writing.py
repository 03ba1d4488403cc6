"""Encoding and writing images and label maps, whole or from top to bottom.

An incomplete file never gets its final name.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import NAMESPACE_OID, uuid5

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.files import complete
from ihc2he.images.containers import PNG_SIGNATURE

_GREY, _RGB = 0, 2  # colour types of a PNG
_NO_FILTER, _FROM_LEFT = 0, 1
_TILE = 256  # px, side of the tiles of a TIFF


def as_png(image: NDArray[np.uint8 | np.uint16]) -> bytes:
    """Return the content of a PNG: RGB of HxWx3, or grey or labels of HxW."""
    return _encoded(".png", image)


def as_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Return the content of a JPEG of an HxWx3 RGB image; `quality` is 0 to 100."""
    return _encoded(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, quality)


def as_webp(image: NDArray[np.uint8], quality: int) -> bytes:
    """Return the content of a WebP of an HxWx3 RGB image, with sides up to 16383 px; `quality` is 0 to 100."""
    return _encoded(".webp", image, cv2.IMWRITE_WEBP_QUALITY, quality)


def write_png(path: Path, image: NDArray[np.uint8 | np.uint16]) -> None:
    """Write a PNG: RGB of HxWx3, or grey or labels of HxW."""
    with complete(path) as temporary:
        temporary.write_bytes(as_png(image))


def _encoded(suffix: str, image: NDArray[Any], *settings: int) -> bytes:
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, bgr, settings)[1].tobytes()


def write_maps(path: Path, maps: Mapping[str, NDArray[np.float32]], mpp: float) -> None:
    """Write maps of one area as the channels of an OME-TIFF of 32-bit numbers.

    Args:
        path: of the file.
        maps: HxW each, by the name of the channel.
        mpp: um/px.
    """
    import tifffile

    uuid = uuid5(NAMESPACE_OID, f"{path.name} {list(maps)} {mpp}")  # with one of the moment equal maps would differ
    metadata: dict[str, Any] = {"axes": "CYX", "UUID": uuid.urn, "Channel": {"Name": list(maps)}}
    metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    with complete(path) as temporary:
        tifffile.imwrite(
            temporary, np.stack([*maps.values()]), ome=True, compression="zlib", photometric="minisblack",
            metadata=metadata,
        )  # fmt: skip


def write_instances(path: Path, inst_hw: NDArray[np.int32]) -> None:
    """Write an instance map, as 16-bit PNG or 32-bit TIFF, depending on its suffix."""
    write_instance_rows(path, inst_hw.shape, [inst_hw])  # type: ignore[arg-type]


def write_instance_rows(path: Path, shape: tuple[int, int], strips: Iterable[NDArray[np.int32]]) -> None:
    """Like `write_instances`, from top to bottom.

    Args:
        path: of the file.
        shape: height and width of the whole map.
        strips: rows of it, each hxW.
    """
    if path.suffix == ".png":
        with png_rows(path, shape, np.uint16) as png:
            for rows_hw in strips:
                png.write(rows_hw.astype(np.uint16))
        return
    import tifffile

    with complete(path) as temporary:
        tiles = _tiles((rows_hw.astype(np.uint32) for rows_hw in strips), shape)
        tifffile.imwrite(
            temporary, tiles, shape=shape, dtype=np.uint32, tile=(_TILE, _TILE), compression="zlib", metadata=None
        )


def _tiles(strips: Iterable[NDArray[np.uint32]], shape: tuple[int, int]) -> Iterator[NDArray[np.uint32]]:
    """Yield the tiles of an image row by row, those at its borders filled up with zeros."""
    missing, width = shape
    across = -(-width // _TILE)
    waiting_hw = np.zeros((0, width), np.uint32)
    for rows_hw in strips:
        waiting_hw = np.concatenate([waiting_hw, rows_hw])
        missing -= len(rows_hw)
        while len(waiting_hw) >= _TILE or (len(waiting_hw) and not missing):
            band_hw = np.zeros((_TILE, across * _TILE), np.uint32)
            band_hw[: len(waiting_hw[:_TILE]), :width] = waiting_hw[:_TILE]
            yield from band_hw.reshape(_TILE, across, _TILE).swapaxes(0, 1)
            waiting_hw = waiting_hw[_TILE:]


class PngRows:
    """A PNG that is written from top to bottom; see `png_rows`."""

    def __init__(self, stream: IO[bytes], shape: tuple[int, ...], dtype: type[np.unsignedinteger]) -> None:
        self._stream, self._shape = stream, shape
        self._type = np.dtype(dtype).newbyteorder(">")
        self._step = self._type.itemsize * (shape[2] if len(shape) == 3 else 1)  # bytes from pixel to pixel
        labels = len(shape) == 2
        self._packer = zlib.compressobj(1, strategy=zlib.Z_DEFAULT_STRATEGY if labels else zlib.Z_RLE)
        self._filter = _NO_FILTER if labels else _FROM_LEFT
        self._rows = 0
        stream.write(PNG_SIGNATURE)
        colour = _GREY if labels else _RGB
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8 * self._type.itemsize, colour, 0, 0, 0))

    def write(self, rows: NDArray[np.unsignedinteger]) -> None:
        """Write the next rows, hxW or hxWx3."""
        height = len(rows)
        stored = np.ascontiguousarray(rows, self._type).view(np.uint8).reshape(height, self._step * self._shape[1])
        lines = np.empty((height, 1 + stored.shape[1]), np.uint8)
        lines[:, 0] = self._filter
        lines[:, 1:] = stored
        if self._filter == _FROM_LEFT:
            lines[:, 1 + self._step :] -= stored[:, : -self._step]
        self._rows += height
        self._chunk(b"IDAT", self._packer.compress(lines.data))

    def finish(self) -> None:
        """Write the end.

        Raises:
            ValueError: rows are missing.
        """
        if self._rows != self._shape[0]:
            msg = f"The PNG has {self._shape[0]} rows, and {self._rows} were written."
            raise ValueError(msg)
        self._chunk(b"IDAT", self._packer.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, content: bytes) -> None:
        if content or kind == b"IEND":
            self._stream.write(struct.pack(">I4s", len(content), kind))
            self._stream.write(content)
            self._stream.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))


@contextmanager
def png_rows(path: Path, shape: tuple[int, ...], dtype: type[np.unsignedinteger] = np.uint8) -> Iterator[PngRows]:
    """Yield a PNG to be written from top to bottom, for images too large for memory.

    Args:
        path: of the file, which gets its name when all rows are there.
        shape: HxW for grey, HxWx3 for RGB.
        dtype: uint8 or uint16.

    Raises:
        ValueError: at the end, if rows are missing.
    """
    with complete(path) as temporary, temporary.open("wb") as stream:
        png = PngRows(stream, shape, dtype)
        yield png
        png.finish()
