"""Files of a simulation: written completely or not at all, in parallel; a killed run can be continued."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ihc2he.errors import ConfigError, DataError
from ihc2he.files import write_text
from ihc2he.images.decoding import read_samples
from ihc2he.internals.glibc import keep_freed_memory

Job = TypeVar("Job")


def read_image(path: Path) -> NDArray:
    """Return an image that `write_png` wrote: RGB of HxWx3, or grey of HxW."""
    return read_samples(path, raw=True).labels()


def open_simulation(out: Path | str, owns: str, layout: str, tiles: int, size: int, seed: int, **settings: Any) -> Path:
    """Return the root of a simulation after noting its settings in ``<out>/truth/simulation.json``.

    Args:
        out: the root.
        owns: name of a folder that only this layout writes; if it exists without `simulation.json`, the data is real.
        layout: name of the layout.
        tiles: total number of tiles.
        size: side of a tile in pixels.
        seed: of all randomness.
        settings: everything else that changes the files.

    Raises:
        ConfigError: if tiles, size or seed make no sense.
        DataError: if `out` already holds a simulation with other settings, or other data.
    """
    for name, value, least in (("tiles", tiles, 1), ("size", size, 16), ("seed", seed, 0)):
        if value < least:
            msg = f"{name}={value} is too small for a simulation; use at least {least}."
            raise ConfigError(msg)
    out = Path(out)
    note = out / "truth" / "simulation.json"
    wanted = {"layout": layout, "tiles": tiles, "size": size, "seed": seed, **settings}
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found != wanted:
            differing = ", ".join(f"{k}={found.get(k)}" for k in {**found, **wanted} if found.get(k) != wanted.get(k))
            msg = f"{out} holds another simulation ({differing}). Delete the folder or choose another out=."
            raise DataError(msg)
        return out
    if (out / owns).exists():
        msg = f"{out / owns} exists, but is not a simulation; it may be real data. Choose another out=."
        raise DataError(msg)
    write_text(note, json.dumps(wanted, indent=1) + "\n")
    return out


def run(draw: Callable[[Job], None], jobs: Iterable[Job], workers: int, title: str) -> None:
    """Call `draw` on every job, in `workers` processes, with a progress bar.

    Args:
        draw: a function of a module that writes the result of a job.
        jobs: what is still to do.
        workers: number of processes; 1 = this one.
        title: of the progress bar.
    """
    jobs = list(jobs)
    if not jobs:
        return
    if workers <= 1:
        for job in track(jobs, title):
            draw(job)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        futures = [pool.submit(draw, job) for job in jobs]
        try:
            for future in track(as_completed(futures), title, total=len(futures)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # report the error now, not after all other tiles
            raise


def share_out(total: int, weights: Iterable[int]) -> list[int]:
    """Return whole numbers in the ratio of the weights that sum to the total (largest remainders).

    >>> share_out(10, (1, 1, 2))
    [3, 2, 5]
    """
    exact = np.asarray(list(weights), float)
    exact = exact / exact.sum() * total
    parts = np.floor(exact).astype(int)
    parts[np.argsort(parts - exact, kind="stable")[: total - parts.sum()]] += 1
    return parts.tolist()


def one_thread() -> None:
    """Let OpenCV use one thread, and keep freed memory, in processes that work side by side."""
    cv2.setNumThreads(1)
    keep_freed_memory()
