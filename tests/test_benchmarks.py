"""The helpers of the benchmarks, and the script for a GPU as far as it runs without one."""

import importlib
import json
import logging
import runpy
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from ihc2he.errors import DataError
from ihc2he.files import write_text
from ihc2he.images.decoding import read_image
from ihc2he.images.writing import write_png

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Return `script(name, *options)`, which runs a benchmark in this process, its results in tmp_path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    chatty = logging.getLogger("lightning.pytorch")
    level = chatty.level

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", f"results={tmp_path}", *options])
        return runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")

    yield run
    chatty.setLevel(level)


@pytest.fixture
def module(monkeypatch):
    """Return `module(name)`, which imports a benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def timing(module):
    return module("timing")


def test_contenders_take_turns_and_the_first_round_does_not_count(timing):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("theirs", "ours")}
    spent = timing.take_turns(calls, 0, lambda call: call() or len(order), least=2)
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert spent == {"theirs": [4, 5], "ours": [3, 6]}


def test_ratios_are_those_of_the_rounds(timing):
    spent = {"theirs": [4.0, 9.0, 10.0], "ours": [2.0, 3.0, 1.0]}
    (row,) = timing.ratios("a case", spent, {"theirs": "the same"})
    assert (row["ratio"], row["least"], row["most"], row["of_minima"]) == (3, 2, 10, 4)
    assert (row["theirs"], row["ours"], row["unit"], row["output"]) == (9000, 2000, "ms", "the same")
    assert timing.ratios("a case", spent, unit="MB")[0]["theirs"] == 9


def test_options_have_the_type_of_their_default(timing, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--write-docs", "size=32", "x.size=64", "y.steps=9", "run=a=b"])
    assert (timing.argument("size", 1), timing.argument("run", ""), timing.argument("steps", 5)) == (64, "a=b", 5)


def test_all_results_become_one_table_one_file_and_one_picture(script, timing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py", f"results={tmp_path}"])
    timing.finish("loading", timing.ratios("loading crops", {"Pillow": [30.0, 31.0], "ours": [1.0, 1.0]}))
    growth = {"over": "tiles", "sizes": [1, 9], "cpu_s": [1.0, 9.0], "s_for_one_more": 1.0, "fixed_s": 0.0, "r2": 1.0}
    timing.finish("growth", [], growth=[growth | {"last_step": 1.0}])
    names = script("run", "only=none")
    assert "loading crops" in capsys.readouterr().out
    joined = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    assert set(joined) == {"loading", "growth"}
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000

    page = tmp_path / "benchmarks.md"
    page.write_text(f"# Before\n{names['BEGIN']}\nold\n{names['END']}\nAfter\n", encoding="utf-8")
    monkeypatch.setitem(names["write_docs"].__globals__, "DOCS", tmp_path)
    names["write_docs"](joined)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Before\n")
    assert text.endswith(f"{names['END']}\nAfter\n")
    assert "old" not in text
    assert "| loading crops | Pillow | 30x | 30x | 30500 ms | 1000 ms |  |" in text
    assert "| tiles | 1 to 9 | 1000 ms | 0.00 s | 1.0000 | 1.00 |" in text
    assert (tmp_path / "images" / "benchmarks.png").is_file()


def test_a_benchmark_that_is_not_there_is_named(script):
    with pytest.raises(SystemExit, match=r"only=loadin: there is no such benchmark\. Did you mean 'loading'\?"):
        script("run", "only=loadin")


def test_without_a_gpu_its_benchmark_says_so(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"torch finds no GPU here"):
        script("gpu")


def test_the_benchmark_of_a_gpu_runs_in_small_on_the_cpu(script, tmp_path):
    script("gpu", "device=cpu", "size=tiny")
    found = json.loads((tmp_path / "gpu_tried.json").read_text(encoding="utf-8"))
    assert len(found["rates"]) == 6  # CycleGAN, HoVer-Net and the light network: a forward pass and a step
    assert all(rate["tflop"] > 0 and rate["share_of_ceiling"] > 0 for rate in found["rates"])
    assert len(found["rows"]) == 5  # of the light network there is no published step
    assert found["failed"] == {}
    assert found["prediction"]["tiles"] == 2
    assert "| lite step, 1 x 64 px, bf16-mixed |" in (tmp_path / "gpu_tried.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "expected the folder for the results first"),
        (["OUT", "sise=tiny"], "'sise=tiny': expected device=, size="),
        (["OUT", "seconds=1m"], "seconds=1m: expected a whole number"),
        (["OUT", "pack=nowhere"], "nowhere/data.zip is missing"),
    ],
)
def test_the_command_for_a_gpu_says_what_is_wrong_before_it_begins(tmp_path, options, said):
    command = ["bash", str(BENCHMARKS / "gpu_all.sh"), *(str(tmp_path / "out") if o == "OUT" else o for o in options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def annotated(tmp_path):
    """Return a folder with two tiles of each source of the shipped weights, and one that may not be used."""
    labels = np.zeros((64, 64), np.uint16)
    labels[8:20, 8:20] = 1
    for source, licences in {"he_nuclei": ["CC0-1.0", "CC-BY-4.0", "CC BY-NC-SA 4.0"], "consep": ["", ""]}.items():
        table = ["name,split,um_per_px,licence", *(f"{i},train,0.25,{licence}" for i, licence in enumerate(licences))]
        write_text(tmp_path / source / "tiles.csv", "\n".join(table))
        for i in range(len(licences)):
            write_png(tmp_path / source / "images" / f"{i}.png", np.full((64, 64, 3), 200, np.uint8))
            write_png(tmp_path / source / "instances" / f"{i}.png", labels)
            if source == "consep":
                write_png(tmp_path / source / "types" / f"{i}.png", labels)
    return tmp_path


def test_only_tiles_of_the_shipped_weights_are_packed(annotated, tmp_path, module):
    pack = module("gpu_pack").pack_data
    assert pack(annotated, tmp_path / "data.zip") == 4
    with ZipFile(tmp_path / "data.zip") as archive:
        archive.extractall(tmp_path / "packed")
        names = set(archive.namelist())
    roles = {"he_nuclei": ("images/{}.jpg", "instances/{}.png")}
    roles["consep"] = (*roles["he_nuclei"], "types/{}.png")
    files = {f"{source}/{file.format(i)}" for source, each in roles.items() for file in each for i in range(2)}
    assert names == files | {"consep/tiles.csv", "he_nuclei/tiles.csv"}
    assert abs(read_image(tmp_path / "packed" / "consep" / "images" / "0.jpg") - 200.0).max() <= 2
    assert pack(tmp_path / "packed", tmp_path / "again.zip") == 4  # what was packed can be trained on like the first


def test_what_cannot_be_packed_is_named(tmp_path, module):
    with pytest.raises(DataError, match=r"found no tiles; expected the folders he_nuclei, consep"):
        module("gpu_pack").pack_data(tmp_path, tmp_path / "data.zip")


def test_a_training_fills_the_time_that_it_is_given(module):
    train = module("gpu_train")
    assert train.steps_in(seconds=160, run_s=60, steps=100, step_s=0.1) == 100  # 100 + 0.9 * 100 / 0.1, in ten epochs
    assert train.steps_in(seconds=50, run_s=60, steps=100, step_s=0.1) == 10


def test_a_training_for_a_gpu_learns_faster_with_a_larger_batch(tmp_path, module):
    options = module("gpu_train").settings(tmp_path, tmp_path, batch=32, device="cpu")
    assert "model.optimizer.lr=0.003" in options  # twice that of a batch of 8
    assert "model.lr_encoder=0.001" in options
