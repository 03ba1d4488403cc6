"""What a page gets of a field: numbers to draw and count with, and files to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ihc2he.app.analysis import Field
from ihc2he.app.editing import Corrected, in_image, measured
from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.images.writing import as_png
from ihc2he.nuclei.colours import colour_of, hex_of, name_of
from ihc2he.nuclei.counts import check_thresholds
from ihc2he.nuclei.drawing import Overlay
from ihc2he.nuclei.geojson import write_geojson
from ihc2he.nuclei.instances import foreground
from ihc2he.nuclei.table import NucleiTable, selected, write_table

OVERLAY_PX = (400, 4096)  # smallest and largest size of an overlay's longer side
KINDS = {"csv": "text/csv", "geojson": "application/geo+json", "png": "image/png", "he": "image/png"}


def drawable(table: NucleiTable) -> dict[str, Any]:
    """Return the nuclei of a table as plain lists: outlines from the corner of the image, and measurements."""
    x_n, y_n = (table.centroids_n2 + 0.5).round(2).T
    traced = table.outlines
    return {
        "id": table.ids_n.tolist(),
        "x": x_n.tolist(),
        "y": y_n.tolist(),
        "type": table.types_n.tolist(),
        "dab": table.stain_od["dab"].tolist(),
        "score": [float(value) for value in table.extra["score"]],
        "area": (table.areas_n * table.mpp**2).round(1).tolist(),
        "corners": traced.corners_e2.ravel().tolist(),
        "rings": traced.starts_r.tolist(),
        "of": traced.nucleus_r.tolist(),
    }


def of_field(field: Field) -> dict[str, Any]:
    """Return all that a page shows of a field, as plain values."""
    region = field.region
    kinds = range(len(field.classes) + 1)
    return {
        "region": vars(region),
        "size": [field.image.shape[1], field.image.shape[0]],
        "mpp": field.mpp,
        "area_mm2": field.area_mm2,
        "ink": field.ink_share,
        "translator": field.translator,
        "he": field.he is not None,
        "seconds": round(field.seconds, 1),
        "classes": [{"name": name_of(kind, field.classes), "colour": hex_of(colour_of(kind))} for kind in kinds],
        "nuclei": drawable(in_image(field.table, field)),
    }


def kept(field: Field, now: Corrected, least_score: float) -> NucleiTable:
    """Return the corrected nuclei of at least a score, on the grid of the field."""
    table = measured(field, now)
    return selected(table, table.extra["score"].astype(float) >= least_score)


def as_file(kind: str, field: Field, now: Corrected, thresholds: Sequence[float], least_score: float) -> bytes:
    """Return the content of a file to keep.

    Args:
        kind: one of `KINDS`.
        field: that was analysed.
        now: its corrected nuclei.
        thresholds: of the mean DAB optical density, for weak, moderate, strong.
        least_score: of the nuclei in it.

    Raises:
        ConfigError: for another kind, wrong thresholds, or virtual H&E where there is none.
    """
    check_thresholds(thresholds)
    if kind not in KINDS or (kind == "he" and field.he is None):
        msg = f"There is no file '{kind}' of this field.{did_you_mean(kind, KINDS)}"
        raise ConfigError(msg)
    if kind == "he":
        assert field.he is not None
        return as_png(field.he)
    table = kept(field, now, least_score)
    if kind == "png":
        inst_hw = np.where(np.isin(now.inst_hw, table.ids_n), now.inst_hw, 0)
        drawn = Overlay(inst_hw.shape, OVERLAY_PX)  # type: ignore[arg-type]
        drawn.add(0, field.image, inst_hw, foreground(inst_hw), table.types_n)
        return as_png(drawn.picture(field.classes, table.types_n))
    positive_n = (table.stain_od["dab"] >= thresholds[0]).astype(np.int64)
    table = in_image(replace(table, extra={**table.extra, "positive": positive_n}), field)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"nuclei.{kind}"
        (write_table if kind == "csv" else write_geojson)(path, table, field.classes)
        return path.read_bytes()
