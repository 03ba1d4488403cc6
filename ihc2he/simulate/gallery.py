"""The gallery picture of the documentation: ``python -m ihc2he.simulate.gallery FILE.png``."""

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.images.writing import write_png
from ihc2he.simulate.scene import cut, draw_block, truth
from ihc2he.simulate.tile import draw_case, photograph_he, photograph_ihc, tile_rng
from ihc2he.simulate.tissue import BREAST, ENDOMETRIUM, ORGANS, Marker, Tissue

_SIZE, _MPP = 192, 0.46
_COLOURS = np.array(  # of types 0 to 5
    [(255, 255, 255), (214, 39, 40), (31, 119, 180), (44, 160, 44), (127, 127, 127), (255, 127, 14)], np.uint8
)
_ROWS = ((BREAST, 0), (ENDOMETRIUM, 0), (ORGANS["Colon"], 3))  # with the number of the case


def draw_gallery() -> NDArray[np.uint8]:
    """Return the gallery, a row for each tissue: H&E, IHC nuclear, IHC HER2 0 to 3+, instances by type."""
    return np.concatenate([_row(tissue, number) for tissue, number in _ROWS])


def _row(tissue: Tissue, number: int) -> NDArray[np.uint8]:
    rng = tile_rng(0, number)
    case = draw_case(tissue, Marker("nucleus"), 0, number)
    section = cut(draw_block(case.tissue, _SIZE, _MPP, rng), rng)
    tiles = [photograph_he(section, case, rng), photograph_ihc(section, case, rng)]
    for level in range(4):
        her2 = draw_case(tissue, Marker("membrane", level), 0, number)
        tiles.append(photograph_ihc(section, her2, rng))
    instances_hw, nuclei = truth(section)
    labels = _COLOURS[np.concatenate([[0], nuclei["type"]])[instances_hw]]
    edge_hw = cv2.morphologyEx(instances_hw.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    labels[edge_hw] = labels[edge_hw] // 2
    framed = [np.pad(tile, ((2, 2), (2, 2), (0, 0)), constant_values=255) for tile in [*tiles, labels]]
    return np.concatenate(framed, axis=1)


if __name__ == "__main__":
    write_png(Path(sys.argv[1]), draw_gallery())
