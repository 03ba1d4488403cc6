"""Malformed image files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from . import damage
from .damage import Damage
from .harness import Case, Change

KIND = "image files"
# An image of each scenario, and what else a message may name it by.
PLACES = (
    ("CycleGAN, test", "bci/IHC/train", ()),
    ("own nuclei", "nuclei/images", ()),
    ("unpaired", "unpaired/trainA", ("trainA",)),
    ("unpaired, skip", "unpaired/trainA", ()),
    ("EndoNuke", "endonuke/dataset/images", ()),
    ("points", "points/images", ()),
    ("prediction", "tiles", ()),
    ("prediction, own target", "target", ()),
)
# Damages that no decoder may take for an image, or that change nothing.
DAMAGES: Sequence[tuple[str, Damage]] = (
    ("cut off", damage.cut),
    ("cut off", damage.cut_end),
    ("empty", damage.empty),
    ("other content", damage.noise),
    ("other content", damage.text),
    ("bits flipped in a PNG", damage.flip()),
    ("a stretch of zeros", damage.zeros),
    ("a folder of that name", damage.folder),
    ("a link to nothing or to itself", damage.dangling),
    ("a link to nothing or to itself", damage.looping),
    ("a named pipe", damage.pipe),
)


def cases() -> list[Case]:
    """Return the cases."""
    found = []
    for scenario, folder, names in PLACES:
        for number, (family, spoil) in enumerate(DAMAGES):
            found.append(Case(KIND, family, scenario, _damaged(folder, spoil, names), number))
        for number, (family, write) in enumerate(FORMATS):
            found.append(Case(KIND, family, scenario, _rewritten(folder, write, names), number))
    return found


def _first(folder: str) -> Path:
    return sorted(path for path in Path(folder).iterdir() if path.suffix == ".png")[0]


def _damaged(folder: str, spoil: Damage, names: tuple[str, ...]) -> Callable[[np.random.Generator], Change]:
    def mutate(rng: np.random.Generator) -> Change:
        path = _first(folder)
        spoil(path, rng)
        return Change(names=(path.name, path.stem, *names))

    return mutate


def _rewritten(
    folder: str, write: Callable[[Path, NDArray], NDArray | None], names: tuple[str, ...]
) -> Callable[[np.random.Generator], Change]:
    def mutate(rng: np.random.Generator) -> Change:
        path = _first(folder)
        same = write(path, cv2.imread(str(path)))

        def twin() -> Sequence[str]:
            _write(_first(folder), ".png", same)
            return ()

        any_size = write is one_pixel and folder in ("tiles", "target")
        return Change(
            names=(path.name, path.stem, *names),
            valid="images of any size are taken" if any_size else "",
            twin=twin if same is not None else None,
        )

    return mutate


def _write(path: Path, suffix: str, pixels: NDArray | None, options: Sequence[int] = ()) -> None:
    assert pixels is not None
    path.write_bytes(cv2.imencode(suffix, pixels, list(options))[1].tobytes())


# Each writes another format under the same name, and returns the pixels (BGR) that a reader has to see, or None where
# it has to refuse the file.


def jpeg(path: Path, bgr: NDArray) -> NDArray:
    """A JPEG called .png."""
    _write(path, ".jpg", bgr)
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


def deep(path: Path, bgr: NDArray) -> NDArray:
    """16 bits per channel, of the same brightness."""
    _write(path, ".png", bgr.astype(np.uint16) * 257)
    return bgr


def grey(path: Path, bgr: NDArray) -> NDArray:
    """One channel."""
    _write(path, ".png", bgr[..., 1])
    return np.repeat(bgr[..., 1:2], 3, axis=2)


def opaque(path: Path, bgr: NDArray) -> NDArray:
    """An alpha channel that hides nothing."""
    _write(path, ".png", np.dstack([bgr, np.full(bgr.shape[:2], 255, np.uint8)]))
    return bgr


def transparent(path: Path, bgr: NDArray) -> NDArray:
    """The left half shows the glass behind it."""
    alpha = np.full(bgr.shape[:2], 255, np.uint8)
    alpha[:, : alpha.shape[1] // 2] = 0
    _write(path, ".png", np.dstack([bgr, alpha]))
    return np.where(alpha[..., None] > 0, bgr, 255).astype(np.uint8)


def palette(path: Path, bgr: NDArray) -> NDArray:
    """Indexed colours."""
    index = bgr[..., 1] // 4
    colours = np.stack([np.arange(64) * 4, np.arange(64) * 3, np.arange(64) * 2], 1).astype(np.uint8)  # R, G, B
    height, width = index.shape
    path.write_bytes(
        _png(width, height, 8, 3, b"".join(b"\0" + row.tobytes() for row in index), (b"PLTE", colours.tobytes()))
    )
    return colours[index][..., ::-1]


def one_bit(path: Path, bgr: NDArray) -> NDArray:
    """Black and white, one bit per pixel."""
    bits = bgr[..., 1] > 128
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    path.write_bytes(_png(bits.shape[1], bits.shape[0], 1, 0, rows))
    return np.repeat(bits[..., None] * 255, 3, axis=2).astype(np.uint8)


def trailing(path: Path, bgr: NDArray) -> NDArray:
    """Rubbish behind the end of the PNG."""
    _write(path, ".png", bgr)
    path.write_bytes(path.read_bytes() + b"rubbish" * 9)
    return bgr


def tiff(path: Path, bgr: NDArray) -> NDArray:
    """A TIFF called .png."""
    _write(path, ".tiff", bgr)
    return bgr


def one_pixel(path: Path, bgr: NDArray) -> None:
    """A single pixel."""
    _write(path, ".png", bgr[:1, :1])


def giant(path: Path, bgr: NDArray) -> None:
    """A header that claims 4 billion pixels."""
    path.write_bytes(_png(65000, 65000, 8, 2, b"\0" * 100))


def giant_side(path: Path, bgr: NDArray) -> None:
    """A header that claims 2,147,483,647 px each way."""
    path.write_bytes(_png(2**31 - 1, 2**31 - 1, 8, 2, b"\0" * 100))


def no_size(path: Path, bgr: NDArray) -> None:
    """A header that claims 0 px."""
    path.write_bytes(_png(0, 0, 8, 2, b"\0"))


def headless(path: Path, bgr: NDArray) -> None:
    """A PNG that begins with its pixels."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IDAT", zlib.compress(b"\0" * 100)) + _chunk(b"IEND", b""))


def pixels_short(path: Path, bgr: NDArray) -> None:
    """A whole PNG with valid checksums whose pixels end early."""
    rows = b"".join(b"\0" + row.tobytes() for row in bgr[: bgr.shape[0] // 2, :, ::-1])
    path.write_bytes(_png(bgr.shape[1], bgr.shape[0], 8, 2, rows))


def pixels_bad(path: Path, bgr: NDArray) -> None:
    """A whole PNG with valid checksums whose compressed pixels are none."""
    path.write_bytes(_png(bgr.shape[1], bgr.shape[0], 8, 2, b"", raw=b"\x78\x9c" + b"\xff" * 200))


def cmyk(path: Path, bgr: NDArray) -> None:
    """Four inks, as print shops export."""
    import tifffile

    four = np.dstack([255 - bgr, np.zeros(bgr.shape[:2], np.uint8)])
    tifffile.imwrite(path, four, photometric="separated")


def pages(path: Path, bgr: NDArray) -> None:
    """Three pages in one TIFF."""
    import tifffile

    tifffile.imwrite(path, np.stack([bgr] * 3), photometric="rgb")


def floats(path: Path, bgr: NDArray) -> None:
    """A TIFF of floats."""
    import tifffile

    tifffile.imwrite(path, bgr.astype(np.float32) / 255, photometric="rgb")


def animated(path: Path, bgr: NDArray) -> None:
    """An animated GIF of two frames."""
    frame = b"!\xf9\x04\x00\x0a\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00"
    path.write_bytes(b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00" + frame * 2 + b";")


def bitmap(path: Path, bgr: NDArray) -> None:
    """A BMP called .png."""
    _write(path, ".bmp", bgr)


def webp(path: Path, bgr: NDArray) -> None:
    """A WebP called .png."""
    _write(path, ".webp", bgr)


FORMATS: Sequence[tuple[str, Callable[[Path, NDArray], NDArray | None]]] = (
    ("wrong extension", jpeg), ("wrong extension", tiff), ("16-bit", deep), ("grey", grey), ("alpha", opaque),
    ("alpha", transparent), ("palette", palette), ("1-bit", one_bit), ("rubbish at the end", trailing),
    ("1 px", one_pixel), ("giant header", giant), ("giant header", giant_side), ("no size", no_size),
    ("header missing", headless), ("too few pixels", pixels_short), ("too few pixels", pixels_bad),
    ("CMYK", cmyk), ("several pages", pages), ("floats", floats), ("animated", animated),
    ("unsupported format", bitmap), ("unsupported format", webp),
)  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes],
         raw: bytes | None = None) -> bytes:  # fmt: skip
    """Return a PNG with valid checksums, whatever it claims."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows) if raw is None else raw), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)
