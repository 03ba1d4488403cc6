"""Decoding image files of any kind, with errors that name the file.

The tags of a file are followed: inverted grey, palettes, bits of a sample, opacity, planes, orientation. Gamma and
colour profiles are not, because networks and optical densities need the stored values.
Of a JPEG with several pictures the first one is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images import tiff
from ihc2he.images.containers import JPEG_SIGNATURE, PNG_SIGNATURE, Header, jpeg_header, palette_as_grey, png_header
from ihc2he.images.samples import Samples

MAX_PIXELS = 2**30  # the limit of OpenCV


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, JPEG or TIFF file as HxWx3 uint8 RGB.

    Grey becomes three equal channels, transparency is laid over white (the colour of an empty slide), 16-bit
    is scaled by its full range, 65535 to 255.

    Raises:
        DataError: if the file cannot be read, is empty, truncated, corrupt, not an image, has several
            pages, or has pixels of another kind.
    """
    samples = read_samples(path)
    try:
        return samples.rgb8()
    except ValueError as error:
        msg = f"{path}: {error} Export it as an 8-bit RGB PNG."
        raise DataError(msg) from error


def read_samples(path: Path, raw: bool = False) -> Samples:
    """Return the samples of an image file with their meaning, after checking that it is complete.

    Args:
        path: of the file.
        raw: the stored values, for label maps: positions in a palette, and few bits not scaled to eight.

    Raises:
        DataError: if it cannot be read, is empty, truncated, corrupt, not PNG, JPEG or TIFF, or has several pages.
    """
    with _named_errors(path):
        if tiff.is_tiff(path):
            with tiff.opened(path) as page:
                return tiff.samples(page)
        return samples_of(path.read_bytes(), raw)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file in px, as `read_image` returns them, without decoding it.

    Raises:
        DataError: if it cannot be read, is empty, truncated, corrupt, not PNG, JPEG or TIFF, or has several pages.
    """
    with _named_errors(path):
        if tiff.is_tiff(path):
            with tiff.opened(path) as page:
                height, width, turned = page.imagelength, page.imagewidth, tiff.orientation(page)
        else:
            known = header(path.read_bytes())
            height, width, turned = known.height, known.width, known.orientation
    return (width, height) if turned >= 5 else (height, width)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into a DataError that names it."""
    try:
        yield
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        raise DataError(msg) from error
    except ValueError as error:
        msg = f"{path}: {error}. Expected a whole PNG, JPEG or TIFF image; if it is one, copy or export it again."
        raise DataError(msg) from error


def header(data: bytes) -> Header:
    """Return the properties of a PNG or JPEG.

    Raises:
        ValueError: if it is neither, or not complete.
    """
    if not data:
        msg = "the file is empty"
        raise ValueError(msg)
    if data.startswith(PNG_SIGNATURE):
        return png_header(data)
    if data.startswith(JPEG_SIGNATURE):
        return jpeg_header(data)
    msg = "the content is not a PNG, JPEG or TIFF"
    raise ValueError(msg)


def samples_of(data: bytes, raw: bool = False) -> Samples:
    """Return the samples of a PNG or JPEG with their meaning.

    Args:
        data: the content of the file.
        raw: as for `read_samples`.

    Raises:
        ValueError: if it is neither, not complete, or too large.
    """
    known = header(data)
    if known.height * known.width > MAX_PIXELS:
        msg = (
            f"{known.width}x{known.height} px are more than can be decoded at once (2^30). Save it as a tiled TIFF, "
            "which is read by region, or cut it"
        )
        raise ValueError(msg)
    values = _decoded(palette_as_grey(data) if raw and known.palette else data)
    values_hws = values[..., None] if values.ndim == 2 else values
    white = (1 << known.bits) - 1
    if raw and known.bits < 8 and values_hws.shape[-1] == 1:
        values_hws = values_hws // (255 // white)  # which the decoder has multiplied by it
    n = values_hws.shape[-1]
    if n >= 3:
        values_hws = cv2.cvtColor(values_hws, cv2.COLOR_BGR2RGB if n == 3 else cv2.COLOR_BGRA2RGBA)
    elif known.clear_grey is not None and not raw:
        clear = known.clear_grey * (255 // white if known.bits < 8 else 1)
        opaque = np.where(values_hws == clear, 0, np.iinfo(values_hws.dtype).max).astype(values_hws.dtype)
        values_hws = np.concatenate([values_hws, opaque], axis=2)
    alpha = {2: 1, 4: 3}.get(values_hws.shape[-1])
    bits = 8 * values_hws.itemsize
    return Samples(
        values_hws,
        bits,
        colours=3 if n >= 3 else 1,
        alpha=alpha,
        orientation=known.orientation,
        lossy=data.startswith(JPEG_SIGNATURE),
    )


def _decoded(data: bytes) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        msg = "the image does not decode"
        raise ValueError(msg)
    return pixels
