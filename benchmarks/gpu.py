"""Measures training and inference on a GPU: images per second, ours against the published steps, and use of the card.

    python benchmarks/gpu.py [device=cuda] [size=full] [steps=10] [tiles=1000]

Run it alone on the card; it takes some ten minutes. The published steps are as torch runs them by default (float32,
with TF32 in convolutions), with cuDNN choosing kernels by trial for both sides. Steps take turns; ours run inside the
Trainer in bf16-mixed and channels-last with the shipped optimiser, without and with `compile`. The ceiling is what a
large bf16 matrix product reaches on this card; the floating-point operations of a step are counted by torch. At the
end 1,000 tiles are predicted from files to files. `device=cpu size=tiny` only shows that the script works.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cyclegan_reference import ReferenceStep as CycleganReference
from cyclegan_step import crops, cyclegan
from hovernet_reference import ENCODER
from hovernet_reference import ReferenceStep as HovernetReference
from hovernet_step import crop, hovernet
from lightning.pytorch import Callback
from predicting import bundles, copies, pipeline, predict, simulated
from prediction import command_line
from timing import Row, argument, finish, ratios, take_turns
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training import fit, in_turns, now

from ihc2he.simulate.bci import MPP

FULL: dict[str, Any] = {
    "sides": (256, 256), "batches": (1, 4, 16), "matmul": 8192, "networks": "full", "compile": (False, True),
}  # fmt: skip
TINY: dict[str, Any] = {"sides": (32, 96), "batches": (1,), "matmul": 64, "networks": "small", "compile": (False,)}
SMALL_ENCODER = ENCODER | {"width": 8, "units": [1, 1, 1, 1]}


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


def training(device: str, sizes: dict[str, Any], steps: int, ceiling_tflops: float) -> tuple[list[Row], list[Row]]:
    """Return the rows of ratios, and for each of them images per second and the share of the ceiling."""
    (gan_side, hover_side), full = sizes["sides"], sizes["networks"] == "full"
    networks = "ihc2he.models.translation.cyclegan.networks"
    small_gan = {"generator": {"_target_": f"{networks}.ResnetGenerator", "width": 8, "n_blocks": 1}}
    small_hover = {"encoder": SMALL_ENCODER, "width": 32}
    reference: Any = HovernetReference if full else partial(HovernetReference, encoder=SMALL_ENCODER, width=32)
    models: dict[str, tuple[Any, Any, list[Any], dict[str, Any], int]] = {
        "CycleGAN": (cyclegan, CycleganReference, crops(gan_side), {} if full else small_gan, gan_side),
        "HoVer-Net": (hovernet, reference, [crop(hover_side)], {} if full else small_hover, hover_side),
    }
    rows, rates = [], []
    for name, (ours, published, samples, changes, side) in models.items():
        for batch in sizes["batches"]:
            counter = Count()
            fit(ours(**changes), samples, batch, 1, "32-true", device, counter)
            for compiled in sizes["compile"]:
                module = ours(**changes, compile=compiled)
                seconds = in_turns(module, published, samples, batch, steps, "bf16-mixed", device)
                case = f"{name} step, {batch} x {side} px, bf16-mixed{', compiled' if compiled else ''}"
                found = ratios(case, seconds, {"published": "theirs in float32"})
                rows += found
                tflops = counter.flops / median(seconds["ours"]) / 1e12
                rates.append(
                    {
                        "case": case, "images_per_s": batch / median(seconds["ours"]),
                        "published_images_per_s": batch / median(seconds["published"]), "tflop_per_step":
                        counter.flops / 1e12, "tflops": tflops, "share_of_ceiling": tflops / ceiling_tflops,
                    }
                )  # fmt: skip
    return rows, rates


def inference(device: str, sizes: dict[str, Any], seconds: float) -> list[Row]:
    """Return the rows of both networks: float32 as published, against bf16 and channels-last."""
    rows = []
    batch, full = max(sizes["batches"]), sizes["networks"] == "full"
    small = {} if full else {"encoder": SMALL_ENCODER, "width": 32}
    networks = {"generator": cyclegan().g_ihc2he, "HoVer-Net": hovernet(mode="same", **small).network}
    for (name, network), side in zip(networks.items(), sizes["sides"], strict=True):
        x_bchw = torch.rand(batch, 3, side, side, device=device)
        theirs = network.to(device).eval()
        calls = {"published": _forward(theirs, x_bchw, False), "ours": _forward(copy.deepcopy(theirs), x_bchw, True)}
        spent = take_turns(calls, seconds, _seconds)
        rows += ratios(f"{name} forward, {batch} x {side} px, bf16", spent, {"published": "theirs in float32"})
    return rows


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
        images = copies(simulated(folder / "bci", sizes["sides"][1]), tiles, folder / "images")
        weights = bundles(folder / "bundles", sizes["networks"])
        if device == "cuda":
            workers = max(1, len(os.sched_getaffinity(0)) // 2)
            options = "trainer=gpu", f"model.workers={workers}", "data.num_workers=4"
            wall_s = command_line("cyclegan+hovernet", weights, images, folder, *options)
        else:
            workers = 0
            wall_s = predict(pipeline("cyclegan+hovernet", weights), images, MPP)["wall"]
    return {"tiles": tiles, "workers": workers, "wall_s": wall_s, "tiles_per_s": tiles / wall_s}


if __name__ == "__main__":
    device, full = argument("device", "cuda"), argument("size", "full") == "full"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch finds no GPU here. `device=cpu size=tiny` only tries the script out.")
    sizes, steps = (FULL, argument("steps", 10)) if full else (TINY, 1)
    torch.backends.cudnn.benchmark = True
    if device == "cpu":
        torch.set_num_threads(1)
    best = ceiling(device, sizes["matmul"])
    rows, rates = training(device, sizes, steps, best)
    rows += inference(device, sizes, 5 if full else 0)
    whole = prediction(device, sizes, argument("tiles", 1000 if full else 2))
    for rate in rates:
        print(
            f"{rate['case']}: {rate['images_per_s']:.1f} images/s, published {rate['published_images_per_s']:.1f}; "
            f"{rate['tflops']:.3g} TFLOP/s, {rate['share_of_ceiling']:.0%} of {best:.3g}"
        )
    print(f"cyclegan+hovernet, {whole['tiles']} tiles from files to files: {whole['wall_s']:.1f} s")
    # What was tried out must not pass for figures of a GPU.
    finish(
        "gpu" if full and device == "cuda" else "gpu_tried", rows, rates=rates, ceiling_tflops=best, prediction=whole
    )
