"""Shows that the time of a prediction grows linearly with the number of tiles, and with the nuclei of a tile.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [tiles=1000] [side=128] [nuclei=4096] [rounds=3]

Without networks (recolour+classical), in one process: all stages from image files to result files, by CPU time, of
which the quickest round counts. With growth faster than linear the last step would be steeper than the line, twice as
steep where it is quadratic. Tiles are copies of simulated ones; the tiles of more and more nuclei are of one size and
hold round ones that do not touch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from predicting import copies, pipeline, predict, quickest, simulated
from timing import argument, finish

from ihc2he.simulate.bci import MPP
from ihc2he.simulate.writing import write_image

CELL, DRAWN_MPP = 32, 0.25  # px, um/px
BACKGROUND, NUCLEUS = (235, 225, 230), (95, 85, 150)  # RGB


def fitted(over: str, sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """Return the straight line through times over sizes, how well it fits, and whether its end is steeper."""
    slope, fixed = np.polyfit(sizes, seconds, 1)
    return {
        "over": over,
        "sizes": [int(size) for size in sizes],
        "cpu_s": [float(value) for value in seconds],
        "s_for_one_more": float(slope),
        "fixed_s": float(fixed),
        "r2": float(np.corrcoef(sizes, seconds)[0, 1] ** 2),
        "last_step": float((seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]) / slope),
    }


def drawn(nuclei: int, cells: int, folder: Path) -> Path:
    """Return a new folder with a tile of so many nuclei, in random cells of a grid, so that none touch."""
    chosen = np.random.default_rng(0).permutation(cells**2).reshape(cells, cells) < nuclei
    disc_hw = cv2.circle(np.zeros((CELL, CELL), np.uint8), (CELL // 2, CELL // 2), CELL // 3, 1, -1)
    inside_hw1 = np.kron(chosen, disc_hw)[..., None] > 0
    image: Any = np.where(inside_hw1, NUCLEUS, BACKGROUND).astype(np.uint8)
    write_image(folder / "tile.png", cv2.GaussianBlur(image, (0, 0), 1))
    return folder


def measure(folder: Path, tiles: int, side: int, nuclei: int, rounds: int) -> list[dict[str, Any]]:
    """Return the growth over tiles, up to so many, and over nuclei, likewise."""
    model = pipeline("recolour+classical", {})
    kinds = simulated(folder / "bci", side)
    predict(model, copies(kinds, 2, folder / "warm"), MPP)
    numbers = [n for n in (1, 3, 10, 30, 100, 300, 1000) if n < tiles] + [tiles]
    by_tiles = [
        quickest([predict(model, images, MPP) for _ in range(rounds)])["cpu"]
        for images in (copies(kinds, number, folder / f"tiles{number}") for number in numbers)
    ]
    cells = int(np.ceil(nuclei**0.5))
    by_nuclei = [
        quickest([predict(model, drawn(number, cells, folder / f"nuclei{number}"), DRAWN_MPP) for _ in range(rounds)])
        for number in (nuclei // 64, nuclei // 16, nuclei // 4, nuclei // 2, nuclei)
    ]
    found = [[run[key] for run in by_nuclei] for key in ("nuclei", "cpu")]
    return [fitted("tiles", numbers, by_tiles), fitted(f"nuclei of a tile of {cells * CELL} px", *found)]


def shown(rows: list[dict[str, Any]]) -> str:
    """Return the growth as text."""
    lines = []
    for row in rows:
        sizes = ", ".join(f"{size}: {spent:.2f} s" for size, spent in zip(row["sizes"], row["cpu_s"], strict=True))
        lines.append(
            f"over {row['over']} ({sizes}): {1000 * row['s_for_one_more']:.2f} ms for one more, "
            f"{row['fixed_s']:.2f} s fixed, R2 of the line {row['r2']:.4f}, last step {row['last_step']:.2f} of it"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = argument("tiles", 1000), argument("side", 128), argument("nuclei", 4096)
        found = measure(Path(folder), *sizes, argument("rounds", 3))
    print(shown(found))
    finish("growth", [], growth=found)
