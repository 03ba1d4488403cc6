"""The examples of CONTRIBUTING work: its files are taken from the page, and one command trains with them."""

import csv
import doctest
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
SMALL = [
    "model/encoder@model.network.encoder=preact_small", "model.network.encoder.width=4", "model.network.width=4",
    "+model.window=48", "+model.overlap=16", "+model.workers=0", "+data.crop_size=32", "+data.batch_size=2",
    "+data.num_workers=0", "trainer=cpu", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
    "callbacks.panels.n_images=1", "hydra.run.dir=run",
]  # fmt: skip


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Write the files of the page, and archives of four cases."""
    blocks = re.findall(r"^```(?:python|yaml)\n# (lab/\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for path, text in blocks:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "archives").mkdir()
    inst_hw = np.zeros((48, 48), np.int32)
    inst_hw[6:18, 6:18], inst_hw[28:40, 24:40] = 1, 2
    image = np.where(inst_hw[..., None] > 0, (90, 60, 140), (230, 220, 230)).astype(np.uint8)
    for case in range(1, 5):
        np.savez(tmp_path / "archives" / f"c{case}_0.npz", image=image, inst=inst_hw)
        np.savez(tmp_path / "archives" / f"c{case}_1.npz", image=image, inst=inst_hw)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        del sys.modules[name]


def test_one_command_trains_with_all_examples(lab, cli):
    done = cli("--config-dir", "lab/conf", "experiment=pieces_archives", *SMALL)
    assert done.status == 0, done.err
    with (lab / "run" / "test.csv").open(newline="") as stream:
        metrics = {row["metric"]: row for row in csv.DictReader(stream)}
    assert {"f1", "bpq", "area_ratio"} <= set(metrics)
    assert metrics["area_ratio"]["better"] == "closest to 1"
    with (lab / "run" / "results.csv").open(newline="") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["c4_0", "c4_1"]
    assert (lab / "run" / "bundles" / "segmenter" / "config.json").is_file()


def test_the_decoder_finds_and_the_metric_counts(lab):
    pieces, area = importlib.import_module("lab.pieces"), importlib.import_module("lab.area")
    maps_khw = np.zeros((1, 9, 9), np.float32)
    maps_khw[0, 1:4, 1:3], maps_khw[0, 6:8, 5:8] = 0.9, 0.7
    found = pieces.PiecesDecoder().find(maps_khw, 0.5)
    assert found.centres_n2.tolist() == [[1.5, 2.0], [6.0, 6.5]]
    assert found.scores_n.tolist() == pytest.approx([0.9, 0.7])
    assert doctest.testmod(area).attempted == 1
    assert doctest.testmod(area).failed == 0
    ratio = area.AreaRatio()
    ratio.update(4, 6)
    ratio.update(4, 2)
    assert ratio.compute() == 1
