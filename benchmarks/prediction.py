"""Times the prediction of nuclei, from image files to result files: tiles per second, its stages, and how it grows.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py [tiles=5] [rounds=3]

All of it is timed as the Trainer runs it, on the CPU, in this process. Rates are by time on the wall; stages and
growth by CPU time, which other load on the machine disturbs less. The networks are small and random, so what the
learned method finds is nonsense, and only where its time goes is of interest. Growth is that of the method without
networks, over copies of simulated tiles, and over single tiles of 1024 px with ever more round nuclei.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from timing import argument

from ihc2he.build import build
from ihc2he.callbacks import predictions
from ihc2he.config import config_dir
from ihc2he.data.images import find_images
from ihc2he.data.tiles import TilesDataModule
from ihc2he.files import complete
from ihc2he.models.bundle import save_bundle
from ihc2he.models.pipeline import inference, module, segmenters
from ihc2he.simulate.bci import MPP, write_bci
from ihc2he.simulate.writing import write_image

STAGES: dict[str, list[tuple[Any, str]]] = {
    "translate": [(inference, "translate")],
    "segment": [(segmenters.Hovernet, "forward"), (segmenters.Classical, "forward")],
    "post-process": [(inference, "find_and_vote"), (module, "assemble")],
    "write": [(predictions, "write_prediction")],
}
SIDE = 256  # px, of the simulated tiles
TILES = (1, 10, 30, 100)
NUCLEI = (64, 128, 256, 512, 1024)
CELLS, CELL, DRAWN_MPP = 32, 32, 0.25  # a tile of 32 x 32 cells of 32 px, um/px
BACKGROUND, NUCLEUS = (235, 225, 230), (95, 85, 150)  # RGB
GENERATOR = {"_target_": "ihc2he.models.cyclegan.networks.ResnetGenerator", "width": 16, "n_blocks": 3}
HOVERNET = {
    "_target_": "ihc2he.models.hovernet.networks.HoverNet", "n_types": 5, "width": 32,
    "encoder": {"_target_": "ihc2he.models.hovernet.encoders.PreactResNet", "width": 8, "units": [1, 1, 1, 1]},
}  # fmt: skip
BUNDLES: dict[str, dict[str, Any]] = {
    "translator": {"module": GENERATOR, "stain_in": "IHC", "stain_out": "H&E", "mpp": MPP, "value_range": [-1, 1]},
    "segmenter": {"module": HOVERNET, "classes": list("abcde"), "mpp": 0.25},
}


def pipeline(method: str, weights: Path) -> module.Pipeline:
    """Return a method, written `translator+segmenter`, with the settings of the shipped configuration.

    Args:
        method: its name.
        weights: folder for the bundles of its networks, which are made here.
    """
    torch.manual_seed(0)
    use = dict(zip(("translator", "segmenter"), method.split("+"), strict=True))
    nodes: dict[str, Any] = {}
    for role, name in use.items():
        node: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / role / f"{name}.yaml"))
        if "weights" in node:
            info = BUNDLES[role]
            network = build(info["module"], torch.nn.Module)
            node["weights"] = str(save_bundle(network, weights / role, {"role": role, **info}))
        nodes[f"{role}s"] = {name: node}
    return module.Pipeline(**nodes, use={kind: list(own) for kind, own in nodes.items()}, workers=0)


@contextmanager
def clocks() -> Iterator[dict[str, list[float]]]:
    """Have the CPU seconds of calls collected by stage, whichever thread makes them."""
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            result = call(*args, **kwargs)
            seconds.append(time.thread_time() - started)
            return result

        return wrapper

    with ExitStack() as stack:
        for stage, places in STAGES.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), spent[stage])))
        yield spent


def predict(model: module.Pipeline, images: Path, mpp: float) -> dict[str, float]:
    """Return the seconds of a prediction, `wall`, `cpu` and CPU by stage, and the number of `nuclei`.

    Args:
        model: a method.
        images: folder of the tiles.
        mpp: um/px.
    """
    with tempfile.TemporaryDirectory() as out, clocks() as spent:
        trainer = Trainer(
            accelerator="cpu", devices=1, callbacks=[predictions.PredictionWriter(out)], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = TilesDataModule(path=str(images), mpp=mpp, num_workers=0)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.predict(model, datamodule=data, return_predictions=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        nuclei = next(row["nuclei"] for row in predictions.summary(Path(out))[::-1] if row["class"] == "all")
    return {"wall": wall, "cpu": cpu, "nuclei": nuclei} | {stage: sum(calls) for stage, calls in spent.items()}


def quickest(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the run of least CPU time."""
    return min(runs, key=lambda run: run["cpu"])


def rate(method: str, images: Path, tiles: int, rounds: int) -> dict[str, Any]:
    """Return the row of a method: its rates, the share of each stage, and the most memory that this process has had."""
    with tempfile.TemporaryDirectory() as weights:
        model = pipeline(method, Path(weights))
    found = quickest([predict(model, images, MPP) for _ in range(rounds + 1)])  # the first warms up
    shares = {stage: found[stage] / found["cpu"] for stage in STAGES}
    per_s = tiles / found["wall"]
    return {
        "method": method,
        "tiles": tiles,
        "nuclei": found["nuclei"],
        "tiles_per_s": per_s,
        "mm2_per_s": per_s * (SIDE * MPP / 1000) ** 2,
        "shares": shares | {"rest": 1 - sum(shares.values())},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def growth(over: str, sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """Return how time grows with a size: seconds for one more, R2 of a straight line, exponent of a power law."""
    return {
        "over": over,
        "sizes": list(sizes),
        "cpu_s": list(seconds),
        "s_for_one_more": float(np.polyfit(sizes, seconds, 1)[0]),
        "r2": float(np.corrcoef(sizes, seconds)[0, 1] ** 2),
        "exponent": float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]),
    }


def copies(tiles: Sequence[Path], number: int, folder: Path) -> Path:
    """Return a new folder with so many copies of tiles."""
    folder.mkdir()
    for i in range(number):
        shutil.copy(tiles[i % len(tiles)], folder / f"{i:03}.png")
    return folder


def drawn(nuclei: int, folder: Path) -> Path:
    """Return a new folder with a tile of so many nuclei, in random cells of a grid, so that none touch."""
    chosen = np.random.default_rng(0).permutation(CELLS**2).reshape(CELLS, CELLS) < nuclei
    disc_hw = cv2.circle(np.zeros((CELL, CELL), np.uint8), (CELL // 2, CELL // 2), CELL // 3, 1, -1)
    inside_hw1 = np.kron(chosen, disc_hw)[..., None] > 0
    image: Any = np.where(inside_hw1, NUCLEUS, BACKGROUND).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 1)
    write_image(folder / "tile.png", image)
    return folder


def measure(folder: Path, tiles: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of `methods` and of `growth`.

    Args:
        folder: for the tiles.
        tiles: for the rates.
        rounds: of each measurement, of which the quickest counts.
    """
    simulated = write_bci(folder / "bci", 5, SIDE) / "IHC"
    kinds = [simulated / name for name in find_images(simulated)]
    images = copies(kinds, tiles, folder / "rate")
    rows = [rate(method, images, tiles, rounds) for method in ("recolour+classical", "cyclegan+hovernet")]

    model = pipeline("recolour+classical", folder)
    by_tiles = [
        quickest([predict(model, images, MPP) for _ in range(rounds)])["cpu"]
        for images in (copies(kinds, number, folder / f"tiles{number}") for number in TILES)
    ]
    by_nuclei = [
        quickest([predict(model, images, DRAWN_MPP) for _ in range(rounds)])
        for images in (drawn(number, folder / f"nuclei{number}") for number in NUCLEI)
    ]
    over_nuclei = [[run[key] for run in by_nuclei] for key in ("nuclei", "cpu")]
    return {"methods": rows, "growth": [growth("tiles", TILES, by_tiles), growth("nuclei of a tile", *over_nuclei)]}


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print the tables of results."""
    stages = [*STAGES, "rest"]
    print(f"{'prediction':<22}{'tiles/s':>9}{'mm2/s':>9}{'peak MB':>9}" + "".join(f"{stage:>14}" for stage in stages))
    for row in results["methods"]:
        shares = "".join(f"{row['shares'][stage]:>14.0%}" for stage in stages)
        print(
            f"{row['method']:<22}{row['tiles_per_s']:>9.2f}{row['mm2_per_s']:>9.4f}{row['peak_memory_mb']:>9.0f}{shares}"
        )
    for row in results["growth"]:
        sizes = ", ".join(f"{size}: {seconds:.2f} s" for size, seconds in zip(row["sizes"], row["cpu_s"], strict=True))
        print(
            f"over {row['over']} ({sizes}): {1000 * row['s_for_one_more']:.2f} ms for one more, "
            f"R2 of a line {row['r2']:.4f}, exponent {row['exponent']:.2f}"
        )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), argument("tiles", 5), argument("rounds", 3))
    show(results)
    versions = {name: version(name) for name in ("torch", "lightning", "opencv-python-headless", "numpy")}
    with complete(Path(__file__).parent / "results" / "prediction.json") as path:
        path.write_text(json.dumps({"versions": versions, **results}, indent=1) + "\n", encoding="utf-8")
