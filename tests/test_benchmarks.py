"""The helpers of the benchmarks, and the script for a GPU as far as it runs without one."""

import importlib
import json
import logging
import runpy
import sys
from pathlib import Path

import pytest
import torch

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
def timing(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("timing")


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
    assert (tmp_path / "img" / "benchmarks.png").is_file()


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
    assert len(found["rates"]) == 2  # CycleGAN and HoVer-Net
    assert all(rate["tflop_per_step"] > 0 and rate["share_of_ceiling"] > 0 for rate in found["rates"])
    assert len(found["rows"]) == 4  # their steps, and a forward pass of each
    assert found["prediction"]["tiles"] == 2
