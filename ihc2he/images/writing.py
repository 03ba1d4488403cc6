"""Encoding and writing images and label maps; an incomplete file never gets its final name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.files import complete


def as_png(image: NDArray[np.uint8 | np.uint16]) -> bytes:
    """Return the content of a PNG: RGB of HxWx3, or grey or labels of HxW."""
    return _encoded(".png", image)


def as_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Return the content of a JPEG of an HxWx3 RGB image; `quality` is 0 to 100."""
    return _encoded(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, quality)


def write_png(path: Path, image: NDArray[np.uint8 | np.uint16]) -> None:
    """Write a PNG: RGB of HxWx3, or grey or labels of HxW."""
    with complete(path) as temporary:
        temporary.write_bytes(as_png(image))


def write_instances(path: Path, inst_hw: NDArray[np.int32]) -> None:
    """Write an instance map, as 16-bit PNG or 32-bit TIFF, depending on its suffix."""
    if path.suffix == ".png":
        write_png(path, inst_hw.astype(np.uint16))
        return
    import tifffile

    with complete(path) as temporary:
        tifffile.imwrite(temporary, inst_hw.astype(np.uint32), compression="zlib")


def _encoded(suffix: str, image: NDArray[Any], *settings: int) -> bytes:
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, bgr, settings)[1].tobytes()
