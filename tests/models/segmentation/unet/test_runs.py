"""A whole run of the light network through the command line, on simulated tissue."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest

from ihc2he.loggers.lineage import hash_files
from ihc2he.models.bundle import save_bundle
from ihc2he.models.segmentation.loading import load_segmenter
from ihc2he.models.segmentation.networks import UNet
from ihc2he.simulate.endonuke import write_endonuke
from ihc2he.simulate.nuclei import write_nuclei


def test_the_smoke_run_leaves_a_small_bundle_of_averaged_weights(cli, tmp_path):
    done = cli("experiment=smoke/nuclei_lite")
    assert done.status == 0, done.err
    (run,) = (tmp_path / "outputs" / "smoke" / "nuclei_lite").iterdir()
    for name in ("report.html", "results.csv", "metrics.csv", "checkpoints/last.ckpt"):
        assert (run / name).exists(), name
    loaded = load_segmenter(str(run / "bundles" / "segmenter"))
    assert (loaded.mpp, loaded.classes[0], len(loaded.classes)) == (0.5, "neoplastic", 5)
    n = sum(value.numel() for value in loaded.network.state_dict().values())
    assert (run / "bundles" / "segmenter" / "model.safetensors").stat().st_size < 2.1 * n + 50_000
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_trained_network_goes_on_on_the_users_tiles_and_run_json_names_it(cli, tmp_path):
    inst = np.zeros((64, 64), np.uint16)
    for number, corner in enumerate((4, 24, 44), start=1):
        inst[corner : corner + 12, corner : corner + 12] = number
    for folder, pixels in (("images", np.where(inst[..., None] > 0, 60, 220).repeat(3, 2)), ("instances", inst)):
        (tmp_path / "nuclei" / folder).mkdir(parents=True)
        for k in range(4):
            cv2.imwrite(str(tmp_path / "nuclei" / folder / f"{k}.png"), pixels.astype(np.uint8))
    encoder = {
        "_target_": "ihc2he.models.segmentation.encoders.EfficientNetLite0", "weights": "imagenet", "plain": True,
    }  # fmt: skip
    network = UNet(encoder, {"mask": 1, "centre": 1, "types": 3}, width=4)
    node = {
        "_target_": "ihc2he.models.segmentation.networks.UNet", "encoder": encoder, "width": 4,
        "channels": network.channels,
    }  # fmt: skip
    info = {
        "module": node, "role": "segmenter", "classes": ["a", "b"], "mpp": 0.5,
        "decoder": {"_target_": "ihc2he.nuclei.decoders.centres.CentresDecoder"},
    }  # fmt: skip
    trained = save_bundle(network, tmp_path / "trained", info)
    small = (
        "experiment=nuclei_finetune", "model.init=trained", "data.root=nuclei", "data.mpp=0.5", "logger=csv",
        "data.crop_size=32", "data.batch_size=2", "data.num_workers=0", "data.samples_per_epoch=4", "trainer=cpu",
        "model.window=64", "model.overlap=16", "model.workers=0", "trainer.max_epochs=1", "callbacks.panels=null",
        "callbacks.worst=null",
    )  # fmt: skip
    wrong = cli(*small, "hydra.run.dir=wrong")
    assert wrong.status == 2
    assert "model.init=trained: holds a UNet on EfficientNetLite0 with a CentresDecoder" in wrong.err
    assert "Pass model.width=4." in wrong.err
    assert "Traceback" not in wrong.err
    done = cli(*small, "model.width=4", "hydra.run.dir=run")
    assert done.status == 0, done.err
    assert "Starting from trained. Its types (a, b) are left out." in done.out + done.err
    entry = {"kind": "bundle", "path": str(trained), "made_by": None}
    entry["hash"] = hash_files(trained / "config.json", trained / "model.safetensors")
    assert entry in json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]
    shutil.rmtree(trained)
    again = cli(*small, "model.width=4", "hydra.run.dir=run", "ckpt_path=auto", "stages=[test]")
    assert again.status == 0, again.err


@pytest.fixture
def slides(tmp_path):
    """Simulated H&E with labels, and IHC whose labels are not there."""
    write_nuclei(tmp_path / "he", tiles=15, size=128)
    write_endonuke(tmp_path / "slides", tiles=2, size=200)
    (tmp_path / "slides" / "dataset" / "images").rename(tmp_path / "ihc")
    return "data.ihc=ihc", "data.ihc_mpp=0.5", "data.root=he", "stages=[fit]"


@pytest.mark.slow
def test_the_weights_in_the_box_adapt_to_ihc_and_a_drift_ends_without_a_bundle(cli, tmp_path, slides):
    done = cli("experiment=smoke/nuclei_adapt", *slides, "hydra.run.dir=good")
    assert done.status == 0, done.err
    with (tmp_path / "good" / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["val/agreement"]) > 0.9 for row in rows if row["val/agreement"]] == [True, True]
    assert any(row["train/loss_unlabelled_centre"] for row in rows)
    info = json.loads((tmp_path / "good" / "bundles" / "segmenter" / "config.json").read_text())
    assert info["terms"] == {"unlabelled": 1.0}

    drifts = cli(
        "experiment=smoke/nuclei_adapt", *slides, "hydra.run.dir=bad", "model.optimizer.lr=1", "model.lr_encoder=1",
        "callbacks.average=null",
    )  # fmt: skip
    assert drifts.status == 1
    (line,) = [line for line in drifts.err.splitlines() if line.startswith("ihc2he: ")]
    assert line.startswith("ihc2he: The network has drifted by step 2: on 2 tiles of data.ihc it finds")
    assert "Traceback" not in drifts.err
    assert not (tmp_path / "bad" / "bundles").exists()
    assert json.loads((tmp_path / "bad" / "run.json").read_text())["status"].startswith("DriftError: ")


@pytest.mark.slow
def test_two_processes_adapt_too_and_judge_alike(command, tmp_path, slides):
    smoke = ("experiment=smoke/nuclei_adapt", *slides, "data.samples_per_epoch=8")
    done = command(*smoke, "trainer=ddp_cpu", "hydra.run.dir=two")
    assert done.status == 0, done.err
    assert load_segmenter(str(tmp_path / "two" / "bundles" / "segmenter")).mpp == 0.5
    wild = ("model.optimizer.lr=1", "model.lr_encoder=1", "callbacks.average=null")
    drifts = command(*smoke, "trainer=ddp_cpu", "hydra.run.dir=bad", *wild)
    assert drifts.status == 1
    assert "The network has drifted by step 2" in drifts.err
    assert not (tmp_path / "bad" / "bundles").exists()
