"""Measures what prediction costs apart from the networks, and whether they work while nuclei are found and written.

    OMP_NUM_THREADS=1 python benchmarks/overlap.py [tiles=50] [ms=15] [workers=2]

Both networks are replaced by a simulated device. It takes so many ms for each tile of 256 px and returns maps of 120
nuclei and six classes at 471 px. The worker processes are started beforehand. The CPU time of the main process per
tile, minus that of compressing pictures, limits the tiles per second that a fast GPU can reach.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from predicting import bundles, copies, pipeline, predict, simulated
from timing import argument, finish, names_of

from ihc2he.models.pipeline import inference, module, segmenters
from ihc2he.models.pipeline.finding import find_and_vote
from ihc2he.simulate.bci import MPP

SIDE, MAPS_SIDE, NUCLEI, CLASSES = 256, 471, 120, 6  # px of tiles and of maps


def maps() -> torch.Tensor:
    """Return maps as a HoVer-Net gives them for a tile, (1, K, H, W)."""
    tests = names_of("nuclei/conftest.py")
    prob_hw, hv_2hw = tests["soften"](tests["draw_ellipses"](MAPS_SIDE, NUCLEI))
    types_khw = np.random.default_rng(0).random((CLASSES, MAPS_SIDE, MAPS_SIDE), np.float32)
    return torch.from_numpy(np.concatenate([prob_hw[None], hv_2hw, types_khw]))[None]


def measure(folder: Path, tiles: int, device_ms: int, workers: int) -> dict[str, float]:
    """Return ms per tile, on the wall and of CPU, and `overlapped`: the share of tiles begun while workers worked."""
    maps_bkhw = maps()
    model = pipeline("cyclegan+hovernet", bundles(folder / "bundles", "small"), workers)
    # A device would leave out all but the likeliest type at no cost to the CPU.
    reduced_bkhw = model.segmenters["hovernet"].reduced(maps_bkhw)  # type: ignore[operator]
    images = copies(simulated(folder / "bci", SIDE), tiles, folder / "images")
    busy: list[bool] = []
    feeding: list[float] = []  # CPU time of this thread, which feeds the device

    def device(_: Any, segmenters: Any, x_bchw: torch.Tensor, *__: Any) -> dict[str, inference.Maps]:
        busy.append(any(not job.done() for _, jobs in model.handover._pending for job in jobs))
        feeding.append(time.thread_time())
        time.sleep(device_ms / 1000)
        return {name: inference.Maps(x_bchw, maps_bkhw, None) for name in segmenters}

    part = reduced_bkhw[0].numpy(), None, 0.25, (SIDE, SIDE)
    find = model.segmenters["hovernet"].find
    warm = [model.handover.submit(find_and_vote, find, *part, nbytes=0) for _ in range(4 * workers)]  # type: ignore[arg-type]
    for job in warm:
        job.result()
    with (
        patch.object(module, "predict", device),
        patch.object(segmenters.Learned, "reduced", lambda *_: reduced_bkhw),
    ):
        found = predict(model, images, MPP, loaders=1)
    return {
        "wall": 1000 * found["wall"] / tiles,
        "main process": 1000 * found["cpu"] / tiles,
        "feeding the device (part of it)": 1000 * (feeding[-1] - feeding[0]) / (tiles - 1),
        "overlapped": float(np.mean(busy)),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), argument("tiles", 50), argument("ms", 15), argument("workers", 2))
    share = found.pop("overlapped")
    times = ", ".join(f"{what} {ms:.1f} ms" for what, ms in found.items())
    print(f"per tile: {times}; {share:.0%} of the tiles began while workers were busy")
    finish("overlap", [], per_tile_ms=found, overlapped=share)
