"""Runs that are killed, anywhere, end with the same bits as the run that was left alone."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from ihc2he.images.writing import write_png
from ihc2he.stain.painting import paint

KILLING = Path(__file__).with_name("killing.py")
MODELS = ["cyclegan_bci", "hovernet_pannuke"]
STEPS = {"cyclegan_bci": 40, "hovernet_pannuke": 15}  # calls of an optimiser in a whole run of `arguments`


def run(kinds, model, folder, *more):
    """Run a small training that is killed in those ways; return what each process was killed by, and its status."""
    arguments = [
        f"experiment=smoke/{model}", f"paths.store={folder}/store", f"hydra.run.dir={folder}/run", "ckpt_path=auto",
        "callbacks.last.every_n_steps=3", "data.simulate.tiles=12", "data.samples_per_epoch=10", "stages=[fit]", *more,
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, KILLING, ",".join(kinds), *arguments], cwd=folder, capture_output=True, text=True,
        timeout=1200, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def state(folder):
    """Return what a run's last checkpoint holds besides the paths of its own folder."""
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: value for key, value in checkpoint.items() if key != "callbacks"}


def differences(a, b, path=""):
    """Return where two nested states differ, in any bit."""
    if isinstance(a, dict):
        keys = sorted(a.keys() | b.keys(), key=str)
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{path}/{key}")]
    if isinstance(a, list | tuple):
        pairs = [d for i, pair in enumerate(zip(a, b, strict=False)) for d in differences(*pair, f"{path}/{i}")]
        return pairs + ([] if len(a) == len(b) else [f"{path}: {len(a)} and {len(b)} long"])
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]


def rows(folder):
    """Return what a run has logged besides its speed, in the order of steps."""
    with (folder / "run" / "metrics.csv").open(newline="") as stream:
        return [
            {key: value for key, value in row.items() if not key.startswith("throughput/")}
            for row in csv.DictReader(stream)
            if any(value and not key.startswith(("throughput/", "step", "epoch")) for key, value in row.items())
        ]


def log(folder):
    return (folder / "killing.log").read_text()


@pytest.fixture
def painted(tmp_path):
    """Options for crops that are painted like a tile."""
    pink, nuclei = np.full((64, 64, 3), (220, 160, 200), np.uint8), np.zeros((64, 64), np.int32)
    nuclei[20:40, 20:40] = 1
    write_png(tmp_path / "ihc" / "tile.png", paint(pink, nuclei, 0.25, np.random.default_rng(0)))
    return [f"data.augmentation.paint.{option}" for option in
            ("share=0.6", f"reference={tmp_path / 'ihc'}", "reference_mpp=0.25")]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "step", "paints"),
    [("cyclegan_bci", 10, False), ("hovernet_pannuke", 12, False), ("hovernet_pannuke", 12, True)],
)
def test_a_kill_within_an_epoch_changes_no_bit(model, step, paints, painted, tmp_path):
    more = painted if paints else []
    run([], model, tmp_path / "whole", *more)
    assert [line["status"] for line in run([f"step:{step}"], model, tmp_path / "killed", *more)] == [-9, 0]
    assert (tmp_path / "killed" / "run" / "painted.png").is_file() == paints
    assert log(tmp_path / "killed").count("Continuing") == 1
    logged = [rows(tmp_path / folder) for folder in ("whole", "killed")]
    assert logged[0] == logged[1]
    assert differences(state(tmp_path / "whole"), state(tmp_path / "killed")) == []


def random_kills(model, rng):
    """Return kills of one run: one as the store is built, then anywhere, mostly early enough to strike."""
    kinds = [f"store:{rng.randint(1, 12)}"]
    for _ in range(4):
        what = rng.choice(["step", "step", "validation", "checkpoint", "after"])
        most = {"step": STEPS[model] // 4, "validation": 2, "checkpoint": 2, "after": 3.0}[what]
        number = round(rng.uniform(0.5, most), 2) if what == "after" else rng.randint(1, most)
        kinds.append(f"{what}:{number}")
    return kinds


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_ten_random_kills_change_no_bit(model, tmp_path):
    run([], model, tmp_path / "whole")
    struck = []
    for seed in range(5):
        if len(struck) >= 10:
            break
        folder = tmp_path / f"killed{seed}"
        *kills, end = run(random_kills(model, Random(f"{model}{seed}")), model, folder)
        assert (end["kind"], end["status"]) == ("none:0", 0) or end["status"] == 0, log(folder)
        assert {line["status"] for line in kills} <= {-9}, log(folder)
        struck += kills
        assert differences(state(tmp_path / "whole"), state(folder)) == [], kills
    assert len(struck) >= 10
    assert {line["kind"].partition(":")[0] for line in struck} >= {"store", "step", "validation", "checkpoint"}


@pytest.mark.parametrize("more", [(), ("model.accumulate=2",)])
def test_sigterm_saves_at_once_and_says_how_to_go_on(more, tmp_path):
    run([], "cyclegan_bci", tmp_path / "whole", *more)
    folder = tmp_path / "told"
    several = ("callbacks.last.every_n_steps=null", *more)
    assert [line["status"] for line in run(["term:7"], "cyclegan_bci", folder, *several)] == [143, 0]
    said = log(folder).splitlines()
    command = next(line for line in said if line.startswith("python -m ihc2he.train"))
    assert {"experiment=smoke/cyclegan_bci", f"hydra.run.dir={folder}/run", "ckpt_path=auto"} < set(
        shlex.split(command)
    )
    assert any("Continuing" in line for line in said)  # from a checkpoint within the first epoch
    assert differences(state(tmp_path / "whole"), state(folder)) == []


@pytest.mark.slow
def test_two_processes_that_are_told_to_end_go_on_exactly(tmp_path):
    def start(folder):
        folder.mkdir(exist_ok=True)
        arguments = ["experiment=smoke/cyclegan_bci", "trainer=ddp_cpu", "stages=[fit]", "data.samples_per_epoch=80",
                     "callbacks.last.every_n_steps=7", f"hydra.run.dir={folder}/run", "ckpt_path=auto"]  # fmt: skip
        command = [sys.executable, "-m", "ihc2he.train", *arguments]
        return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait(240) == 0
    process = start(tmp_path / "told")
    deadline = time.monotonic() + 120
    while not (tmp_path / "told/run/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, process.stderr.read()
    batches = state(tmp_path / "told")["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    assert 7 < batches < 40
    assert start(tmp_path / "told").wait(240) == 0
    assert differences(state(tmp_path / "whole"), state(tmp_path / "told")) == []
