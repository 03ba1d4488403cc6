"""Whole runs through the command line, on simulated tissue."""

import csv

import pytest
import torch

from ihc2he.models.bundle import load_bundle
from ihc2he.models.segmentation.encoders import PreactResNet
from ihc2he.simulate import write_nuclei

TINY = [
    "trainer=cpu", "logger=csv", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1",
    "data.num_workers=0", "data.crop_size=64", "data.batch_size=2",
    "model/encoder=preact_small", "model.encoder.width=4", "model.width=32", "model.workers=0",
    "model.window=64", "model.overlap=16", "callbacks.panels.n_images=1",
]  # fmt: skip


@pytest.fixture
def run_of(cli, tmp_path):
    """Run a command line that has to succeed; return the folder of the run and the metrics of its test."""

    def run(*arguments):
        done = cli(*arguments)
        assert done.status == 0, done.err
        (folder,) = (tmp_path / "outputs").rglob("run.json")
        with (folder.parent / "test.csv").open() as stream:
            return folder.parent, {row["metric"] for row in csv.DictReader(stream)}

    return run


def test_the_smoke_run_leaves_everything_a_user_expects(run_of):
    run, metrics = run_of("experiment=smoke/hovernet_pannuke")
    for name in ("report.html", "results.csv", "metrics.csv", "checkpoints/last.ckpt", "images/val", "images/test"):
        assert (run / name).exists(), name
    assert {"bpq", "mpq", "pq/neoplastic", "f1", "f1/dead", "aji", "dice"} <= metrics
    assert "| mPQ | bPQ |" in (run / "train.log").read_text()
    _, info = load_bundle(run / "bundles" / "segmenter")
    assert info["classes"] == ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]


def test_own_tiles_without_types(run_of, tmp_path):
    write_nuclei(tmp_path / "mine", tiles=10, size=96, seed=0)
    arguments = ["data.root=mine", "data.mpp=0.25", "data.test_split=all"]
    _, metrics = run_of("experiment=hovernet_nuclei", *arguments, *TINY)
    assert {"bpq", "f1", "dice"} <= metrics
    assert "mpq" not in metrics


@pytest.mark.slow
def test_two_processes_train_in_two_phases_and_judge_as_one_does(command, tmp_path):
    torch.save(PreactResNet(4, [1, 1, 1, 1]).state_dict(), tmp_path / "encoder.tar")
    smoke = ["experiment=smoke/hovernet_pannuke", "data.simulate.tiles=21"]
    fitted = command(
        *smoke, "trainer=ddp_cpu", "trainer.max_epochs=3", "model.encoder.weights=encoder.tar", "hydra.run.dir=two"
    )
    assert fitted.status == 0, fitted.err
    assert "Epoch 1: the second phase" in fitted.out
    judged = command(*smoke, "stages=[test]", "ckpt_path=two/checkpoints/last.ckpt", "hydra.run.dir=one")
    again = command(
        *smoke, "trainer=ddp_cpu", "stages=[test]", "ckpt_path=two/checkpoints/last.ckpt", "hydra.run.dir=again"
    )
    assert judged.status == again.status == 0, judged.err + again.err
    for table in ("test.csv", "results.csv"):  # 7 tiles: the processes get unequal shares
        assert (tmp_path / "one" / table).read_text() == (tmp_path / "again" / table).read_text()
