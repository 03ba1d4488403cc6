"""Nuclei as GeoJSON that QuPath opens, edits and writes, and back.

QuPath counts from the corner of the first pixel, tables of nuclei from its centre: coordinates differ by half a pixel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError, did_you_mean
from ihc2he.files import complete
from ihc2he.nuclei.colours import colour_of, name_of
from ihc2he.nuclei.postprocess import Nuclei
from ihc2he.nuclei.table import NucleiTable, measurements

_UNKNOWN = name_of(0, ())


def write_geojson(path: Path, table: NucleiTable, classes: Sequence[str]) -> None:
    """Write each nucleus as a QuPath detection with its classification, colour and `measurements`.

    Outlines run through the centres of the outermost pixels; holes and all but the largest piece are left out. A
    nucleus that is one pixel wide becomes the rectangle around it, half a pixel wide, since QuPath drops empty areas.

    Args:
        path: the file.
        table: the nuclei.
        classes: names of the types from 1 upwards.
    """
    measured = {name: np.round(values_n.astype(float), 4).tolist() for name, values_n in measurements(table).items()}
    features = [
        _feature(
            table.outlines[i],
            {
                "objectType": "detection",
                "name": str(table.ids_n[i]),
                "classification": {"name": name_of(kind, classes), "color": colour_of(kind)},
                "measurements": {name: values[i] for name, values in measured.items()},
            },
        )
        for i, kind in enumerate(table.types_n.tolist())
    ]
    with complete(path) as temporary:
        text = f'{{"type":"FeatureCollection","features":[{",".join(features)}]}}'
        temporary.write_text(text, encoding="utf-8")


def _feature(outline_p2: NDArray[np.int32], properties: Mapping[str, Any]) -> str:
    """Return a feature as JSON."""
    geometry = f'{{"type":"Polygon","coordinates":[{_ring(outline_p2)}]}}'
    return f'{{"type":"Feature","geometry":{geometry},"properties":{json.dumps(properties, separators=(",", ":"))}}}'


def _ring(outline_p2: NDArray[np.int32]) -> str:
    """Return the closed ring of an outline as JSON.

    >>> _ring(np.array([[0, 0], [0, 2], [2, 0]]))
    '[[0.5,0.5],[0.5,2.5],[2.5,0.5],[0.5,0.5]]'
    """
    if cv2.contourArea(outline_p2) == 0:
        (left, top), (right, bottom) = outline_p2.min(0) + 0.25, outline_p2.max(0) + 0.75
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        return json.dumps(corners, separators=(",", ":"))
    # Corners of outlines are whole numbers from 0; texts of floats would take three times as long.
    closed = outline_p2.ravel().tolist() + outline_p2[0].tolist()
    return f"[{','.join(['[%d.5,%d.5]'] * (len(outline_p2) + 1))}]" % tuple(closed)


def read_geojson(path: Path, shape: tuple[int, int], classes: Sequence[str]) -> Nuclei:
    """Return the nuclei of a GeoJSON file, drawn into an instance map in the order of the file; later ones lie on top.

    Args:
        path: a feature collection, or a list of features, of polygons and multipolygons; holes are filled.
        shape: height and width of the tile.
        classes: names of the types from 1 upwards. An object without a classification is of type 0.

    Returns:
        The map, its types, and their shares as the file's measurements have them, 1 where it has none. A nucleus
        that others cover wholly, or that lies outside, is not among them.

    Raises:
        DataError: naming the file, the feature, and what is wrong with it.
    """
    inst_hw = np.zeros(shape, np.int32)
    types, shares = [], []
    for number, (place, feature) in enumerate(_features(path), 1):
        for ring_p2 in _outer_rings(feature, place):
            cv2.fillPoly(inst_hw, [np.rint(ring_p2 - 0.5).astype(np.int32)], number)
        properties = feature.get("properties") or {}
        types.append(_type(properties.get("classification") or {}, classes, place))
        shares.append(_measurements(properties).get("type_share", 1.0))
    present = np.unique(inst_hw)
    seen = present[present > 0]
    new_ids = np.zeros(len(types) + 1, np.int32)
    new_ids[seen] = np.arange(1, len(seen) + 1)
    return Nuclei(new_ids[inst_hw], np.array(types, np.int64)[seen - 1], np.array(shares, np.float32)[seen - 1])


def _features(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path}: not a readable GeoJSON file ({error})."
        raise DataError(msg) from error
    features = content.get("features") if isinstance(content, dict) else content
    if not isinstance(features, list):
        msg = f"{path}: expected a FeatureCollection or a list of features, as QuPath exports them."
        raise DataError(msg)
    for i, feature in enumerate(features):
        yield f"{path}: feature {i}", feature


def _outer_rings(feature: Mapping[str, Any], place: str) -> list[NDArray[np.float64]]:
    try:
        geometry = feature["geometry"]
        kind, coordinates = geometry["type"], geometry["coordinates"]
        if kind not in ("Polygon", "MultiPolygon"):
            msg = f"{place} is a {kind}; nuclei are Polygons or MultiPolygons. Delete it or export without it."
            raise DataError(msg)
        polygons = [coordinates] if kind == "Polygon" else coordinates
        return [np.array(polygon[0], np.float64).reshape(-1, 2) for polygon in polygons]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        msg = f"{place} has no geometry that can be read ({type(error).__name__}: {error})."
        raise DataError(msg) from error


def _type(classification: Mapping[str, Any], classes: Sequence[str], place: str) -> int:
    name = classification.get("name", _UNKNOWN)
    if name == _UNKNOWN:
        return 0
    if name not in classes:
        msg = f"{place} is classified as '{name}', which is none of the classes.{did_you_mean(name, classes)}"
        raise DataError(msg)
    return list(classes).index(name) + 1


def _measurements(properties: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the measurements of a feature; before version 0.4 QuPath wrote a list of names and values."""
    found = properties.get("measurements") or {}
    return found if isinstance(found, dict) else {entry["name"]: entry["value"] for entry in found}
