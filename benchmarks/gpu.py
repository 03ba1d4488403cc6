"""Measures training and inference on a GPU: images per second, ours against the published steps, and use of the card.

    python benchmarks/gpu.py [device=cuda] [size=full] [steps=10] [tiles=1000]

Run it alone on the card. The published steps are as torch runs them by default (float32, with TF32 in convolutions),
with cuDNN choosing kernels by trial for both sides. Steps take turns; ours run inside the Trainer in bf16-mixed and
channels-last with the shipped optimiser: as shipped, with `compile`, and compiled with CUDA graphs. For the light
network of `experiment=nuclei_lite` there is no published step. The ceiling is what a large bf16 matrix product reaches
on this card; the floating-point operations are counted by torch. At the end 1,000 tiles are predicted from files to
files. Results are written after each case, those that compile last, so a time limit keeps what was measured before it.
`size=short` measures fewer batches and predicts no tiles; `device=cpu size=tiny` only shows that the script works.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from cyclegan_reference import ReferenceStep as CycleganReference
from cyclegan_step import crops, cyclegan
from hovernet_reference import ENCODER
from hovernet_reference import ReferenceStep as HovernetReference
from hovernet_step import crop, hovernet
from lightning.pytorch import Callback
from predicting import bundles, copies, pipeline, predict, simulated
from prediction import command_line
from run import markdown
from timing import Row, argument, composed, finish, ratios, results, save, take_turns
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training import Batch, fit, in_turns, now

from ihc2he.build import build
from ihc2he.errors import did_you_mean
from ihc2he.files import write_text
from ihc2he.models.segmentation.loading import PANNUKE
from ihc2he.models.segmentation.unet.module import UNetSegmenter
from ihc2he.simulate.bci import MPP

FULL: dict[str, Any] = {
    "batches": {"CycleGAN": (1, 4, 16), "HoVer-Net": (1, 4, 16), "lite": (8, 64)}, "networks": "full", "matmul": 8192,
    "sides": {"CycleGAN": 256, "HoVer-Net": 256, "lite": 128}, "ways": ("", ", compiled", ", CUDA graphs"),
    "steps": 10, "tiles": 1000, "seconds": 5,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "full": FULL,
    "short": FULL
    | {"batches": {"CycleGAN": (1, 4, 16), "HoVer-Net": (16,), "lite": (64,)}, "steps": 5, "tiles": 0, "seconds": 2},
    "tiny": {
        "batches": {"CycleGAN": (1,), "HoVer-Net": (1,), "lite": (1,)}, "networks": "small", "matmul": 64,
        "sides": {"CycleGAN": 32, "HoVer-Net": 96, "lite": 64}, "ways": ("",), "steps": 1, "tiles": 2, "seconds": 0,
    },
}  # fmt: skip
SMALL_ENCODER = ENCODER | {"width": 8, "units": [1, 1, 1, 1]}
Rate = dict[str, Any]


class Case(NamedTuple):
    """A network to train: ours, the published step if there is one, samples, and changes of our arguments."""

    ours: Callable[..., Any]
    published: Any
    samples: Sequence[Batch]
    changes: dict[str, Any]


class Count(Callback):
    """Counts the floating-point operations of the first training step, which `flops` holds."""

    def on_train_batch_start(self, *args: Any) -> None:
        """Begin to count."""
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        """End counting."""
        self.counter.__exit__(None, None, None)
        self.flops = self.counter.get_total_flops()


def ceiling(device: str, side: int) -> float:
    """Return the TFLOP/s of a product of two square bf16 matrices, the best of some."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [_seconds(lambda: left @ right) for _ in range(10)]
    return 2 * side**3 / min(seconds) / 1e12


def lite(**changes: Any) -> UNetSegmenter:
    """Return the network of `experiment=nuclei_lite` with random weights and PanNuke's types; changes of arguments."""
    node = composed("nuclei_lite")["model"]
    encoder = node["encoder"] | {"weights": None}
    return build(node | {"encoder": encoder, "classes": list(PANNUKE)} | changes, UNetSegmenter)


def cases(sizes: dict[str, Any]) -> dict[str, Case]:
    """Return what is trained, by name."""
    sides, full = sizes["sides"], sizes["networks"] == "full"
    networks = "ihc2he.models.translation.cyclegan.networks"
    small_gan = {"generator": {"_target_": f"{networks}.ResnetGenerator", "width": 8, "n_blocks": 1}}
    small_hover = {"encoder": SMALL_ENCODER, "width": 32}
    reference = HovernetReference if full else partial(HovernetReference, **small_hover)
    sample = crop(sides["lite"])
    targets = lite().decoder.targets(sample["inst"].numpy(), 0.25)
    sample |= {name: torch.from_numpy(target) for name, target in targets.items()}
    return {
        "CycleGAN": Case(cyclegan, CycleganReference, crops(sides["CycleGAN"]), {} if full else small_gan),
        "HoVer-Net": Case(hovernet, reference, [crop(sides["HoVer-Net"])], {} if full else small_hover),
        "lite": Case(lite, None, [sample], {}),
    }


def flops_per_image(case: Case, device: str) -> float:
    """Return the floating-point operations of a training step for each image of the batch."""
    counter = Count()
    fit(case.ours(**case.changes), case.samples, 2, 1, "32-true", device, counter)
    return counter.flops / 2


def training(case: Case, batch: int, way: str, steps: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each step; `way` is one of `FULL["ways"]`."""
    if way:
        torch.compiler.reset()
    module = case.ours(**case.changes, compile=bool(way))
    if "graphs" in way:
        for network in module.children():
            network.compile = partial(network.compile, mode="reduce-overhead")
        # Until the next step nothing may overwrite what graphs have returned, such as the fakes for the discriminators.
        module.on_train_batch_start = lambda *_: torch.compiler.cudagraph_mark_step_begin()
    return in_turns(module, case.published, case.samples, batch, steps, "bf16-mixed", device)


def inference(name: str, batch: int, sizes: dict[str, Any], device: str) -> tuple[float, dict[str, list[float]]]:
    """Return operations and seconds of forward passes: float32 as published, against bf16 and channels-last."""
    small = {} if sizes["networks"] == "full" else {"encoder": SMALL_ENCODER, "width": 32}
    networks: dict[str, Callable[[], nn.Module]] = {
        "CycleGAN": lambda: cyclegan().g_ihc2he,
        "HoVer-Net": lambda: hovernet(mode="same", **small).network,
        "lite": lambda: lite().network,
    }
    x_bchw = torch.rand(batch, 3, *(2 * [sizes["sides"][name]]), device=device)
    theirs = networks[name]().to(device).eval()
    calls = {"published": _forward(theirs, x_bchw, False), "ours": _forward(copy.deepcopy(theirs), x_bchw, True)}
    with FlopCounterMode(display=False) as counter:
        calls["published"]()
    return counter.get_total_flops(), take_turns(calls, sizes["seconds"], _seconds)


def _forward(network: nn.Module, x_bchw: torch.Tensor, fast: bool) -> Callable[[], None]:
    """Return a forward pass: as published, or in channels-last and bf16."""
    layout = torch.channels_last if fast else torch.contiguous_format
    network, x_bchw = network.to(memory_format=layout), x_bchw.to(memory_format=layout)

    @torch.no_grad()
    def call() -> None:
        with torch.autocast(x_bchw.device.type, torch.bfloat16, enabled=fast):
            network(x_bchw)

    return call


def _seconds(call: Callable[[], object]) -> float:
    started = now()
    call()
    return now() - started


def prediction(device: str, sizes: dict[str, Any], tiles: int) -> dict[str, float]:
    """Return how long cyclegan+hovernet takes for so many tiles, from files to files; on a GPU by the command line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = copies(simulated(folder / "bci", sizes["sides"]["HoVer-Net"]), tiles, folder / "images")
        weights = bundles(folder / "bundles", sizes["networks"])
        if device == "cuda":
            workers = max(1, len(os.sched_getaffinity(0)) // 2)
            options = "trainer=gpu", f"model.workers={workers}", "data.num_workers=4"
            wall_s = command_line("cyclegan+hovernet", weights, images, folder, *options)
        else:
            workers = 0
            wall_s = predict(pipeline("cyclegan+hovernet", weights), images, MPP)["wall"]
    print(f"cyclegan+hovernet, {tiles} tiles from files to files: {wall_s:.1f} s")
    return {"tiles": tiles, "workers": workers, "wall_s": wall_s, "tiles_per_s": tiles / wall_s}


class Findings:
    """Rows of ratios and rates, which are printed and written as they come.

    Args:
        benchmark: name of the files.
        ceiling_tflops: of the card.
    """

    def __init__(self, benchmark: str, ceiling_tflops: float) -> None:
        self.benchmark, self.rows = benchmark, list[Row]()
        self.more: dict[str, Any] = {"rates": [], "failed": {}, "ceiling_tflops": ceiling_tflops}

    def add(self, case: str, batch: int, measure: Callable[[], tuple[float, dict[str, list[float]]]]) -> None:
        """Add the ratio and the rate of a case, or note that it failed.

        Args:
            case: what is measured.
            batch: images of a call.
            measure: returns the operations of a call, and its seconds by contender.
        """
        try:
            flops, seconds = measure()
        except Exception as error:  # time on a GPU is short: the other cases are measured
            traceback.print_exc()
            self.more["failed"][case] = repr(error)
            return
        self.rows += ratios(case, seconds, {"published": "theirs in float32"})
        ours, published = (median(seconds[name]) if name in seconds else None for name in ("ours", "published"))
        tflops = flops / ours / 1e12
        rate: Rate = {
            "case": case, "images_per_s": batch / ours, "published_images_per_s": published and batch / published,
            "tflop": flops / 1e12, "tflops": tflops, "share_of_ceiling": tflops / self.more["ceiling_tflops"],
        }  # fmt: skip
        self.more["rates"].append(rate)
        theirs = f", published {rate['published_images_per_s']:.1f}" if published else ""
        print(
            f"{case}: {rate['images_per_s']:.1f} images/s{theirs}; {tflops:.3g} TFLOP/s, "
            f"{rate['share_of_ceiling']:.0%} of {self.more['ceiling_tflops']:.3g}",
            flush=True,
        )
        content = save(self.benchmark, self.rows, **self.more)
        write_text(results() / f"{self.benchmark}.md", markdown({"gpu": content}) + "\n")


def main(device: str, size: str) -> None:
    """Measure everything, and end with an error where a case failed."""
    sizes = SIZES[size]
    steps = argument("steps", sizes["steps"])
    # What was tried out must not pass for figures of a GPU.
    benchmark = "gpu" if size != "tiny" and device == "cuda" else "gpu_tried"
    found = Findings(benchmark, ceiling(device, sizes["matmul"]))
    for name, batches in sizes["batches"].items():
        case = f"{name} forward, {max(batches)} x {sizes['sides'][name]} px, bf16"
        found.add(case, max(batches), partial(inference, name, max(batches), sizes, device))
    trained = cases(sizes)

    @cache
    def flops(name: str) -> float:
        return flops_per_image(trained[name], device)

    each = [(name, batch) for name, batches in sizes["batches"].items() for batch in batches]
    plain, *compiled = sizes["ways"]
    # Compiling takes minutes, so it comes last.
    for name, batch, way in [(*one, plain) for one in each] + [(*one, way) for one in each for way in compiled]:

        def step(name: str = name, batch: int = batch, way: str = way) -> tuple[float, dict[str, list[float]]]:
            return batch * flops(name), training(trained[name], batch, way, steps, device)

        found.add(f"{name} step, {batch} x {sizes['sides'][name]} px, bf16-mixed{way}", batch, step)
    if tiles := argument("tiles", sizes["tiles"]):
        found.more["prediction"] = prediction(device, sizes, tiles)
    finish(benchmark, found.rows, **found.more)
    if found.more["failed"]:
        sys.exit(f"benchmarks/gpu.py: {len(found.more['failed'])} cases failed: {', '.join(found.more['failed'])}")


if __name__ == "__main__":
    device, size = argument("device", "cuda"), argument("size", "full")
    if size not in SIZES:
        msg = f"size={size}: expected {', '.join(SIZES)}.{did_you_mean(size, SIZES)}"
        raise SystemExit(msg)
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch finds no GPU here. `device=cpu size=tiny` only tries the script out.")
    torch.backends.cudnn.benchmark = True
    if device == "cpu":
        torch.set_num_threads(1)
    main(device, size)
