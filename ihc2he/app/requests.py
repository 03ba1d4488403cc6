"""What a page sends: uploads, and mappings of plain values; everything is checked here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ihc2he.app.analysis import Field, Region
from ihc2he.app.editing import Corrected, corrected, parse_edits
from ihc2he.errors import ConfigError, DataError
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

BODY = 2**22  # bytes of a request that is no upload
_MOST = 1e12  # every number is below


async def stream_to(request: Request, path: Path, most: int) -> None:
    """Write the body of a request into a file.

    Raises:
        DataError: if it is larger than allowed, or incomplete.
    """
    size = 0
    too_large = f"{path.name}: more than {most / 2**20:g} MB. Open it from a folder instead: path=FOLDER."
    if int(request.headers.get("content-length", 0)) > most:
        raise DataError(too_large)
    with path.open("wb") as stream:
        try:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise DataError(too_large)
                stream.write(part)
        except ClientDisconnect as error:
            msg = f"{path.name}: the upload was interrupted."
            raise DataError(msg) from error


async def json_of(request: Request) -> dict[str, Any]:
    """Return the body of a request as a mapping.

    Raises:
        ConfigError: if it is something else, or too large.
    """
    text = bytearray()
    async for part in request.stream():
        text += part
        if len(text) > BODY:
            msg = "The request is too large."
            raise ConfigError(msg)
    try:
        given = json.loads(bytes(text) or b"{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        msg = "Expected a JSON object."
        raise ConfigError(msg)
    return given


def corrected_by(found: Field, given: Mapping[str, Any]) -> Corrected:
    return corrected(found, parse_edits(given.get("edits", []), found.classes))


def numbers(given: Any, count: int) -> list[float]:
    plain = isinstance(given, list) and len(given) == count and all(type(one) in (int, float) for one in given)
    if not plain or not all(abs(one) < _MOST for one in given):
        msg = f"Expected {count} numbers, found {given!r}."
        raise ConfigError(msg)
    return [float(one) for one in given]


def region_of(given: Any) -> Region | None:
    """Return a region that the page asks for; None: the whole image."""
    if given is None:
        return None
    names = ("left", "top", "width", "height")
    values = [given.get(name) for name in names] if isinstance(given, Mapping) else []
    return Region(*(round(value) for value in numbers(values, 4)))


def checked_mpp(given: Any) -> float:
    """Return a pixel size that a page sent.

    Raises:
        ConfigError: if it cannot be one.
    """
    if isinstance(given, bool) or not isinstance(given, int | float) or not is_pixel_size(given):
        msg = (
            f"The pixel size {given!r} cannot be used: expected {PIXEL_SIZE}. It is about 0.25 um/px for a 40x scan, "
            "0.5 for 20x; the scanner notes it, QuPath shows it as pixel width."
        )
        raise ConfigError(msg)
    return float(given)
