"""Prediction as the Trainer runs it, on simulated tiles, with the time of each stage: what several benchmarks need."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

from ihc2he.build import build
from ihc2he.callbacks import imagefiles, predictions
from ihc2he.config import config_dir
from ihc2he.data import tiles
from ihc2he.images.finding import find_images
from ihc2he.models.bundle import save_bundle
from ihc2he.models.pipeline import assembly, inference, module, segmenters
from ihc2he.simulate.bci import MPP, write_bci

STAGES: dict[str, list[tuple[Any, str]]] = {
    "read": [(tiles._Reader, "_pixels")],
    "translate": [(inference, "translate")],
    "segment": [(segmenters.Learned, "forward"), (segmenters.Classical, "forward")],
    "post-process": [(inference, "find_and_vote"), (assembly.Assembly, "add")],
    "write": [(imagefiles.ImageFiles, "add")],
}
_GENERATOR = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator"}
_ENCODER = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet"}
_HOVERNET = {"_target_": "ihc2he.models.segmentation.hovernet.networks.HoverNet", "n_types": 5, "encoder": _ENCODER}
NETWORKS: dict[str, dict[str, Any]] = {
    "full": {"translator": _GENERATOR, "segmenter": _HOVERNET},
    "small": {
        "translator": _GENERATOR | {"width": 16, "n_blocks": 3},
        "segmenter": _HOVERNET | {"width": 32, "encoder": _ENCODER | {"width": 8, "units": [1, 1, 1, 1]}},
    },
}
INFO: dict[str, dict[str, Any]] = {
    "translator": {"stain_in": "IHC", "stain_out": "H&E", "mpp": MPP, "value_range": [-1, 1]},
    "segmenter": {
        "classes": list("abcde"), "mpp": 0.25, "decoder": {"_target_": "ihc2he.nuclei.decoders.hover.HoverDecoder"},
    },
}  # fmt: skip


def bundles(folder: Path, size: str) -> dict[str, Path]:
    """Return the bundles of a random generator and a random HoVer-Net, which are made in a folder, by their role.

    Args:
        folder: for the bundles.
        size: `full` as in the shipped configuration, or `small`.
    """
    torch.manual_seed(0)
    made = {}
    for role, node in NETWORKS[size].items():
        info = {"role": role, "module": node, **INFO[role]}
        made[role] = Path(save_bundle(build(node, torch.nn.Module), folder / role, info))
    return made


def pipeline(method: str, weights: dict[str, Path], workers: int = 0) -> module.Pipeline:
    """Return a method, written `translator+segmenter`, with the settings of the shipped configuration.

    Args:
        method: its name.
        weights: of its networks, as `bundles` gives them, where the configuration has none.
        workers: processes for the post-processing.
    """
    use = dict(zip(("translator", "segmenter"), method.split("+"), strict=True))
    nodes: dict[str, Any] = {}
    for role, name in use.items():
        node: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / role / f"{name}.yaml"))
        if node.get("weights", "builtin") is None:
            node["weights"] = str(weights[role])
        nodes[f"{role}s"] = {name: node}
    return module.Pipeline(**nodes, use={kind: list(own) for kind, own in nodes.items()}, workers=workers)


@contextmanager
def clocks(stages: Mapping[str, Sequence[tuple[Any, str]]]) -> Iterator[dict[str, list[float]]]:
    """Have the CPU seconds of calls collected by stage, whichever thread of this process makes them.

    Args:
        stages: the functions of each, as an object and the name in it.
    """
    spent: dict[str, list[float]] = {stage: [] for stage in stages}

    def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            result = call(*args, **kwargs)
            seconds.append(time.thread_time() - started)
            return result

        return wrapper

    with ExitStack() as stack:
        for stage, places in stages.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), spent[stage])))
        yield spent


def predict(model: module.Pipeline, images: Path, mpp: float, loaders: int = 0, **options: Any) -> dict[str, float]:
    """Return the seconds of a prediction, `wall`, `cpu` and CPU by stage, and the number of `nuclei`.

    Args:
        model: a method.
        images: folder of the tiles.
        mpp: um/px.
        loaders: processes that read tiles; CPU time of other processes than this is not counted.
        options: of the Trainer.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as out, ExitStack() as stack:
        # Processes could not be sent a function that is being timed.
        spent = {stage: [] for stage in STAGES} if loaders or model.workers else stack.enter_context(clocks(STAGES))
        trainer = Trainer(
            **{"accelerator": "cpu", "devices": 1, **options}, callbacks=[predictions.PredictionWriter(out)],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = tiles.TilesDataModule(path=str(images), mpp=mpp, num_workers=loaders)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.predict(model, datamodule=data, return_predictions=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        nuclei = next(row["nuclei"] for row in predictions.summary(Path(out))[::-1] if row["class"] == "all")
    return {"wall": wall, "cpu": cpu, "nuclei": nuclei} | {stage: sum(calls) for stage, calls in spent.items()}


def quickest(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the run of least CPU time."""
    return min(runs, key=lambda run: run["cpu"])


def simulated(folder: Path, side: int) -> list[Path]:
    """Return a few simulated tiles of IHC, 0.46 um/px, that are written to a folder."""
    root = write_bci(folder, 5, side) / "IHC"
    return [root / name for name in find_images(root)]


def copies(kinds: Sequence[Path], number: int, folder: Path) -> Path:
    """Return a new folder with so many copies of tiles."""
    folder.mkdir()
    for i in range(number):
        shutil.copy(kinds[i % len(kinds)], folder / f"{i:04}.png")
    return folder
