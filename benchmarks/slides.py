"""Times whole slides, from the slide file to all files of results, and their growth with the area.

    OMP_NUM_THREADS=1 python benchmarks/slides.py [sizes=5000,10000] [stages=5000] [mpp=0.25] [folder=...]

Simulated slides of IHC of these sides in px are predicted by the real command line with the weights in the box: seconds
on the wall, CPU seconds and peak memory (PSS) of all its processes together, its start included. Shares of stages are
CPU seconds of one process that does everything, on the slide of `stages`. Slides stay in `folder`, if it is given.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import cv2
import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from predicting import clocks
from timing import argument, finish

from ihc2he.callbacks import slides as writing
from ihc2he.config import config_dir
from ihc2he.data import slides as reading
from ihc2he.models.pipeline import inference, segmenters
from ihc2he.models.pipeline.slides import SlidePipeline

STAGES: dict[str, list[tuple[Any, str]]] = {
    "find tissue": [(reading, "make_plan")],
    "read": [(reading._Reader, "__call__")],
    "network": [(segmenters.Learned, "forward")],
    "find nuclei": [(inference, "find_and_vote")],
    "measure": [(writing, "kept_nuclei")],
    "write windows": [(writing, "write_window")],
    "files of the slide": [(writing, "assemble")],
}


class Cost(NamedTuple):
    """What a command costs with all processes that it starts.

    Attributes:
        wall_s: seconds on the wall.
        cpu_s: CPU seconds, user and system.
        peak_mb: most memory at a time; pages that processes share count once.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float


def cost(command: Sequence[str], every_s: float = 0.5) -> Cost:
    """Return what a command costs; Linux only.

    Args:
        command: program and arguments.
        every_s: how often to look at the memory.

    Raises:
        CalledProcessError: it fails.
    """
    before, started, peak = getrusage(RUSAGE_CHILDREN), time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, _session_kb(process.pid))
        time.sleep(every_s)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    after = getrusage(RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - started, cpu_s, peak / 1024)


def _session_kb(session: int) -> int:
    """Return the memory of all processes of a session in kB, by their proportional set sizes."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, IndexError):  # it has just ended
            continue
    return total


def slide_of(size: int, mpp: float, folder: Path) -> tuple[Path, float]:
    """Return a simulated slide, and the CPU seconds of making it; 0 where it was there.

    Args:
        size: its sides, px.
        mpp: um/px.
        folder: for the file.
    """
    path = folder / f"{size}.ome.tif"
    if path.is_file():
        return path, 0.0
    arguments = [f"out={path}", f"size={size}", "stain=ihc", f"mpp={mpp}", "seed=0"]
    return path, cost([sys.executable, "-m", "ihc2he.simulate", "slide", *arguments]).cpu_s


def whole(slide: Path, out: Path, *options: str) -> dict[str, Any]:
    """Return what the command line costs for a slide.

    Args:
        slide: the file.
        out: a new folder.
        options: further ones of the command line.
    """
    own = [f"data.path={slide}", f"out={out}", f"paths.outputs={out}.run", "trainer=cpu", *options]
    spent = cost([sys.executable, "-m", "ihc2he.train", "experiment=predict_slides", *own])
    (summary,) = out.glob("*/slide.json")
    result = json.loads(summary.read_text(encoding="utf-8"))
    mm2 = result["area_mm2"]["all tissue"]
    return {
        "tissue_mm2": mm2, "nuclei": result["nuclei"], "windows": result["windows"], **spent._asdict(),
        "s_per_mm2": spent.wall_s / mm2, "cpu_s_per_mm2": spent.cpu_s / mm2,
    }  # fmt: skip


def shares(slide: Path, out: Path) -> dict[str, float]:
    """Return the CPU seconds of each stage in one process, and of the rest.

    Args:
        slide: the file.
        out: a new folder.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    nodes: dict[str, Any] = {}
    for role, name in (("translator", "none"), ("segmenter", "centres")):
        node = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / role / f"{name}.yaml"))
        nodes[f"{role}s"] = {name: node}
    model = SlidePipeline(**nodes, use={kind: list(own) for kind, own in nodes.items()}, workers=0)
    data = reading.SlidesDataModule(path=str(slide), out=str(out), num_workers=0)
    with clocks(STAGES) as spent:
        trainer = Trainer(
            accelerator="cpu", devices=1, callbacks=[writing.SlideWriter(str(out), workers=0)], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        started = time.process_time()
        trainer.predict(model, datamodule=data, return_predictions=False)
        total = time.process_time() - started
    found = {stage: sum(calls) for stage, calls in spent.items()}
    return found | {"rest": total - sum(found.values())}


def slow_disk(slide: Path, out: Path, readers: Sequence[int], windows: int = 24) -> dict[int, float]:
    """Return the seconds on the wall of windows whose reading takes 0.5 s and which keep a device busy for 0.1 s.

    Args:
        slide: the file.
        out: a new folder.
        readers: numbers of processes that read.
        windows: how many.
    """

    class SlowReader(reading._Reader):
        def __call__(self, window: reading.Window) -> dict[str, Any]:
            time.sleep(0.5)
            return super().__call__(window)

    found = {}
    for number in readers:
        data = reading.SlidesDataModule(path=str(slide), out=str(out), num_workers=number)
        data.setup()
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=0, world_size=1, lightning_module=SimpleNamespace(working_mpp=0.5, block=256, halo_um=16.0)
        )
        with patch.object(reading, "_Reader", SlowReader):
            loader = iter(data.predict_dataloader())
        next(loader)
        started = time.perf_counter()
        for _ in range(windows):
            time.sleep(0.1)
            next(loader)
        found[number] = time.perf_counter() - started
    return found


def measure(sizes: Sequence[int], stages: int, mpp: float, folder: Path) -> dict[str, Any]:
    """Return what slides of these sides cost, and the stages of one of them."""
    rows = []
    for size in sizes:
        slide, made_s = slide_of(size, mpp, folder)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            row = {"size": size, "made_cpu_s": made_s, **whole(slide, Path(out) / "found")}
        rows.append(row)
        print({name: round(value, 2) for name, value in row.items()}, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        slide = slide_of(stages, mpp, folder)[0]
        found = shares(slide, Path(out) / "found")
        slow = slow_disk(slide, Path(out) / "slow", (1, 2, 4, 6))
    return {"slides": rows, "stages_cpu_s": found, "slow_disk_s": slow}


def shown(found: dict[str, float]) -> str:
    """Return the shares of stages as text."""
    total = sum(found.values())
    return ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in found.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sides = [int(size) for size in argument("sizes", "5000,10000").split(",") if size]
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(argument("folder", temporary))
        kept.mkdir(parents=True, exist_ok=True)
        result = measure(sides, argument("stages", 5000), float(argument("mpp", "0.25")), kept)
    print(shown(result["stages_cpu_s"]))
    print("slow disk, by readers:", {number: f"{seconds:.1f} s" for number, seconds in result["slow_disk_s"].items()})
    finish("slides", [], **result)
