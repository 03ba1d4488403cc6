"""The classifier by the command line: training, test, and grades of images."""

import csv

import pytest

from ihc2he.images.decoding import read_image
from ihc2he.images.writing import write_png


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_a_classifier_trains_and_grades_tiles(cli, tmp_path):
    done = cli("experiment=smoke/classifier_her2", "hydra.run.dir=run")
    assert done.status == 0, done.err
    run = tmp_path / "run"
    metrics = {row["metric"] for row in rows(run / "test.csv")}
    assert {"balanced_accuracy", "accuracy", "kappa", "auroc", "ece", "recall", "loss"} <= metrics
    assert all(row["better"] and row["protocol"] for row in rows(run / "test.csv"))
    assert {(row["unit"], row["units"]) for row in rows(run / "intervals.csv")} == {("case", "4")}
    assert len(rows(run / "results.csv")) == 8
    assert {path.name for path in (run / "images").glob("*.png")} == {"confusion.png", "reliability.png"}
    assert len([*(run / "images" / "test").iterdir()]) == len([*(run / "images" / "worst").iterdir()]) == 2

    for file in sorted((tmp_path / "data" / "her2_sim").glob("*/IHC/test/*.png"))[:2]:
        write_png(tmp_path / "tiles" / file.name, read_image(file))
    grade = [
        "experiment=grade_tiles", f"model.init={run / 'bundles' / 'classifier'}", "data.path=tiles", "data.mpp=0.46",
        "data.num_workers=0", "trainer=cpu", "out=graded", "hydra.run.dir=graded_run",
    ]  # fmt: skip
    done = cli(*grade)
    assert done.status == 0, done.err
    tested = {row["name"].removesuffix(".png"): row for row in rows(run / "results.csv")}
    graded = rows(tmp_path / "graded" / "levels.csv")
    assert len(graded) == 2
    for row in graded:
        assert row["level"] == max(("0", "1+", "2+", "3+"), key=lambda level: float(row[f"p {level}"]))
        if row["name"] in tested:
            assert row["level"] == tested[row["name"]]["found"]
