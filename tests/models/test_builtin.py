"""The weights in the box: what ships, and that they find nuclei on IHC with nothing else given."""

import csv

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from ihc2he import config
from ihc2he.images.labels import read_labels
from ihc2he.loggers.lineage import inputs
from ihc2he.models.bundle import load_bundle
from ihc2he.simulate.endonuke import write_endonuke
from ihc2he.weights import BUILTIN

MB = 2**20
QUIET = ["data.num_workers=0", "model.workers=0", "trainer=cpu", "logger=csv"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return write_endonuke(tmp_path_factory.mktemp("sim") / "endonuke", tiles=3)


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_they_are_small_and_say_where_they_come_from():
    assert sum(path.stat().st_size for path in BUILTIN.parent.rglob("*") if path.is_file()) < 25 * MB
    card = (BUILTIN / "README.md").read_text(encoding="utf-8")
    for part in ("CoNSeP", "Apache-2.0", "CC BY 4.0", "CC0", "Graham", "Limits"):
        assert part in card


def test_their_types_have_classes_of_endonuke():
    network, info = load_bundle("builtin")
    assert not network.training
    assert (info["mpp"], info["classes"]) == (0.5, ["epithelial", "inflammatory", "spindle", "miscellaneous"])


@pytest.mark.parametrize("experiment", ["nuclei_finetune", "nuclei_adapt"])
def test_what_goes_on_from_them_begins_with_their_thresholds(experiment):
    config.register()
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        model = compose("train", overrides=[f"experiment={experiment}"]).model
    assert model.init == "builtin"
    assert model.decoder == load_bundle("builtin")[1]["decoder"]


def test_a_run_notes_which_weights_it_used(tmp_path):
    model = {"use": {"segmenters": ["centres"]}, "segmenters": {"centres": {"weights": "builtin"}}}
    (found,) = inputs({"model": model, "paths": {"output_dir": str(tmp_path)}}, None)
    assert (found["kind"], found["path"]) == ("bundle", str(BUILTIN))


def test_a_prediction_needs_nothing_but_images_and_their_pixel_size(cli, tmp_path, simulated):
    images = simulated / "dataset" / "images"
    done = cli("experiment=predict_tiles", f"data.path={images}", "data.mpp=0.5", "out=out", *QUIET)
    assert done.status == 0, done.err
    for name in ("0", "1", "2"):
        found = rows(tmp_path / "out" / "nuclei" / f"{name}.csv")
        assert {row["type"] for row in found} <= {*load_bundle("builtin")[1]["classes"], "unknown"}
        instances = read_labels(tmp_path / "out" / "instances" / f"{name}.png")
        assert len(np.unique(instances)) - 1 == len(found) > 5


def test_without_images_it_says_what_to_pass(cli):
    done = cli("experiment=predict_tiles")
    assert done.status == 2
    assert "data.path=None: expected an image, a folder of images, or a glob" in done.err


def test_they_find_simulated_nuclei_on_ihc(cli, tmp_path, simulated):
    use = "model.use={translators: [none], segmenters: [centres]}"
    judged = cli(
        "experiment=pipeline_endonuke",
        f"data.root={simulated}",
        use,
        "callbacks.pages=null",
        "hydra.run.dir=run",
        *QUIET,
    )
    assert judged.status == 0, judged.err
    (f1,) = [float(row["value"]) for row in rows(tmp_path / "run" / "comparison.csv") if row["metric"] == "f1"]
    assert f1 > 0.7
