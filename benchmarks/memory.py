"""Measures the peak memory of training steps, ours against the published ones, and of predictions of ever more tiles.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [size=96] [batch=1] [tiles=2000] [rounds=1]

Each is a process of its own, on the CPU; what counts is by how much its peak exceeds that after all imports.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from cyclegan_reference import ReferenceStep as CycleganReference
from cyclegan_step import crops, cyclegan
from hovernet_reference import ReferenceStep as HovernetReference
from hovernet_step import crop, hovernet
from predicting import copies, pipeline, predict, simulated
from timing import Row, argument, finish, ratios
from training import Step, fit

from ihc2he.simulate.bci import MPP

STEPS = 2
PRECISIONS = ("32-true", "bf16-mixed")


def one(name: str, size: int, batch: int) -> float:
    """Return by how many MB this process's peak rises as it does what is named, such as `CycleGAN published`."""
    what, _, how = name.partition(" ")
    if what == "prediction":
        before = _peak_mb()
        predict(pipeline("recolour+classical", {}), Path(how), MPP)
        return _peak_mb() - before
    samples = crops(size, STEPS * batch) if what == "CycleGAN" else [crop(size)] * STEPS * batch
    before = _peak_mb()
    if how == "published":
        made: Step = (CycleganReference if what == "CycleGAN" else HovernetReference)(torch.device("cpu"))
        for together in torch.utils.data.DataLoader(samples, batch_size=batch):  # type: ignore[arg-type]
            made.step(together)
    else:
        fit(cyclegan() if what == "CycleGAN" else hovernet(), samples, batch, STEPS, how, "cpu")
    return _peak_mb() - before


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(name: str, *options: str) -> float:
    """Return the MB of what is named, done in a process of its own.

    Raises:
        CalledProcessError: where it fails.
    """
    command = [sys.executable, "-W", "ignore", __file__, f"run={name}", *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(size: int, batch: int, tiles: int, rounds: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return the rows of training steps, and what predictions of few and of many tiles need."""
    options = f"size={size}", f"batch={batch}"
    rows = []
    for what in ("CycleGAN", "HoVer-Net"):
        peaks: dict[str, list[float]] = {how: [] for how in ("published", *PRECISIONS)}
        for _ in range(rounds):
            for how, found in peaks.items():
                found.append(in_process(f"{what} {how}", *options))
        for precision in PRECISIONS:
            spent = {"published": peaks["published"], "ours": peaks[precision]}
            case = f"memory, {what} step, {batch} x {size} px, {precision}"
            rows += ratios(case, spent, {"published": "theirs in 32-true"}, "MB")
    prediction = []
    with tempfile.TemporaryDirectory() as folder:
        kinds = simulated(Path(folder) / "bci", 256)
        for number in sorted({max(tiles // 10, 1), tiles}):
            images = copies(kinds, number, Path(folder) / f"tiles{number}")
            prediction.append({"tiles": number, "mb": in_process(f"prediction {images}")})
    return rows, prediction


if __name__ == "__main__":
    size, batch, tiles = argument("size", 96), argument("batch", 1), argument("tiles", 2000)
    task = argument("run", "")
    if task:
        print(one(task, size, batch))
    else:
        found, prediction = measure(size, batch, tiles, argument("rounds", 1))
        for entry in prediction:
            print(f"prediction of {entry['tiles']} tiles: {entry['mb']:.0f} MB above the imports")
        finish("memory", found, prediction_mb=prediction)
