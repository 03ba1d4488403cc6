"""TIFF files: the one page that is the image, its samples, and regions of them without decoding the rest.

Shape suffixes: s = samples of a pixel, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.images.samples import Samples

if TYPE_CHECKING:
    import tifffile

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # photometric interpretations
_PREMULTIPLIED, _STRAIGHT = 1, 2  # kinds of extra samples; 0: unspecified, which is not an opacity
_ORIENTATION = "Orientation"
_JPEG = (6, 7, 33007, 34892)  # compressions that are decoded to RGB
_STRIP_ROWS = 2048  # a strip with more rows is as good as the whole image
# Of JFIF and TIFF (Rec. ITU-R BT.601), full range.
_FROM_YCBCR = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF does."""
    with path.open("rb") as stream:
        return stream.read(4) in SIGNATURES


@contextmanager
def opened(path: Path) -> Iterator[tifffile.TiffPage]:
    """Yield the page of a TIFF that is the image; smaller copies and thumbnails are not counted.

    Raises:
        ValueError: if it is damaged, truncated, or does not have a single image of grey or RGB.
    """
    with _file(path) as tiff:
        full = [page for page in _pages(tiff) if not page.is_reduced]
        if len(full) > 1:
            msg = f"the TIFF holds {len(full)} pages, not one"
            raise ValueError(msg)
        yield _checked(tiff, full[0] if full else None)


@contextmanager
def opened_pyramid(path: Path) -> Iterator[list[tifffile.TiffPage]]:
    """Yield the largest page of a TIFF and, from large to small, those that are smaller copies of it.

    Copies are in sub-directories, or are marked as such, or have tiles like the largest. Other pages, such as the
    label of a slide, are not counted.

    Raises:
        ValueError: if it is damaged, truncated, or its largest image is not the only one of its size, or has other
            colours than grey or RGB.
    """
    with _file(path) as tiff:
        pages = _pages(tiff)
        full = [page for page in pages if not page.is_reduced]
        most = max((_pixels(page) for page in full), default=0)
        largest = [page for page in full if _pixels(page) == most]
        if len(largest) > 1:
            msg = f"the TIFF holds {len(largest)} images of the same size, not one"
            raise ValueError(msg)
        page = _checked(tiff, largest[0] if largest else None)
        try:
            inside = [level.aspage() for level in page.pages or ()]
        except Exception as error:
            msg = f"the TIFF is damaged ({error})"
            raise ValueError(msg) from error
        beside = [other for other in pages if other.is_tiled == page.is_tiled and (other.is_reduced or other.is_tiled)]
        smaller = [level for level in (*inside, *beside) if _pixels(level) < most and _fits(level, page)]
        yield [page, *(_checked(tiff, level) for level in sorted(smaller, key=_pixels, reverse=True))]


@contextmanager
def _file(path: Path) -> Iterator[tifffile.TiffFile]:
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except OSError:
        raise
    except Exception as error:  # tifffile raises many kinds on damaged files
        msg = f"the TIFF is damaged ({error})"
        raise ValueError(msg) from error
    with tiff:
        yield tiff


def _pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    pages: dict[int, tifffile.TiffPage] = {}
    try:
        for page in tiff.pages:
            if page.offset in pages:
                break
            pages[page.offset] = page.aspage()
        else:
            return list(pages.values())
    except Exception as error:
        msg = f"the TIFF is damaged ({error})"
        raise ValueError(msg) from error
    msg = "the TIFF is damaged (its pages lead back to an earlier one)"
    raise ValueError(msg)


def _checked(tiff: tifffile.TiffFile, page: tifffile.TiffPage | None) -> tifffile.TiffPage:
    """Return a page, after checking that it is there and complete and has colours that are known."""
    size = tiff.filehandle.size
    if page is None or any(
        offset + count > size for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        msg = f"the TIFF is truncated after {size} bytes"
        raise ValueError(msg)
    problem = _colour_problem(page) if _pixels(page) else "the TIFF is damaged (its image has no pixels)"
    if problem:
        raise ValueError(problem)
    return page


def _pixels(page: tifffile.TiffPage) -> int:
    return int(page.imagelength * page.imagewidth)


def _fits(level: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    """Return whether a page may be a smaller copy of another: its sides are as long, up to rounding."""
    height, width = page.imagelength, page.imagewidth
    return _pixels(level) > 0 and abs(height * level.imagewidth - width * level.imagelength) <= height + width


def is_of_scanner(path: Path) -> bool:
    """Return whether a TIFF has the layout of a scanner's maker, by its tags."""
    try:
        with _file(path) as tiff:
            return bool(tiff.is_svs or tiff.is_ndpi or tiff.is_scn or tiff.is_bif or tiff.is_philips)
    except (OSError, ValueError):  # reading it tells what is wrong with it
        return False


def _colour_problem(page: tifffile.TiffPage) -> str | None:
    """Return why the samples of a page are neither grey nor RGB, or None."""
    name = getattr(page.photometric, "name", page.photometric)
    if page.photometric not in (_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _YCBCR):
        return f"the TIFF has {name} colours, not grey or RGB"
    if page.imagedepth > 1:
        return f"the TIFF holds {page.imagedepth} layers, not one"
    if not isinstance(page.bitspersample, int):
        return f"the TIFF has samples of {page.bitspersample} bits, not all of one kind"
    expected = _colours(page)
    if page.samplesperpixel < expected:
        return f"the TIFF has {page.samplesperpixel} samples for {name} colours"
    extra = page.samplesperpixel - expected
    if expected == 1 and extra and _opacity(page)[0] is None:
        return f"the TIFF has {page.samplesperpixel} channels of grey, not grey or RGB"
    if page.photometric == _YCBCR and page.compression not in _JPEG and tuple(page.subsampling or (1, 1)) != (1, 1):
        return "the TIFF has YCbCr colours of reduced resolution without JPEG compression"
    return None


def _colours(page: tifffile.TiffPage) -> int:
    """Return how many samples of a pixel are its colour."""
    return 3 if page.photometric in (_RGB, _YCBCR) else 1


def _opacity(page: tifffile.TiffPage) -> tuple[int | None, bool]:
    """Return which sample is the opacity, or None, and whether the colours have been multiplied by it."""
    for i, kind in enumerate(page.extrasamples or ()):
        if kind in (_PREMULTIPLIED, _STRAIGHT):
            return page.samplesperpixel - len(page.extrasamples) + i, kind == _PREMULTIPLIED
    return None, False


def orientation(page: tifffile.TiffPage) -> int:
    """Return the orientation of the stored image, 1 to 8."""
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def samples(page: tifffile.TiffPage, rows: slice | None = None, columns: slice | None = None) -> Samples:
    """Return the samples of a page, or of a region of it as stored, with their meaning.

    Args:
        page: from `opened`.
        rows: from and to, as stored; None: all.
        columns: likewise.

    Raises:
        ValueError: if they cannot be decoded.
    """
    try:
        whole = rows is None or columns is None
        values = page.asarray(squeeze=False) if whole else _region(page, rows, columns)  # type: ignore[arg-type]
    except MemoryError:
        raise
    except Exception as error:  # of tifffile and of many codecs
        msg = f"the TIFF does not decode ({' '.join(str(error).split())[:200]})"
        raise ValueError(msg) from error
    # From (planes, depth, H, W, samples), where one of planes and samples is 1.
    values_hws = np.concatenate(list(values[:, 0]), axis=-1)
    if values_hws.dtype == bool:
        values_hws = values_hws.view(np.uint8)
    if page.photometric == _YCBCR and page.compression not in _JPEG:
        centred = values_hws[..., :3] - np.array([0.0, 128, 128])
        values_hws = np.rint(centred @ _FROM_YCBCR.T).clip(0, 255).astype(np.uint8)
    alpha, premultiplied = _opacity(page)
    return Samples(
        values_hws,
        bits=page.bitspersample,
        colours=_colours(page),
        inverted=page.photometric == _WHITE_IS_0,
        palette_n3=_palette(page) if page.photometric == _PALETTE else None,
        alpha=alpha,
        premultiplied=premultiplied,
        orientation=orientation(page),
        lossy=page.compression in _JPEG,
    )


def _palette(page: tifffile.TiffPage) -> NDArray[np.uint8]:
    """Return the colours of a palette as Nx3."""
    colours_n3 = np.asarray(page.colormap).T
    # Its values have 16 bits by the standard; some programs write them with 8, as libtiff knows too.
    return (colours_n3 if colours_n3.max(initial=0) < 256 else colours_n3 >> 8).astype(np.uint8)


def by_region(page: tifffile.TiffPage) -> bool:
    """Return whether a region of a page can be read without decoding the whole of it."""
    if orientation(page) != 1:
        return False
    return bool(page.is_tiled or _is_plain(page) or page.rowsperstrip <= _STRIP_ROWS)


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Return whether the samples are in the file as in memory."""
    return bool(page.is_contiguous and page.compression == 1 and page.bitspersample in (8, 16))


def _region(page: tifffile.TiffPage, rows: slice, columns: slice) -> NDArray[Any]:
    """Return the samples of a region as (planes, 1, H, W, samples), from those tiles or strips that it touches."""
    planes, _, height, width, n = page.shaped
    file = page.parent.filehandle
    if _is_plain(page):
        dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        whole = np.memmap(file.path, dtype, "r", offset=page.dataoffsets[0], shape=page.shaped)
        return np.array(whole[:, :, rows, columns], page.dtype)
    tile_h, tile_w = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    down, across = -(-height // tile_h), -(-width // tile_w)
    values = np.zeros((planes, 1, rows.stop - rows.start, columns.stop - columns.start, n), page.dtype)
    for plane in range(planes):
        for i in range(rows.start // tile_h, -(-rows.stop // tile_h)):
            for j in range(columns.start // tile_w, -(-columns.stop // tile_w)):
                index = (plane * down + i) * across + j
                if not page.databytecounts[index]:  # a tile that was never written
                    continue
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
                tile, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
                if tile is not None:
                    corner = i * tile_h - rows.start, j * tile_w - columns.start
                    paste(values[plane, 0], tile[0, : shape[1], : shape[2]], corner)
    return values


def paste(target_hws: NDArray[Any], part_hws: NDArray[Any], corner: tuple[int, int]) -> None:
    """Put a part in its place, as far as it is inside."""
    top, left = corner
    height, width = part_hws.shape[:2]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, len(target_hws)), min(left + width, target_hws.shape[1])
    target_hws[y0:y1, x0:x1] = part_hws[y0 - top : y1 - top, x0 - left : x1 - left]
