"""Finding, decoding and resizing image files of any kind, with errors that name the file."""

import logging
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError

log = logging.getLogger(__name__)

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame's header
_PHOTOMETRIC = (0, 1, 2, 3, 6)  # grey (either way round), RGB, palette, YCbCr
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, JPEG or TIFF file as HxWx3 uint8 RGB.

    Grey becomes three equal channels, transparency is laid over white (the colour of an empty slide), 16-bit
    is scaled by its full range, 65535 to 255.

    Raises:
        DataError: where the file cannot be read, is empty, truncated, corrupt, not an image, holds several
            pages, or has pixels of another kind.
    """
    data = read_whole(path)
    try:
        return to_rgb8(_decode(data))
    except ValueError as error:
        msg = f"{path}: {error} Export it as an 8-bit RGB PNG."
        raise DataError(msg) from error


def read_whole(path: Path) -> bytes:
    """Return the content of an image file after checking that it is whole.

    Raises:
        DataError: where it cannot be read, is empty, truncated, corrupt, not PNG, JPEG or TIFF, or holds several pages.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        raise DataError(msg) from error
    problem = _structural_problem(data)
    if problem:
        msg = f"{path}: {problem}. Expected a whole PNG, JPEG or TIFF image: copy or export the file again."
        raise DataError(msg)
    return data


def _decode(data: bytes) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        msg = "the image does not decode."
        raise ValueError(msg)
    return pixels


def to_rgb8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return decoded pixels as HxWx3 uint8 RGB.

    Args:
        pixels: HxW grey, HxWx3 BGR or HxWx4 BGRA, uint8 or uint16, as OpenCV decodes them.

    Raises:
        ValueError: for another shape or type.

    >>> to_rgb8(np.full((1, 1), 65535, np.uint16)).tolist()
    [[[255, 255, 255]]]
    >>> to_rgb8(np.array([[[255, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)).tolist()
    [[[0, 0, 255], [255, 255, 255]]]
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        msg = f"found {pixels.dtype} pixels, expected 8 or 16 bits per channel."
        raise ValueError(msg)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if channels not in (1, 3, 4):
        msg = f"found {channels} channels, expected grey, RGB or RGBA."
        raise ValueError(msg)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if channels == 3:
        return pixels[..., ::-1].copy()
    alpha_hw1 = pixels[..., 3:].astype(np.uint16)
    over_white = (pixels[..., 2::-1] * alpha_hw1 + 255 * (255 - alpha_hw1) + 127) // 255
    return over_white.astype(np.uint8)


def _structural_problem(data: bytes) -> str | None:
    """Return what is wrong with a file as a container, or None.

    Decoders return a half-grey picture for a file that ends early, so completeness is checked here.
    """
    if not data:
        return "the file is empty"
    if data.startswith(_PNG_SIGNATURE):
        return _png_problem(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_problem(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff_problem(data)
    return "the content is not a PNG, JPEG or TIFF"


def _png_problem(data: bytes) -> str | None:
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"the PNG is corrupt at byte {position} (checksum of chunk {kind.decode('latin-1')})"
        if kind == b"IEND":
            return None
        position = end
    return f"the PNG is truncated after {len(data)} bytes"


def _jpeg_problem(data: bytes) -> str | None:
    # The end marker must follow the last start of scan: an embedded thumbnail has both of its own.
    if data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda"):
        return "the JPEG is truncated"
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        kind, (length,) = data[position + 1], struct.unpack_from(">H", data, position + 2)
        if kind in _JPEG_FRAMES:
            return None if data[position + 9] in (1, 3) else f"the JPEG has {data[position + 9]} inks, not grey or RGB"
        position += 2 + length
    return None


def _tiff_problem(data: bytes) -> str | None:
    import tifffile

    try:
        with tifffile.TiffFile(BytesIO(data)) as tiff:
            pages = [page.aspage() for page in tiff.pages]
    except Exception as error:  # tifffile raises many kinds on damaged files
        return f"the TIFF is damaged ({error})"
    full = [page for page in pages if not page.is_reduced]
    if not full:
        return f"the TIFF is truncated after {len(data)} bytes"
    if len(full) > 1:
        return f"the TIFF holds {len(full)} pages, not one"
    if full[0].photometric not in _PHOTOMETRIC:
        return f"the TIFF has {getattr(full[0].photometric, 'name', full[0].photometric)} colours, not grey or RGB"
    segments = zip(full[0].dataoffsets, full[0].databytecounts, strict=True)
    if any(offset + count > len(data) for offset, count in segments):
        return f"the TIFF is truncated after {len(data)} bytes"
    return None
