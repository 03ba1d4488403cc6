import csv
import math
from types import SimpleNamespace

import pytest
import torch

from ihc2he.callbacks.results import Results, table

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
    shared = {"metric": "he/psnr", "better": "higher", "protocol": "whole tile"}
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
