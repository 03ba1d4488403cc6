"""Nuclei as GeoJSON that QuPath opens, edits and writes, and back.

QuPath counts from the corner of the first pixel, and so do outlines; tables of nuclei count from its centre.
Files whose names end in `.gz` are compressed, which QuPath reads too.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError, did_you_mean
from ihc2he.files import complete
from ihc2he.images.areas import Area
from ihc2he.nuclei.colours import colour_of, name_of
from ihc2he.nuclei.decoders.base import Nuclei
from ihc2he.nuclei.instances import foreground
from ihc2he.nuclei.outlines import Outlines, outlines
from ihc2he.nuclei.raster import fill
from ihc2he.nuclei.table import NucleiTable, measurements

_UNKNOWN = name_of(0, ())
_LEVEL = 3  # of the compression: with 6 a file takes three times as long for a tenth less
_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def write_area(path: Path, area: Area, name: str) -> None:
    """Write a part of an image as one QuPath annotation, in pixels of the image.

    Args:
        path: the file, `.geojson` or `.geojson.gz`.
        area: the part; nothing is written into the file if it is empty.
        name: of its class.
    """
    found = outlines(area.map_hw.astype(np.int32))
    scale_2 = np.array(area.shape[::-1]) / area.map_hw.shape[::-1]
    scaled = replace(found, corners_e2=np.rint(found.corners_e2 * scale_2).astype(np.int32))
    with complete(path) as temporary, _opened(temporary) as stream:
        properties = _json({"objectType": "annotation", "classification": {"name": name}, "isLocked": True})
        parts = [f'{{"type":"Feature","geometry":{shape},"properties":{properties}}}' for shape in _geometries(scaled)]
        stream.write(f'{{"type":"FeatureCollection","features":[{",".join(parts)}]}}\n')


def write_geojson(path: Path, table: NucleiTable, classes: Sequence[str]) -> None:
    """Write each nucleus as a QuPath detection with its classification, colour and `measurements`.

    A nucleus of several pieces is a MultiPolygon. A measurement that is not finite is left out: JSON has no NaN.

    Args:
        path: the file, `.geojson` or `.geojson.gz`.
        table: the nuclei.
        classes: names of the types from 1 upwards.
    """
    with geojson_stream(path, classes) as add:
        add(table)


@contextmanager
def geojson_stream(path: Path, classes: Sequence[str]) -> Iterator[Callable[[NucleiTable], None]]:
    """Yield a function that writes the nuclei of further tables into one file, as `write_geojson` does.

    Args:
        path: the file, `.geojson` or `.geojson.gz`; complete at the end, or not there at all.
        classes: names of the types from 1 upwards.
    """
    with complete(path) as temporary, _opened(temporary) as stream:
        stream.write('{"type":"FeatureCollection","features":[')
        first = True

        def add(table: NucleiTable) -> None:
            nonlocal first
            text = ",\n".join(_lines(table, classes))
            if text:
                stream.write(("\n" if first else ",\n") + text)
                first = False

        yield add
        stream.write("\n]}\n")


def _lines(table: NucleiTable, classes: Sequence[str]) -> Iterator[str]:
    """Yield each nucleus as JSON, filled into a text for its type, which takes a third of the time of an encoder."""
    measured = {name: np.round(values_n.astype(float), 4) for name, values_n in measurements(table).items()}
    whole_n = np.isfinite(np.stack([*measured.values()])).all(0).tolist()
    rows = zip(*(values_n.tolist() for values_n in measured.values()), strict=True)
    named = [_json(name).replace("%", "%%") + ":" for name in measured]
    all_of_them = ",".join(f"{name}%r" for name in named)
    kinds = {kind: _of_type(kind, classes) for kind in np.unique(table.types_n).tolist()}
    each = zip(table.ids_n.tolist(), table.types_n.tolist(), _geometries(table.outlines), whole_n, rows, strict=True)
    for number, kind, geometry, whole, row in each:
        values = (
            all_of_them % row
            if whole
            else ",".join(f"{name}{value!r}" for name, value in zip(named, row, strict=True) if isfinite(value))
        )
        yield (
            f'{{"type":"Feature","geometry":{geometry},"properties":{{"objectType":"detection","name":"{number}",'
            f'{kinds[kind]},"measurements":{{{values}}}}}}}'
        )


def _of_type(kind: int, classes: Sequence[str]) -> str:
    """Return the classification of a type as JSON."""
    return f'"classification":{_json({"name": name_of(kind, classes), "color": colour_of(kind)})}'


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Yield a text file to write, compressed if its name ends in `.gz`; equal contents give equal files."""
    if path.suffix != ".gz":
        with path.open("w", encoding="utf-8") as stream:
            yield stream
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as stream,
    ):
        yield stream


def _geometries(outlines: Outlines) -> Iterator[str]:
    """Yield the geometry of each nucleus as JSON.

    >>> from ihc2he.nuclei.outlines import outlines as traced
    >>> print(*_geometries(traced(np.array([[1, 1]]))))
    {"type":"Polygon","coordinates":[[[0,0],[2,0],[2,1],[0,1],[0,0]]]}
    """
    numbers = outlines.corners_e2.ravel()
    rings = (_ring(numbers[start:end].tolist()) for start, end in pairwise((2 * outlines.starts_r).tolist()))
    parts: list[str] = []
    of = [*outlines.nucleus_r.tolist(), -1]
    for i, (ring, is_hole) in enumerate(zip(rings, outlines.is_hole_r.tolist(), strict=True)):
        if is_hole:
            parts[-1] += f",{ring}"
        else:
            parts.append(ring)
        if of[i + 1] != of[i]:
            several = len(parts) > 1
            coordinates = f"[[{'],['.join(parts)}]]" if several else f"[{parts[0]}]"
            yield f'{{"type":"{"MultiPolygon" if several else "Polygon"}","coordinates":{coordinates}}}'
            parts = []


def _ring(numbers: list[int]) -> str:
    """Return a ring of x, y, x, y, ... as JSON, closed as in GeoJSON."""
    # Formatted at once, which takes half the time of a JSON encoder.
    return f"[{','.join(['[%d,%d]'] * (len(numbers) // 2 + 1))}]" % (*numbers, *numbers[:2])


class Shapes(NamedTuple):
    """The nuclei of a file as polygons, in px from the corner of the first pixel.

    Attributes:
        rings: (P, 2) corners each.
        polygon_r: polygon of each ring, as a position in `number_p`.
        number_p: nucleus of each polygon, from 1.
        types_n: type of each nucleus, 0 = none.
        shares_n: as the file's measurements have them, 1 where it has none.
    """

    rings: list[NDArray[np.float64]]
    polygon_r: list[int]
    number_p: list[int]
    types_n: NDArray[np.int64]
    shares_n: NDArray[np.float32]


def read_geojson(path: Path, shape: tuple[int, int], classes: Sequence[str]) -> Nuclei:
    """Return the nuclei of a GeoJSON file, drawn into an instance map in the order of the file; later ones lie on top.

    A pixel belongs to a nucleus if its centre is in it or on its outline. For a cell, its nucleus is used. A class
    that QuPath has derived from another, such as `epithelium: Positive`, is the one of its parts that is among the
    classes.

    Args:
        path: a feature collection, a list of features or a single one, of polygons and multipolygons; `.gz` or not.
        shape: height and width of the tile.
        classes: names of the types from 1 upwards. An object without a classification is of type 0.

    Returns:
        The map, its types, and their shares as the file's measurements have them, 1 where it has none. A nucleus
        that is completely covered by others, or outside, is left out.

    Raises:
        DataError: with the file, the feature, and what is wrong with it.
    """
    return drawn(shapes_of(features(path), classes), shape)


def shapes_of(features: Iterable[tuple[str, Mapping[str, Any]]], classes: Sequence[str] | None) -> Shapes:
    """Return features as polygons; see `read_geojson`.

    Args:
        features: each with its place for messages.
        classes: names of the types from 1 upwards; None: all are of type 0.

    Raises:
        DataError: with the place, and what is wrong.
    """
    shapes = Shapes([], [], [], np.zeros(0, np.int64), np.zeros(0, np.float32))
    types, shares = [], []
    for number, (place, feature) in enumerate(features, 1):
        for polygon in polygons_of(feature, place):
            shapes.rings.extend(polygon)
            shapes.polygon_r.extend([len(shapes.number_p)] * len(polygon))
            shapes.number_p.append(number)
        properties = feature.get("properties") or {}
        parts = class_parts(properties.get("classification"))
        types.append(0 if classes is None else _type(parts, classes, place))
        shares.append(_share(properties))
    return shapes._replace(types_n=np.array(types, np.int64), shares_n=np.array(shares, np.float32))


def drawn(shapes: Shapes, shape: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> Nuclei:
    """Return nuclei drawn into an instance map; see `read_geojson`.

    Args:
        shapes: the nuclei.
        shape: height and width of the map.
        corner: (x, y) of its top left corner, px.
    """
    near = [
        r
        for r, ring in enumerate(shapes.rings)
        if (ring.max(0) >= corner).all() and (ring.min(0) <= np.add(corner, shape[::-1])).all()
    ]
    rings, polygon_r = [shapes.rings[r] - corner for r in near], [shapes.polygon_r[r] for r in near]
    inst_hw = fill(shape, rings, polygon_r, shapes.number_p)
    seen = foreground(inst_hw).ids_n
    new_ids = np.zeros(len(shapes.types_n) + 1, np.int32)
    new_ids[seen] = np.arange(1, len(seen) + 1)
    return Nuclei(new_ids[inst_hw], shapes.types_n[seen - 1], shapes.shares_n[seen - 1])


def features(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the features of a GeoJSON file, compressed or not, each with its place for messages.

    Raises:
        DataError: if the file cannot be read or is of another kind.
    """
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content = json.loads(text)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        msg = f"{path}: not a readable GeoJSON file ({error})."
        raise DataError(msg) from error
    if isinstance(content, dict):
        content = [content] if content.get("type") == "Feature" else content.get("features")
    if not isinstance(content, list):
        msg = f"{path}: expected a FeatureCollection or a list of features, as QuPath exports them."
        raise DataError(msg)
    for i, feature in enumerate(content):
        yield f"{path}: feature {i}", feature


def polygons_of(feature: Mapping[str, Any], place: str, what: str = "nuclei") -> list[list[NDArray[np.float64]]]:
    """Return the rings of each polygon of a feature, (P, 2) each: the outer one, then those of holes.

    Args:
        feature: of a file.
        place: of it, for messages.
        what: the features are, for messages.

    Raises:
        DataError: if it has no geometry, or another one.
    """
    try:
        geometry = feature.get("nucleusGeometry") or feature["geometry"]
        kind, coordinates = geometry["type"], geometry["coordinates"]
        if kind not in ("Polygon", "MultiPolygon"):
            msg = f"{place} is a {kind}; {what} are Polygons or MultiPolygons. Delete it or export without it."
            raise DataError(msg)
        polygons = [coordinates] if kind == "Polygon" else coordinates
        return [[_corners(ring) for ring in polygon] for polygon in polygons]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        msg = f"{place} has no geometry that can be read ({type(error).__name__}: {error})."
        raise DataError(msg) from error


def _corners(ring: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return the corners of a ring, (P, 2), without the third number that positions may have."""
    corners_p2 = np.array(ring, np.float64)[:, :2]
    if corners_p2.shape[1] != 2 or not np.isfinite(corners_p2).all():
        msg = "a position is two finite numbers"
        raise ValueError(msg)
    return corners_p2


def class_parts(classification: Any) -> list[str]:
    """Return the parts of a class of QuPath's, the basic one first; before version 0.4 each part named its parent.

    >>> class_parts({"names": ["epithelium", "Positive"]}), class_parts(None)
    (['epithelium', 'Positive'], [])
    >>> class_parts({"name": "stroma", "color": [0, 0, 0]})
    ['stroma']
    """
    if not classification:
        return []
    if isinstance(classification, str):
        return [classification]
    own = classification.get("names") or [classification[key] for key in ("name",) if classification.get(key)]
    return [*class_parts(classification.get("parentClass")), *own]


def _type(names: Sequence[str], classes: Sequence[str], place: str) -> int:
    """Return the type of a class with these parts."""
    whole = ": ".join(names)
    known = [whole] if whole in classes else [name for name in whole.split(": ") if name in classes]
    if len(known) == 1:
        return list(classes).index(known[0]) + 1
    if known:
        msg = f"{place} is classified as '{whole}', which names several of the classes; leave one of them."
        raise DataError(msg)
    if not names or names[0] == _UNKNOWN:
        return 0
    msg = f"{place} is classified as '{whole}', which is none of the classes.{did_you_mean(whole, classes)}"
    raise DataError(msg)


def _share(properties: Mapping[str, Any]) -> float:
    """Return the measured share of a nucleus; before version 0.4 QuPath wrote a list of names and values."""
    found = properties.get("measurements") or {}
    measured = found if isinstance(found, dict) else {entry["name"]: entry["value"] for entry in found}
    return measured.get("type_share", 1.0)
