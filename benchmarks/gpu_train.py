"""Trains the weights in the box (`experiment=nuclei_builtin`) in a given time, at a batch that keeps a GPU busy.

    python benchmarks/gpu_train.py data=DIR out=DIR [seconds=240] [batch=64] [steps=200] [device=cuda]

A first run of so many steps, with its test, measures what a start and a step cost. The second has as many steps as fit
into the time left, in ten epochs, so that its learning-rate cycle ends. Learning rates grow with the square root of the
batch. Both runs are folders of `out`: `warmup` and `run`.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from timing import argument, composed

EPOCHS = 10
MARGIN = 0.9  # of the time left that is planned
SHARED_MEMORY = Path("/dev/shm")  # through which loading processes hand over their batches
CROP_BYTES = 28 * 128**2  # image, instances, types and heat of a crop
WAITING = 4  # batches of a loading process


def settings(data: Path, out: Path, batch: int, device: str) -> list[str]:
    """Return what both runs have in common, as on the command line."""
    shipped = composed("nuclei_builtin", f"paths.data={data}")
    growth = (batch / shipped["data"]["batch_size"]) ** 0.5
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    workers = min(len(os.sched_getaffinity(0)) - 1, free // (batch * CROP_BYTES * WAITING))
    return [
        f"trainer={'gpu' if device == 'cuda' else device}", f"paths.data={data}", f"paths.store={out / 'stores'}",
        f"data.batch_size={batch}", f"data.num_workers={workers}",
        f"model.optimizer.lr={shipped['model']['optimizer']['lr'] * growth:.4g}",
        f"model.lr_encoder={shipped['model']['lr_encoder'] * growth:.4g}",
    ]  # fmt: skip


def train(folder: Path, epochs: int, steps: int, batch: int, *options: str) -> float:
    """Return the seconds that a run takes, its start and its test included; it validates once, at the end.

    Raises:
        SystemExit: where it fails.
    """
    started = time.perf_counter()
    command = [
        *(sys.executable, "-m", "ihc2he.train", "experiment=nuclei_builtin", f"hydra.run.dir={folder}", *options),
        *(f"trainer.max_epochs={epochs}", f"trainer.check_val_every_n_epoch={epochs}"),
        *(f"data.samples_per_epoch={batch * steps}", f"trainer.log_every_n_steps={max(1, steps // 4)}"),
    ]
    print(" ".join(command), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"benchmarks/gpu_train.py: the training failed with status {done.returncode}.")
    return time.perf_counter() - started


def images_per_second(metrics: Path) -> float:
    """Return the least speed that a run has logged: at first there are batches in store."""
    with metrics.open(newline="", encoding="utf-8") as stream:
        values = [row.get("throughput/images_per_second") for row in csv.DictReader(stream)]
    return min(float(value) for value in values if value)


def steps_in(seconds: float, run_s: float, steps: int, step_s: float) -> int:
    """Return the number of steps of each epoch of a run that lasts so many seconds.

    Args:
        seconds: of the run.
        run_s: of a run of so many steps.
        steps: likewise.
        step_s: of each further step.
    """
    return max(1, round((steps + max(0, MARGIN * (seconds - run_s) / step_s)) / EPOCHS))


if __name__ == "__main__":
    started = time.perf_counter()
    data, out = Path(argument("data", "data")).absolute(), Path(argument("out", "outputs/gpu_train")).absolute()
    batch, steps, seconds = argument("batch", 64), argument("steps", 200), argument("seconds", 240)
    common = settings(data, out, batch, argument("device", "cuda"))
    run_s = train(out / "warmup", 1, steps, batch, *common)
    step_s = batch / images_per_second(out / "warmup" / "metrics.csv")
    left = seconds - (time.perf_counter() - started)
    number = steps_in(left, run_s, steps, step_s)
    print(
        f"{run_s:.0f} s for a run of {steps} steps, {batch / step_s:.0f} images/s; {EPOCHS} epochs of {number} steps "
        f"in {left:.0f} s",
        flush=True,
    )
    longest = int(max(left - (run_s - steps * step_s), EPOCHS * step_s))  # if it is slower than measured
    train(out / "run", EPOCHS, number, batch, *common, f"+trainer.max_time={{seconds: {longest}}}")
