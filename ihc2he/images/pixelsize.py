"""The pixel size that a TIFF states about itself: in OME-XML, in ImageJ's text, or as its resolution."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from ihc2he.errors import DataError
from ihc2he.images import tiff

if TYPE_CHECKING:
    import tifffile

log = logging.getLogger(__name__)

PLAUSIBLE = (0.05, 10.0)  # um/px; 300 dots per inch, a default of many programs, would be 85
NOT_SQUARE = 1.02  # ratio of the sides of a pixel
CONTRADICTS = 1.05  # ratio of two pixel sizes

_MICROMETRES = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_IMAGEJ = ("micron", "microns", "um", "µm", "\\u00B5m")  # its names of the micrometre


class Stated(NamedTuple):
    """What a file states.

    Attributes:
        x: um/px across.
        y: um/px down.
        by_ome: whether OME-XML says so, which is written for this purpose.
    """

    x: float
    y: float
    by_ome: bool

    @property
    def mpp(self) -> float:
        return (self.x + self.y) / 2

    @property
    def is_square(self) -> bool:
        return max(self.x, self.y) <= NOT_SQUARE * min(self.x, self.y)


def stated_mpp(path: Path) -> float | None:
    """Return um/px as the header of a TIFF states it; None for other files, and if it states nothing that can be true.

    Resolutions for printing, such as 300 dpi, and the 1 um/px of programs that do not know better are not believed.

    Raises:
        DataError: if its pixels are not square.
    """
    return square_mpp(str(path), _stated(path))


def square_mpp(name: str, stated: Stated | None) -> float | None:
    """Return um/px of what a file states, or None if it states nothing.

    Args:
        name: of the file, for messages.
        stated: by the file.

    Raises:
        DataError: if its pixels are not square.
    """
    if stated is None:
        return None
    if not stated.is_square:
        msg = (
            f"{name}: states pixels of {stated.x:.4g} x {stated.y:.4g} um, expected square ones. Resample it; or, if "
            "that is wrong, pass data.mpp or write um_per_px to tiles.csv."
        )
        raise DataError(msg)
    return stated.mpp


def compare_with_files(mpps: Mapping[Path, float]) -> None:
    """Log how many files state the pixel size that is used, and warn of those whose OME-XML states another.

    Args:
        mpps: um/px that is used, by file.
    """
    same, other = [], []
    for path, mpp in mpps.items():
        stated = _stated(path)
        if stated is not None and stated.is_square and stated.mpp == mpp:
            same.append(f"{path} ({mpp:.4g} um/px)")
        elif stated is not None and stated.by_ome and _ratio(stated, mpp) > CONTRADICTS:
            other.append(f"{path} states {stated.x:.4g} um/px, {mpp:.4g} is used")
    if same:
        log.info(
            "%d of %d images are read with the pixel size that they state, such as %s.", len(same), len(mpps), same[0]
        )
    if other:
        log.warning(
            "%d of %d images state another pixel size than the one they are read with: %s. Check which is right.",
            len(other), len(mpps), other[0],
        )  # fmt: skip


def _ratio(stated: Stated, mpp: float) -> float:
    return max(max(side, mpp) / min(side, mpp) for side in (stated.x, stated.y))


def _stated(path: Path) -> Stated | None:
    try:
        if not tiff.is_tiff(path):
            return None
        with tiff.opened(path) as page:
            return stated_by(page)
    except (OSError, ValueError):  # reading the image tells what is wrong with the file
        return None


def stated_by(page: tifffile.TiffPage) -> Stated | None:
    """Return what the file of a page states, if that can be true."""
    return _of_ome(page.parent) or _of_resolution(page)


def _of_ome(file: tifffile.TiffFile) -> Stated | None:
    """Return what OME-XML states of its first image."""
    if not file.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return None
    pixels = next((node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    try:
        x, y = (
            float(pixels.get(key, 0)) * _MICROMETRES.get(pixels.get(f"{key}Unit", "µm"), 0)
            for key in ("PhysicalSizeX", "PhysicalSizeY")
        )
    except ValueError:
        return None
    return None if x == y == 1 else _believed(x, y, by_ome=True)


def _of_resolution(page: tifffile.TiffPage) -> Stated | None:
    """Return what the tags of the resolution state; ImageJ has its own unit for them."""
    is_imagej = (page.parent.imagej_metadata or {}).get("unit") in _IMAGEJ
    x, y = (1 / n if n > 0 else 0 for n in page.get_resolution("MICROMETER", scale=1e6 if is_imagej else None))
    return _believed(x, y, by_ome=False)


def _believed(x: float, y: float, by_ome: bool) -> Stated | None:
    low, high = PLAUSIBLE
    return Stated(x, y, by_ome) if low <= x <= high and low <= y <= high else None
