"""Whole slides of any common format, read by region from the levels of their pyramids."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError, DataError
from ihc2he.images import tiff
from ihc2he.images.containers import JPEG_SIGNATURE, PNG_SIGNATURE
from ihc2he.images.pixelsize import PLAUSIBLE, Stated, square_mpp
from ihc2he.images.pixelsize import stated_by as tiff_mpp
from ihc2he.images.source import FileSource, ImageSource
from ihc2he.images.tiff import paste
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

if TYPE_CHECKING:
    import openslide
    import tifffile

# Endings of slides; their content decides how they are read.
SLIDE_SUFFIXES = (
    ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm",
    ".tif", ".tiff", ".btf", ".tf8", ".png", ".jpg", ".jpeg",
)  # fmt: skip
_UNLIKE = 1.1  # ratio of the proportions of two levels
_MOST_PX = 2**22  # of a side; a metre at 0.25 um/px
_BLOCK = 256  # px of the parts that a level with a broken downsample factor is read in


def open_slide(path: Path, mpp: float | None = None) -> ImageSource:
    """Return a slide that is read by region.

    OpenSlide reads the formats of scanners (SVS, NDPI, MRXS, SCN, BIF, VMS, ...) and DICOM. OME-TIFF, BigTIFF and other
    TIFF files are read with tifffile, with their pyramids; PNG and JPEG are slides of one level.

    Args:
        path: of the file, or the folder of a slide in DICOM.
        mpp: um/px; None: what the file states.

    Raises:
        DataError: with the file, what is wrong with it, and what to do.
        ConfigError: if OpenSlide is needed and not installed, or `mpp` cannot be a pixel size.
    """
    if mpp is not None and not is_pixel_size(mpp):
        msg = f"data.mpp={mpp}: expected {PIXEL_SIZE}."
        raise ConfigError(msg)
    path = Path(path)
    try:
        if path.is_dir():
            return SlideSource(_of_dicom(path), mpp, name=str(path))
        with path.open("rb") as stream:
            start = stream.read(8)
        is_tiff = start[:4] in tiff.SIGNATURES
        if start.startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
            return FileSource(path, mpp)
        if not is_tiff or _is_of_scanner(path):
            return SlideSource(path, mpp)
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        raise DataError(msg) from error
    source = PyramidSource(path, mpp)
    return source if source.by_region else FileSource(path, source.mpp)


def _of_dicom(folder: Path) -> Path:
    """Return a file of the only slide in a folder of DICOM files; OpenSlide finds the others."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".dcm" and path.is_file())
    if not found:
        msg = f"{folder}: a folder without .dcm files is not a slide. Pass the file of the slide."
        raise DataError(msg)
    series = {SlideSource(path, mpp=1.0).series: path for path in reversed(found)}
    if len(series) > 1:
        names = ", ".join(sorted(path.name for path in series.values()))
        msg = f"{folder}: holds {len(series)} slides, expected one. Pass a file of the one that you mean, of: {names}."
        raise DataError(msg)
    return found[0]


def _is_of_scanner(path: Path) -> bool:
    """Return whether a TIFF has the layout of a scanner's maker, which OpenSlide knows."""
    try:
        vendor = _openslide(path).OpenSlide.detect_format(path)
    except ConfigError:
        if tiff.is_of_scanner(path):
            raise
        return False
    return vendor not in (None, "generic-tiff")


def _openslide(path: Path) -> ModuleType:
    try:
        import openslide
    except ImportError as error:
        msg = f'{path}: reading this slide needs OpenSlide: pip install "ihc2he[slides]".'
        raise ConfigError(msg) from error
    return openslide


class _Slide(ImageSource):
    """A file with levels, which is opened again in each process that the object comes to, by pickling or by forking.

    Args:
        path: of the file.
        name: for messages; None: the path.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or str(path)
        self._file: Any = None
        self._process = 0

    @abstractmethod
    def _open(self) -> Any:
        """Return the opened file."""

    @property
    def _opened(self) -> Any:
        if self._file is None or self._process != os.getpid():
            self._file, self._process = self._open(), os.getpid()
        return self._file

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a level in px."""
        return self._shapes[level]

    def _set_shapes(self, shapes: list[tuple[int, int]]) -> None:
        if max(shapes[0]) > _MOST_PX:
            msg = f"{self.name}: states {shapes[0][1]} x {shapes[0][0]} px, which cannot be. Copy the slide again."
            raise DataError(msg)
        self._shapes = shapes
        self.shape = shapes[0]
        self.levels = tuple(_factor(self.shape, shape) for shape in shapes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


def _factor(whole: tuple[int, int], level: tuple[int, int]) -> float:
    """Return how many times smaller a level is; a whole number where rounding may have made its size.

    >>> _factor((250, 300), (62, 75)), _factor((250, 300), (100, 120))
    (4.0, 2.5)
    """
    factor = (whole[0] / level[0] + whole[1] / level[1]) / 2
    nearest = max(1, round(factor))
    rounds = all(abs(large - small * nearest) < nearest for large, small in zip(whole, level, strict=True))
    return float(nearest) if rounds else factor


class SlideSource(_Slide):
    """A slide that OpenSlide reads; where the scanner states bounds of what it has scanned, only this, as in QuPath.

    Args:
        path: of the file.
        mpp: um/px; None: what the file states.
        name: for messages; None: the path.

    Attributes:
        series: of DICOM, by which the files of a slide belong together; None in other formats.

    Raises:
        DataError: with the file, what is wrong with it, and what to do.
        ConfigError: if OpenSlide is not installed.
    """

    def __init__(self, path: Path, mpp: float | None = None, name: str | None = None) -> None:
        super().__init__(path, name)
        slide = self._opened
        stated = slide.properties
        try:
            x, y, width, height = (int(stated[f"openslide.bounds-{key}"]) for key in ("x", "y", "width", "height"))
        except (KeyError, ValueError):
            x, y, (width, height) = 0, 0, slide.dimensions
        self.series = stated.get("dicom.SeriesInstanceUID")
        self._corner = x, y
        self._factors = slide.level_downsamples
        whole = slide.dimensions
        for level in slide.level_dimensions[1:2]:  # later ones may be so small that rounding shows
            if not 1 / _UNLIKE < whole[0] * level[1] / whole[1] / level[0] < _UNLIKE:
                sizes = " and ".join(f"{size[0]} x {size[1]}" for size in (whole, level))
                msg = f"{self.name}: its levels, {sizes} px, do not fit each other. Copy the slide again."
                raise DataError(msg)
        self._set_shapes(
            [(max(1, height * h // whole[1]), max(1, width * w // whole[0])) for w, h in slide.level_dimensions]
        )
        self._background = np.array(
            [int(stated.get("openslide.background-color", "FFFFFF")[i : i + 2], 16) for i in (0, 2, 4)], np.uint16
        )
        self.mpp = _stated_mpp(self.name, stated) if mpp is None else mpp

    def _open(self) -> openslide.OpenSlide:
        library = _openslide(self.path)
        try:
            return library.OpenSlide(self.path)
        except library.OpenSlideUnsupportedFormatError as error:
            msg = (
                f"{self.name}: is no slide that OpenSlide knows and no PNG, JPEG or TIFF, or it is damaged. Expected "
                "SVS, NDPI, MRXS, SCN, BIF, VMS, DICOM or OME-TIFF: copy it again, with the files that belong to it."
            )
            raise DataError(msg) from error
        except library.OpenSlideError as error:
            msg = (
                f"{self.name}: the slide is damaged or incomplete ({_said(error)}). Copy it again, with the files that "
                "belong to it."
            )
            raise DataError(msg) from error

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        # With a broken factor OpenSlide interpolates, by where a region begins; on a grid every pixel has one value.
        if self._factors[level].is_integer():
            return self._part(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start, level)
        height, width = self.level_shape(level)
        made = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        for top, left in product(_grid(rows), _grid(columns)):
            part = self._part(top, left, min(_BLOCK, height - top), min(_BLOCK, width - left), level)
            paste(made, part, (top - rows.start, left - columns.start))
        return made

    def _part(self, top: int, left: int, height: int, width: int, level: int) -> NDArray[np.uint8]:
        if not height or not width:
            return np.zeros((height, width, 3), np.uint8)
        factor = self._factors[level]
        corner = self._corner[0] + round(left * factor), self._corner[1] + round(top * factor)
        library = _openslide(self.path)
        try:
            seen = np.asarray(self._opened.read_region(corner, level, (width, height)))
        except library.OpenSlideError as error:
            self._file = None  # after an error OpenSlide refuses every region
            msg = (
                f"{self.name}: level {level} does not decode at row {top}, column {left}, {height} x {width} px "
                f"({_said(error)}). Copy the slide again, or leave this region out."
            )
            raise DataError(msg) from error
        colour, opacity = seen[..., :3], seen[..., 3:].astype(np.uint16)
        if opacity.min() == 255:
            return np.ascontiguousarray(colour)
        return ((colour * opacity + self._background * (255 - opacity) + 127) // 255).astype(np.uint8)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _grid(part: slice) -> range:
    return range(part.start // _BLOCK * _BLOCK, part.stop, _BLOCK)


def _stated_mpp(name: str, stated: Mapping[str, str]) -> float | None:
    """Return the pixel size in a slide's metadata; None if there is none."""
    x, y = (stated.get(f"openslide.mpp-{axis}") for axis in "xy")
    if x is None or y is None:
        return None
    low, high = PLAUSIBLE
    try:
        found = Stated(float(x), float(y), by_ome=False)
    except ValueError:
        found = None
    if found is None or not (low <= found.x <= high and low <= found.y <= high):
        msg = f"{name}: states pixels of {x} x {y} um, which cannot be. Pass the right size as data.mpp."
        raise DataError(msg)
    return square_mpp(name, found)


class PyramidSource(_Slide):
    """An OME-TIFF, a BigTIFF or another TIFF, with the smaller copies that it holds as levels.

    Args:
        path: of the file.
        mpp: um/px; None: what the file states.

    Raises:
        DataError: with the file, what is wrong with it, and what to do.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        super().__init__(path)
        pages = self._opened
        self._set_shapes([(page.imagelength, page.imagewidth) for page in pages])
        self.by_region = all(tiff.by_region(page) for page in pages)
        self.mpp = square_mpp(self.name, tiff_mpp(pages[0])) if mpp is None else mpp

    def _open(self) -> list[tifffile.TiffPage]:
        files = ExitStack()
        try:
            pages = files.enter_context(tiff.opened_pyramid(self.path))
        except OSError as error:
            msg = f"{self.path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
            raise DataError(msg) from error
        except ValueError as error:
            msg = f"{self.path}: {error}. Copy the file again, or export it as an OME-TIFF of 8-bit RGB."
            raise DataError(msg) from error
        finalize(self, files.close)  # at once, though tifffile's objects refer to each other
        return pages

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        try:
            return tiff.samples(self._opened[level], rows, columns).rgb8()
        except ValueError as error:
            msg = (
                f"{self.path}: level {level} at row {rows.start}, column {columns.start}: {str(error).rstrip('.')}. "
                "Copy the slide again, or leave this region out."
            )
            raise DataError(msg) from error
