"""The properties of PNG and JPEG files, and whether they are complete.

Decoders return a half-grey picture for a file that ends early, so completeness is checked here.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, replace

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"

_GREY, _PALETTE = 0, 3  # colour types of a PNG
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG frame's header
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers of a JPEG without a length
_END, _SCAN, _EXIF = 0xD9, 0xDA, 0xE1
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan: neither a stuffed byte nor a restart
_ORIENTATION = 274  # a tag of TIFF, of which EXIF is made


@dataclass(frozen=True)
class Header:
    """What is needed to read the samples of a PNG or JPEG.

    Attributes:
        height: px, as stored.
        width: px, as stored.
        orientation: how to rotate or mirror the stored image, 1 to 8 as in TIFF and EXIF; 1: not at all.
        bits: of a sample.
        palette: samples are positions in a table of colours.
        clear_grey: the grey level that is transparent; None: there is none.
    """

    height: int
    width: int
    orientation: int = 1
    bits: int = 8
    palette: bool = False
    clear_grey: int | None = None


def png_header(data: bytes) -> Header:
    """Return the properties of a PNG; gamma, colour profile and physical size are ignored.

    Raises:
        ValueError: if it is truncated or corrupt.
    """
    header = None
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            msg = f"the PNG is corrupt at byte {position} (checksum of chunk {kind.decode('latin-1')})"
            raise ValueError(msg)
        content = data[position + 8 : end - 4]
        if header is None:
            if kind != b"IHDR" or length != 13:
                msg = "the PNG is corrupt: it does not begin with its header"
                raise ValueError(msg)
            width, height, bits, colour = struct.unpack_from(">IIBB", content)
            header, grey = Header(height, width, bits=bits, palette=colour == _PALETTE), colour == _GREY
        elif kind == b"tRNS" and grey and length == 2:
            header = replace(header, clear_grey=int.from_bytes(content, "big"))
        elif kind == b"eXIf":
            header = replace(header, orientation=_exif_orientation(content))
        elif kind == b"IEND":
            return header
        position = end
    msg = f"the PNG is truncated after {len(data)} bytes"
    raise ValueError(msg)


def palette_as_grey(data: bytes) -> bytes:
    """Return a PNG with a palette as one whose grey levels are the positions in the palette."""
    parts, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        content = data[position + 8 : end - 4]
        if kind == b"IHDR":
            content = content[:9] + bytes([_GREY]) + content[10:]
        if kind not in (b"PLTE", b"tRNS", b"bKGD", b"sBIT", b"hIST"):  # which mean something else with grey
            parts.append(struct.pack(">I4s", length, kind) + content + struct.pack(">I", zlib.crc32(kind + content)))
        if kind == b"IEND":
            break
        position = end
    return b"".join(parts)


def jpeg_header(data: bytes) -> Header:
    """Return the properties of a JPEG. Bytes after its end, such as further pictures of a camera, are ignored.

    Raises:
        ValueError: if it is truncated, or has inks instead of grey or RGB.
    """
    truncated = f"the JPEG is truncated after {len(data)} bytes"
    header, orientation, scans = None, 1, 0
    position = len(JPEG_SIGNATURE)
    while 0 <= position <= len(data) - 2:
        if data[position] != 0xFF:
            position = data.find(b"\xff", position)  # decoders ignore stray bytes too
            continue
        kind = data[position + 1]
        if kind == 0xFF or kind in _ALONE:  # padding before a marker; a marker without content
            position += 1 if kind == 0xFF else 2
            continue
        if kind == _END:
            if header is None or not scans:
                break
            return replace(header, orientation=orientation)
        if position + 4 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        content = data[position + 4 : position + 2 + length]
        position += 2 + length
        if kind in _FRAMES and header is None and len(content) >= 6:
            bits, height, width, inks = struct.unpack_from(">BHHB", content)
            if inks not in (1, 3):
                msg = f"the JPEG has {inks} inks, not grey or RGB"
                raise ValueError(msg)
            header = Header(height, width, bits=bits)
        elif kind == _EXIF and content.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(content[6:])
        elif kind == _SCAN:
            scans += 1
            found = _NEXT_MARKER.search(data, position)
            if found is None:
                break
            position = found.start()
    raise ValueError(truncated)


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF, or 1 if there is none.

    >>> _exif_orientation(bytes.fromhex("4d4d002a00000008 0001 0112 0003 00000001 0006 0000 00000000"))
    6
    """
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for i in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * i)
            if tag == _ORIENTATION and kind == 3 and 1 <= value <= 8:
                return value
    except struct.error:  # damaged EXIF is ignored
        pass
    return 1
