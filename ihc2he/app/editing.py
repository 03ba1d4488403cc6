"""Corrections of what was found: nuclei that a user adds, removes or gives another type.

They are a list that is always applied from the start, so that undoing one is leaving out the last.
Shape suffixes: h, w = height, width; k = nuclei by their id, from 0 = background; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.app.analysis import Field
from ihc2he.errors import ConfigError
from ihc2he.nuclei.outlines import Outlines
from ihc2he.nuclei.table import IHC_STAINS, NucleiTable, nuclei_table

MOST = 20_000  # corrections of a field
_RADIUS_UM = 3.5  # of an added nucleus where nothing was found
_REACH = 2.0  # an outline that the network suggests stays within this many radii
_SMALLEST, _LARGEST = 0.25, 3.0  # and has an area of this many median ones


class Edit(NamedTuple):
    """A correction.

    Attributes:
        do: `add`, `remove` or `type`.
        id: of the nucleus; of an added one it is the next free number.
        type: from 1, 0 = unknown.
        x: of an added nucleus, in px of the image from its corner.
        y: likewise.
    """

    do: str
    id: int = 0
    type: int = 0
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class Corrected:
    """Nuclei after corrections.

    Attributes:
        inst_hw: their map.
        types_k: type by id.
        shares_k: share of pixels of this type by id; 1 where a user chose.
        scores_k: score by id; 1 for added ones.
        boxes_k: left, top, right and bottom of a part of the map that has all of a nucleus, by id.
        added: ids of the added ones.
    """

    inst_hw: NDArray[np.int32]
    types_k: NDArray[np.int64]
    shares_k: NDArray[np.float32]
    scores_k: NDArray[np.float32]
    boxes_k: list[tuple[int, ...]]
    added: list[int]


def parse_edits(given: Any, classes: Sequence[str]) -> list[Edit]:
    """Return corrections that a page sent.

    Raises:
        ConfigError: if they are malformed.
    """
    if not isinstance(given, list) or len(given) > MOST:
        msg = f"edits: expected a list of at most {MOST} corrections."
        raise ConfigError(msg)
    return [_edit(one, len(classes)) for one in given]


def _edit(given: Any, n_classes: int) -> Edit:
    fields = {"add": ("type", "x", "y"), "remove": ("id",), "type": ("id", "type")}
    names = fields.get(str(given.get("do")), ()) if isinstance(given, Mapping) else ()
    values = [given.get(name) for name in names]
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) for value in values
    )
    if not names or not numbers or any(value != int(value) for value in values[: 2 - (given["do"] == "add")]):
        msg = f"edits: {given!r} is no correction; expected do=add with type, x, y; remove with id; type with id, type."
        raise ConfigError(msg)
    edit = Edit(given["do"], **dict(zip(names, values, strict=True)))
    if not 0 <= edit.type <= n_classes:
        msg = f"edits: type {edit.type}; expected 0 to {n_classes}."
        raise ConfigError(msg)
    return edit._replace(id=int(edit.id), type=int(edit.type))


def corrected(field: Field, edits: Sequence[Edit]) -> Corrected:
    """Return the nuclei of a field after corrections.

    Raises:
        ConfigError: for a nucleus that is not there, or one that is added on another or outside.
    """
    nuclei = field.nuclei
    inst_hw = nuclei.inst_hw.copy() if edits else nuclei.inst_hw
    types, shares, scores = ([0, *own.tolist()] for own in (nuclei.types_n, nuclei.shares_n, nuclei.scores_n))
    boxes: list[tuple[int, ...]] = [(0, 0, 0, 0), *map(tuple, field.table.boxes_n4.tolist())]
    gone: set[int] = set()
    added: list[int] = []
    for edit in edits:
        if edit.do == "add":
            boxes.append(_add(field, inst_hw, edit, len(types)))
            added.append(len(types))
            types.append(edit.type)
            shares.append(1.0)
            scores.append(1.0)
            continue
        if not 0 < edit.id < len(types) or edit.id in gone:
            msg = f"edits: there is no nucleus {edit.id} to change."
            raise ConfigError(msg)
        if edit.do == "type":
            types[edit.id], shares[edit.id] = edit.type, 1.0
            continue
        left, top, right, bottom = boxes[edit.id]
        part = inst_hw[top:bottom, left:right]
        part[part == edit.id] = 0
        gone.add(edit.id)
    return Corrected(
        inst_hw, np.array(types), np.array(shares, np.float32), np.array(scores, np.float32),
        boxes, [number for number in added if number not in gone],
    )  # fmt: skip


def _add(field: Field, inst_hw: NDArray[np.int32], edit: Edit, number: int) -> tuple[int, int, int, int]:
    """Draw a nucleus into a map: what the network saw there, or a disc of the median area; return its box."""
    height, width = inst_hw.shape
    x, y = ((at - corner) / step for at, corner, step in zip(
        (edit.x, edit.y), (field.region.left, field.region.top), field.scale, strict=True
    ))  # fmt: skip
    column, row = int(np.floor(x)), int(np.floor(y))
    if not (0 <= column < width and 0 <= row < height) or inst_hw[row, column]:
        where = "on another nucleus" if 0 <= column < width and 0 <= row < height else "outside of what was analysed"
        msg = f"A nucleus cannot be added at {edit.x:.0f}, {edit.y:.0f}: it is {where}."
        raise ConfigError(msg)
    area = float(np.median(field.table.areas_n)) if len(field.table) else np.pi * (_RADIUS_UM / field.mpp) ** 2
    radius = (area / np.pi) ** 0.5
    reach = ceil(_REACH * radius)
    top, left = max(row - reach, 0), max(column - reach, 0)
    part = np.s_[top : row + reach + 1, left : column + reach + 1]
    free_hw = inst_hw[part] == 0
    rows_h1, columns_w = np.ogrid[top : top + free_hw.shape[0], left : left + free_hw.shape[1]]
    away_hw = (columns_w + 0.5 - x) ** 2 + (rows_h1 + 0.5 - y) ** 2
    seed = row - top, column - left
    drawn_hw = _piece(field.votes_hw[part] & free_hw & (away_hw <= (_REACH * radius) ** 2), seed)
    if not _SMALLEST * area <= drawn_hw.sum() <= _LARGEST * area:
        drawn_hw = _piece(free_hw & (away_hw <= max(radius, 1) ** 2), seed)
    inst_hw[part][drawn_hw] = number
    inst_hw[row, column] = number
    return left, top, left + free_hw.shape[1], top + free_hw.shape[0]


def _piece(mask_hw: NDArray[np.bool_], seed: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the connected piece of a mask around a pixel."""
    labels_hw = cv2.connectedComponents(mask_hw.astype(np.uint8), connectivity=4)[1]
    return mask_hw & (labels_hw == labels_hw[seed])


def measured(field: Field, now: Corrected, only: Sequence[int] | None = None) -> NucleiTable:
    """Return the table of corrected nuclei on the grid of the field.

    Args:
        field: that was corrected.
        now: the result.
        only: ids; None: all.
    """
    part: tuple[slice, ...] = np.s_[:, :]
    corner = (0, 0)
    inst_hw = now.inst_hw
    if only is not None:
        sides = np.array([now.boxes_k[number] for number in only]).reshape(-1, 4)
        corner = (int(sides[:, 0].min(initial=len(inst_hw[0]))), int(sides[:, 1].min(initial=len(inst_hw))))
        part = np.s_[corner[1] : int(sides[:, 3].max(initial=0)), corner[0] : int(sides[:, 2].max(initial=0))]
        inst_hw = np.where(np.isin(inst_hw[part], only), inst_hw[part], 0)
    present = np.bincount(inst_hw.ravel(), minlength=len(now.types_k)) > 0
    present[0] = False
    ids = np.flatnonzero(present)
    table = nuclei_table(
        inst_hw, now.types_k[ids], now.shares_k[ids],
        mpp=field.mpp, image=field.image[part], stains=IHC_STAINS, white=field.white, corner=corner,
    )  # fmt: skip
    return replace(table, extra={"score": now.scores_k[ids]})


def in_image(table: NucleiTable, field: Field) -> NucleiTable:
    """Return a table on the grid of a field in px of the image that it is a part of."""
    if field.scale == (1, 1) and (field.region.left, field.region.top) == (0, 0):
        return table
    corner = np.array([field.region.left, field.region.top])
    scale = np.array(field.scale)
    traced: Outlines = table.outlines.scaled(*field.scale).moved((field.region.left, field.region.top))
    return replace(
        table,
        outlines=traced,
        boxes_n4=traced.boxes(),
        areas_n=np.rint(table.areas_n * scale.prod()).astype(np.int64),
        centroids_n2=(table.centroids_n2 + 0.5) * scale + corner - 0.5,
        mpp=field.full_mpp,
    )
