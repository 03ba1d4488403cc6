"""Times the prediction of nuclei from image files to result files: tiles and mm2 per second, and its stages.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py [tiles=20] [rounds=3] [side=256]

Rates are by time on the wall of the real command line with its two loading and two post-processing processes, its start
included and, without it, of the same in one process; shares are of the CPU time of the latter. `centres` has the
weights in the box. CycleGAN and HoVer-Net are small and random, so what they find is nonsense, and only where their
time goes is of interest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import torch
from predicting import STAGES, bundles, copies, pipeline, predict, quickest, simulated
from timing import argument, finish

from ihc2he.simulate.bci import MPP

METHODS = ("none+centres", "recolour+classical", "cyclegan+hovernet")


def command_line(method: str, weights: dict[str, Path], images: Path, out: Path, *options: str) -> float:
    """Return the seconds on the wall of the command, its start included.

    Args:
        method: its name.
        weights: of its networks.
        images: folder of the tiles.
        out: folder for all that the command writes.
        options: further ones of the command line.

    Raises:
        CalledProcessError: where it fails.
    """
    translator, segmenter = method.split("+")
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "ihc2he.train", "experiment=predict_tiles", *options),
            *(f"data.path={images}", f"data.mpp={MPP}", f"out={out / 'found'}", f"paths.outputs={out / 'outputs'}"),
            *(f"model.use.translators=[{translator}]", f"model.use.segmenters=[{segmenter}]"),
            f"model.translators.cyclegan.weights={weights['translator']}",
            f"model.segmenters.hovernet.weights={weights['segmenter']}",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return time.perf_counter() - started


def measure(folder: Path, tiles: int, rounds: int, side: int) -> list[dict[str, Any]]:
    """Return the rates and the shares of each method; of several rounds the quickest counts."""
    images = copies(simulated(folder / "bci", side), tiles, folder / "images")
    weights = bundles(folder / "bundles", "small")
    rows = []
    for method in METHODS:
        model = pipeline(method, weights)
        found = quickest([predict(model, images, MPP) for _ in range(rounds + 1)])  # the first warms up
        with tempfile.TemporaryDirectory() as out:
            whole_s = command_line(method, weights, images, Path(out), "trainer=cpu")
        shares = {stage: found[stage] / found["cpu"] for stage in STAGES}
        per_s = tiles / found["wall"]
        rows.append(
            {
                "method": method,
                "tiles": tiles,
                "side": side,
                "nuclei": found["nuclei"],
                "tiles_per_s": per_s,
                "mm2_per_s": per_s * (side * MPP / 1000) ** 2,
                "command_line_s": whole_s,
                "shares": shares | {"rest": 1 - sum(shares.values())},
            }
        )
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """Return the rates as text."""
    stages = [*STAGES, "rest"]
    heads = f"{'method':<22}{'tiles/s':>9}{'mm2/s':>9}{'command line':>17}" + "".join(f"{s:>14}" for s in stages)
    lines = [heads]
    for row in rows:
        shares = "".join(f"{row['shares'][stage]:>14.0%}" for stage in stages)
        whole = f"{row['tiles']} in {row['command_line_s']:.1f} s"
        lines.append(f"{row['method']:<22}{row['tiles_per_s']:>9.2f}{row['mm2_per_s']:>9.4f}{whole:>17}{shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), argument("tiles", 20), argument("rounds", 3), argument("side", 256))
    print(shown(found))
    finish("prediction", [], rates=found)
