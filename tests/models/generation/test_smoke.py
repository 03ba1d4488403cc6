"""Each GAN by the command line: from simulated tissue to a bundle, and from it to synthetic tiles to train on."""

import csv
import json

import pytest


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("dcgan", set()),
        pytest.param("acgan", {"d_level", "g_level"}, marks=pytest.mark.slow),
        pytest.param("wgan_gp", {"penalty"}, marks=pytest.mark.slow),
        pytest.param("sngan", set(), marks=pytest.mark.slow),
    ],
)
def test_it_trains_is_judged_and_makes_tiles_to_train_on(cli, tmp_path, name, terms):
    done = cli("experiment=smoke/gan_her2", f"model/gan={name}", "hydra.run.dir=run")
    assert done.status == 0, done.err
    run = tmp_path / "run"
    logged = {key for row in rows(run / "metrics.csv") for key, value in row.items() if value}
    assert {key.removeprefix("train/loss_") for key in logged if "train/loss_" in key} >= terms | {"g", "d"}
    for stage in ("val", "test"):
        assert {f"{stage}/kid", f"{stage}/coverage", f"{stage}/nearest/psnr", f"{stage}/memorised"} <= logged
        shown = {path.name.partition("_")[2] for path in (run / "images" / stage).glob("*.png")}
        assert {"samples.png", "interpolations.png"} <= shown
    better = {row["metric"]: row["better"] for row in rows(run / "test.csv")}
    assert (better["kid"], better["coverage"], better["train_ratio"]) == ("lower", "higher", "closest to 1")
    assert json.loads((run / "bundles" / "generator" / "config.json").read_text())["classes"] == ["0", "1+", "2+", "3+"]

    weights = f"model.weights={run / 'bundles' / 'generator'}"
    done = cli("experiment=gan_tiles", weights, "data.count=8", "out=tiles", "trainer=cpu")
    assert done.status == 0, done.err
    assert len(rows(tmp_path / "tiles" / "manifest.csv")) == len([*(tmp_path / "tiles").glob("*/*.png")]) == 8
    assert len(rows(tmp_path / "tiles" / "trained_on.csv")) > 0
    if name == "dcgan":  # the fast one
        return
    done = cli(
        "experiment=smoke/gan_her2", "data.real_share=0", "data.synthetic=tiles", "data.synthetic_share=0.5",
        "stages=[fit]", "model.n_epochs=1", "hydra.run.dir=again",
    )  # fmt: skip
    assert done.status == 0, done.err
