"""Pictures of nuclei: their outlines on the tile, coloured by type, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.colours import colour_of, name_of
from ihc2he.nuclei.instances import foreground

_LINE = 18  # px, height of a line of the legend


def overlay(
    image: NDArray[np.uint8], inst_hw: NDArray[np.integer], types_n: NDArray[np.integer], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Return a tile with the rim of each nucleus in the colour of its type, and below it a legend with counts.

    Args:
        image: HxWx3, uint8 RGB.
        inst_hw: instance map, 0 = background.
        types_n: type of each nucleus in ascending order of the ids, 0 = unknown.
        classes: names of the types from 1 upwards.

    Returns:
        (H + height of the legend)xWx3, uint8 RGB.

    Raises:
        ValueError: image, map and types do not fit one another.
    """
    places_m, of_m, ids_n = foreground(inst_hw)
    if image.shape[:2] != inst_hw.shape or len(types_n) != len(ids_n):
        msg = f"Image {image.shape}, map {inst_hw.shape} of {len(ids_n)} nuclei and {len(types_n)} types do not fit."
        raise ValueError(msg)
    picture = image.copy()
    on_edge_m = _edges(inst_hw).ravel()[places_m]
    palette = np.array([colour_of(kind) for kind in range(len(classes) + 1)], np.uint8)
    picture.reshape(-1, 3)[places_m[on_edge_m]] = palette[types_n[of_m[on_edge_m]]]
    return np.concatenate([picture, _legend(types_n, classes, image.shape[1])])


def _edges(inst_hw: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which pixels have a 4-neighbour of another id."""
    edges_hw = np.zeros(inst_hw.shape, bool)
    down, right = inst_hw[1:] != inst_hw[:-1], inst_hw[:, 1:] != inst_hw[:, :-1]
    edges_hw[1:] |= down
    edges_hw[:-1] |= down
    edges_hw[:, 1:] |= right
    edges_hw[:, :-1] |= right
    return edges_hw


def _legend(types_n: NDArray[np.integer], classes: Sequence[str], width: int) -> NDArray[np.uint8]:
    counts = np.bincount(types_n, minlength=len(classes) + 1)
    kinds = [kind for kind in range(len(counts)) if kind or counts[0]]
    legend = np.full((_LINE * len(kinds), width, 3), 255, np.uint8)
    for line, kind in enumerate(kinds):
        top = line * _LINE
        legend[top + 4 : top + _LINE - 4, 4:14] = colour_of(kind)
        text = f"{name_of(kind, classes)} {counts[kind]}"
        cv2.putText(legend, text, (20, top + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return legend
