import csv
import logging
import math
from types import SimpleNamespace

import pytest
import torch

from ihc2he.callbacks.checkpoint import BestCheckpoint
from ihc2he.callbacks.results import Results, table, weights_in_use

CARDS = {
    "he/psnr": SimpleNamespace(better="higher", protocol="whole tile"),
    "he/dab_ratio": SimpleNamespace(better="lower", protocol="mean"),
    "he/fid": SimpleNamespace(better="lower", protocol="Inception"),
}


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_both_tables_of_a_test(toy, tiles, trainer, tmp_path):
    runner, module = trainer(Results(str(tmp_path / "run"))), toy()
    for _ in range(2):  # the second test starts afresh
        runner.test(module, tiles, verbose=False)
    assert read(tmp_path / "run" / "results.csv") == [
        {"name": "a/1.png", "group": "3+", "he/psnr": "22.0"},
        {"name": "a/2.png", "group": "3+", "he/psnr": "22.0"},
        {"name": "a/3.png", "group": "3+", "he/psnr": "22.0"},
        {"name": "b/1.png", "group": "", "he/psnr": "20.0"},
    ]
    shared = {
        "metric": "he/psnr",
        "better": "higher",
        "protocol": "whole tile",
        "checkpoint": "",
        "epoch": "",
        "step": "",
    }
    lines = read(tmp_path / "run" / "test.csv")
    assert all(f"torch={torch.__version__.split('+')[0]}" in line.pop("versions") for line in lines)
    assert lines == [
        shared | {"group": "", "value": "21.5", "n": "4"},
        shared | {"group": "3+", "value": "22.0", "n": "3"},
    ]


def test_tables_of_the_module_lie_beside_them_and_empty_ones_do_not(toy, tiles, trainer, tmp_path):
    class Tabled(toy):
        tables = {"radius.csv": [{"method": "a+b", "f1": 0.5}], "agreement.csv": []}  # noqa: RUF012

    trainer(Results(str(tmp_path / "run"))).test(Tabled(), tiles, verbose=False)
    assert read(tmp_path / "run" / "radius.csv") == [{"method": "a+b", "f1": "0.5"}]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["radius.csv", "results.csv", "test.csv"]


def test_a_test_of_other_weights_leaves_the_tables_of_the_former(toy, tiles, trainer, tmp_path, caplog):
    class Tabled(toy):
        tables = {"radius.csv": [{"method": "a+b"}], "agreement.csv": []}  # noqa: RUF012

    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    keeper = BestCheckpoint(str(run / "checkpoints"), "val/score", "max", save_top_k=2)
    runner, module = trainer(Results(str(run)), keeper, max_epochs=2), Tabled(scores=(0.75, 0.5))
    runner.fit(module, tiles)
    best, other = (str(run / "checkpoints" / f"best_epoch00{i}.ckpt") for i in (0, 1))

    def test(checkpoint):
        runner.test(module, tiles, ckpt_path=checkpoint, verbose=False)
        (found,) = {tuple(row[key] for key in ("checkpoint", "epoch", "step")) for row in read(run / "test.csv")}
        return found, sorted(path.name for path in run.glob("*.csv"))

    mine = ["radius.csv", "results.csv", "test.csv"]
    first = ["radius_best_epoch000_step2.csv", "results_best_epoch000_step2.csv", "test_best_epoch000_step2.csv"]
    for _ in range(2):
        assert test(best) == (("checkpoints/best_epoch000.ckpt", "0", "2"), mine)
    assert "other weights" not in caplog.text
    assert test(other) == (("checkpoints/best_epoch001.ckpt", "1", "4"), sorted(mine + first))
    assert read(run / "test_best_epoch000_step2.csv")[0]["checkpoint"] == "checkpoints/best_epoch000.ckpt"
    assert "its tables are now results_best_epoch000_step2.csv, radius_best_epoch000_step2.csv, test_" in caplog.text
    assert test(None)[0] == ("end_of_fit", "1", "4")
    (run / "test.csv").write_text("metric,group,value\nhe/psnr,,1.0\n")  # of an earlier version
    test(best)
    assert read(run / "test_former.csv") == [{"metric": "he/psnr", "group": "", "value": "1.0"}]


def test_a_checkpoint_of_another_folder_has_its_whole_path(trainer, tmp_path):
    torch.save({"epoch": 3, "global_step": 40}, tmp_path / "a.ckpt")
    found = weights_in_use(trainer(), str(tmp_path / "a.ckpt"), tmp_path / "run")
    assert found == {"checkpoint": str(tmp_path / "a.ckpt"), "epoch": 3, "step": 40}


def test_n_counts_the_images_behind_each_value():
    rows = [
        {"name": "1", "group": "0", "he/psnr": 20.0, "he/dab_ratio": math.nan},
        {"name": "2", "group": "3+", "he/psnr": 22.0, "he/dab_ratio": 0.5},
        {"name": "3", "group": "3+", "he/psnr": 24.0, "he/dab_ratio": math.nan},
    ]
    values = {
        "test/he/psnr": 22.0, "test/he/psnr/3+": 23.0, "test/he/dab_ratio": 0.5, "test/he/dab_ratio/3+": 0.5,
        "test/he/dab_ratio/0": math.nan, "test/he/fid": 40.0, "val/he/psnr": 1.0, "train/loss": 2.0,
    }  # fmt: skip
    found = {(line["metric"], line["group"]): line["n"] for line in table(values, rows, CARDS)}
    assert found == {
        ("he/psnr", ""): 3, ("he/psnr", "3+"): 2, ("he/dab_ratio", ""): 1, ("he/dab_ratio", "3+"): 1,
        ("he/dab_ratio", "0"): 0,  # not defined for any of its images
        ("he/fid", ""): 3,  # of the set as a whole
    }  # fmt: skip


@pytest.mark.parametrize("key", ["unknown", "a/b/c"])
def test_a_value_without_a_card_keeps_its_whole_name(key):
    (line,) = table({f"test/{key}": 1.0}, [], CARDS)
    assert line.pop("versions").startswith("ihc2he=")
    assert line == {"metric": key, "group": "", "value": 1.0, "n": 0, "better": "", "protocol": ""}
