"""Regions that a pathologist has drawn in QuPath: where to compute, and which region a nucleus is in.

QuPath counts from the corner of the first pixel; points and pixels count from its centre, as everywhere here.
Shape suffixes: h, w = height, width; n2 = points as (x, y).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError, DataError
from ihc2he.images.tissue import Tissue
from ihc2he.nuclei.geojson import class_parts, features, polygons_of
from ihc2he.tiling.resampling import resized_labels

if TYPE_CHECKING:
    from shapely import MultiPolygon

log = logging.getLogger(__name__)

_SIDE = 4096  # px, of the longer side of a mask
_BITS = 8  # of the fraction of a pixel when drawing


@dataclass(frozen=True)
class Region:
    """An annotation.

    Attributes:
        name: of the annotation; empty if it has none.
        kind: its class; empty if it has none.
        polygons: the rings of each, (P, 2) in px from the corner of the image: the outer one, then those of holes.
    """

    name: str
    kind: str
    polygons: list[list[NDArray[np.float64]]]

    @property
    def excluded(self) -> bool:
        """Whether it is left out: its class ends with an asterisk, such as QuPath's `Ignore*`."""
        return self.kind.endswith("*")

    @cached_property
    def shape(self) -> MultiPolygon:
        """The region as a geometry of shapely, without crossings of its own outline."""
        check_shapely()
        import shapely

        shape = shapely.MultiPolygon([(rings[0], rings[1:]) for rings in self.polygons])
        return shape if shape.is_valid else shapely.make_valid(shape)


def check_shapely() -> None:
    """Raise a ConfigError if the package is missing that regions need."""
    if find_spec("shapely") is None:
        msg = 'Regions of a slide need the package shapely: pip install "ihc2he[slides]".'
        raise ConfigError(msg)


def read_regions(path: Path) -> list[Region]:
    """Return the annotations of a GeoJSON file that QuPath has exported, in its order.

    Detections and cells among them are left out, with one warning.

    Args:
        path: of the file, compressed or not.

    Raises:
        DataError: with the file, the feature, and what is wrong with it; or if it has no annotation.
    """
    found, others = [], 0
    for place, feature in features(path):
        properties: dict[str, Any] = (feature.get("properties") if isinstance(feature, dict) else None) or {}
        if properties.get("objectType", "annotation") in ("detection", "cell", "tile"):
            others += 1
            continue
        polygons = polygons_of(feature, place, "regions")
        if any(len(np.unique(ring, axis=0)) < 3 for rings in polygons for ring in rings):
            msg = f"{place} has an outline of fewer than 3 corners. Delete it in QuPath and export again."
            raise DataError(msg)
        name, kind = properties.get("name") or "", ": ".join(class_parts(properties.get("classification")))
        found.append(Region(str(name), kind, polygons))
    if others:
        log.warning("%s: left out %d detections; regions are annotations.", path, others)
    if not found:
        msg = f"{path}: has no annotation. Draw regions in QuPath, and export them as GeoJSON."
        raise DataError(msg)
    return found


class Regions:
    """The regions of a slide.

    Args:
        regions: in any order; where they overlap, the smallest counts. Excluded ones count before all others. Without
            any that is included, all is that is not excluded.
        name: of their file, for messages.
    """

    def __init__(self, regions: Sequence[Region], name: str = "regions") -> None:
        self.included = [region for region in regions if not region.excluded]
        self.excluded = [region for region in regions if region.excluded]
        self.name = name

    def mask(self, shape: tuple[int, int], tissue: Tissue | None = None) -> Tissue:
        """Return where to compute: every pixel of a map that a region touches and no excluded one covers.

        Args:
            shape: height and width of the image in px.
            tissue: used where the file only excludes; None: the whole image.

        Raises:
            DataError: if nothing of the image is left.
        """
        shrink = max(1.0, max(shape) / _SIDE)
        height, width = (max(1, round(side / shrink)) for side in shape)
        scale_2 = np.array([width / shape[1], height / shape[0]])
        if self.included:
            found_hw = _drawn(self.included, scale_2, (height, width))
        elif tissue is not None:
            found_hw = resized_labels(tissue.map_hw.view(np.uint8), height, width).astype(np.uint8)
        else:
            found_hw = np.ones((height, width), np.uint8)
        out_hw = _drawn(self.excluded, scale_2, (height, width))
        found_hw[cv2.erode(out_hw, np.ones((3, 3), np.uint8)) > 0] = 0
        if not found_hw.any():
            msg = (
                f"{self.name}: its regions leave nothing of the image of {shape[0]} x {shape[1]} px. Expected regions "
                "that were drawn on this slide, in its pixels."
            )
            raise DataError(msg)
        return Tissue(found_hw > 0, shape)

    def index(self, points_n2: NDArray[np.floating]) -> NDArray[np.intp]:
        """Return the region of each point, as a position in `included`; -1 outside of all and in excluded ones."""
        import shapely

        x_n, y_n = points_n2.T.astype(np.float64) + 0.5
        index_n = np.full(len(points_n2), -1, np.intp)
        for i, region in [*((i, self.included[i]) for i in self._by_size), *((-1, region) for region in self.excluded)]:
            shapely.prepare(region.shape)
            index_n[shapely.contains_xy(region.shape, x_n, y_n)] = i
        return index_n

    def areas(self, shape: tuple[int, int]) -> list[float]:
        """Return the area of each of `included` that `index` gives to it, in px.

        Args:
            shape: height and width of the image in px; what is outside of it does not count.
        """
        import shapely

        image = shapely.box(0, 0, shape[1], shape[0])
        taken = shapely.union_all([region.shape for region in self.excluded])
        areas = [0.0] * len(self.included)
        for i in reversed(self._by_size):
            own = self.included[i].shape
            areas[i] = own.difference(taken).intersection(image).area
            taken = taken.union(own)
        return areas

    @property
    def _by_size(self) -> list[int]:
        """The positions in `included`, the largest region first."""
        return sorted(range(len(self.included)), key=lambda i: -self.included[i].shape.area)


def _drawn(regions: Sequence[Region], scale_2: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a map of regions; a pixel that one touches is in it."""
    found_hw = np.zeros(size, np.uint8)
    for region in regions:
        for rings in region.polygons:
            corners = [np.rint((ring * scale_2 - 0.5) * (1 << _BITS)).astype(np.int32) for ring in rings]
            cv2.fillPoly(found_hw, corners, 1, shift=_BITS)
    return found_hw
