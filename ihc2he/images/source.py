"""Images that are read by region, so that large ones need not fit into memory."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import ExitStack
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.images import tiff
from ihc2he.images.decoding import image_size, read_image
from ihc2he.stain.white import White, white_point
from ihc2he.tiling.resampling import resize

if TYPE_CHECKING:
    import tifffile

WHOLE_PX = 2**24  # pixels of an image that is looked at as a whole; of a larger one a thumbnail is
_WHITE_PX = 2048  # longer side of the thumbnail for estimating the white point
_ROWS = 1024  # of the strips that a thumbnail is made of
_PART = 256  # px, of the parts of a strip that does not decode

log = logging.getLogger(__name__)


class ImageSource(ABC):
    """An image of any size.

    Attributes:
        name: of the image, for messages.
        shape: height and width in px, at full resolution.
        mpp: um/px at full resolution; None if it is not known.
        levels: factor by which each level is smaller than full resolution, starting with 1.0.
        by_region: whether a region is read without reading the whole.
    """

    name: str
    shape: tuple[int, int]
    mpp: float | None
    levels: tuple[float, ...] = (1.0,)
    by_region: bool = True

    @abstractmethod
    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region, HxWx3 uint8 RGB.

        Args:
            rows: from and to, in the pixels of the level; inside the image.
            columns: likewise.
            level: index into `levels`.

        Raises:
            DataError: if the file cannot be read.
        """

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a level in px."""
        height, width = (max(1, int(side / self.levels[level])) for side in self.shape)
        return height, width

    @cached_property
    def white(self) -> White:
        """The white point of the whole image: the colour of its glass, see `ihc2he.stain.white`."""
        return white_point(self.thumbnail(_WHITE_PX))

    def whole(self) -> NDArray[np.uint8]:
        """Return the whole image at full resolution, HxWx3 uint8 RGB."""
        return self.read(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def overview(self, most_px: int) -> NDArray[np.uint8]:
        """Return the whole image if it is small enough to be looked at as it is, otherwise a `thumbnail`."""
        return self.whole() if self.shape[0] * self.shape[1] <= WHOLE_PX else self.thumbnail(most_px)

    def thumbnail(self, most_px: int) -> NDArray[np.uint8]:
        """Return the whole image, its longer side at most this number of px, HxWx3 uint8 RGB; read strip by strip.

        It is made of the smallest level that is large enough. What does not decode is white in it, with a warning.

        Raises:
            DataError: if nothing decodes.
        """
        factor = max(1.0, max(self.shape) / most_px)
        if factor == 1:
            return self.whole()
        made_h, made_w = (max(1, int(side / factor)) for side in self.shape)
        level = max(i for i, other in enumerate(self.levels) if other <= factor)
        height, width = self.level_shape(level)
        factor /= self.levels[level]
        step = max(1, int(_ROWS / factor))
        strips, lost = [], 0
        for start in range(0, made_h, step):
            stop = min(start + step, made_h)
            strip, blank = self._strip(slice(start * height // made_h, stop * height // made_h), width, level)
            strips.append(resize(strip, stop - start, made_w))
            lost += blank
        if lost == height * width:
            msg = f"{self.name}: no part of it decodes. Copy the file again."
            raise DataError(msg)
        if lost:
            log.warning(
                "%s: %.2g %% of it do not decode and are white in its thumbnail.",
                self.name,
                100 * lost / height / width,
            )
        return np.concatenate(strips)

    def _strip(self, rows: slice, width: int, level: int) -> tuple[NDArray[np.uint8], int]:
        """Return some rows of a level, and how many of their px are white because they do not decode."""
        try:
            return self.read(rows, slice(0, width), level), 0
        except DataError:
            if not self.by_region:
                raise
        strip, blank = np.full((rows.stop - rows.start, width, 3), 255, np.uint8), 0
        for top, left in product(range(rows.start, rows.stop, _PART), range(0, width, _PART)):
            part = slice(top, min(top + _PART, rows.stop)), slice(left, min(left + _PART, width))
            try:
                strip[top - rows.start : part[0].stop - rows.start, part[1]] = self.read(*part, level)
            except DataError:
                blank += (part[0].stop - top) * (part[1].stop - left)
        return strip, blank


class ArraySource(ImageSource):
    """An image that is in memory.

    Args:
        image: HxWx3 uint8 RGB.
        mpp: um/px; None if it is not known.
        name: for messages.
        white: its white point, if known; None: it is estimated when needed.
    """

    def __init__(
        self, image: NDArray[np.uint8], mpp: float | None = None, name: str = "image", white: White | None = None
    ) -> None:
        self.image, self.mpp, self.name = image, mpp, name
        if white is not None:
            self.white = white
        self.shape = image.shape[:2]  # type: ignore[assignment]

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        return self.image[rows, columns]


class FileSource(ImageSource):
    """A PNG, JPEG or TIFF file.

    Only those tiles or strips of a TIFF are decoded that a region touches; any other file is decoded when the first
    region is read, and kept. The file is opened again in each process that the object is sent to.

    Args:
        path: of the file.
        mpp: um/px; None if it is not known.

    Raises:
        DataError: with the file and what is wrong with it.
    """

    def __init__(self, path: str | Path, mpp: float | None = None) -> None:
        self.path = Path(path)
        self.name, self.mpp = str(path), mpp
        self._open()
        page = self._page
        self.shape = image_size(self.path) if page is None else (page.imagelength, page.imagewidth)

    def _open(self) -> None:
        self._files = ExitStack()
        self._page: tifffile.TiffPage | None = None
        try:
            if tiff.is_tiff(self.path):
                page = self._files.enter_context(tiff.opened(self.path))
                self._page = page if tiff.by_region(page) else None
        except (OSError, ValueError):
            self._page = None  # reading the whole image shows what is wrong
        if self._page is None:
            self._files.close()
        finalize(self, self._files.close)  # at once, though tifffile's objects refer to each other
        self.by_region = self._page is not None

    @cached_property
    def _image(self) -> NDArray[np.uint8]:
        return read_image(self.path)

    def read(self, rows: slice, columns: slice, level: int = 0) -> NDArray[np.uint8]:
        """Return a region."""
        if self._page is None:
            return self._image[rows, columns]
        try:
            return tiff.samples(self._page, rows, columns).rgb8()
        except ValueError as error:
            msg = f"{self.path}: {error} Copy the file again, or export it as an 8-bit RGB TIFF."
            raise DataError(msg) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name, "mpp": self.mpp, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
