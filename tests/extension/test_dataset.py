"""A dataset from outside the package: outlines of nuclei, by the command line and `--config-dir` alone."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from ihc2he.images.writing import write_png

SMALL = [
    "model/encoder=preact_small", "model.encoder.width=4", "model.width=4", "model.window=48", "model.overlap=16",
    "model.workers=0", "data.crop_size=32", "data.batch_size=1", "data.num_workers=0", "trainer=cpu",
    "trainer.log_every_n_steps=1", "callbacks.panels.n_images=1", "hydra.run.dir=run",
]  # fmt: skip


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def mine(tmp_path):
    """Return the folder of a user: the module, its YAML, and tiles of four patients."""
    mine = tmp_path / "mine"
    shutil.copytree(Path(__file__).parent / "dataset", mine, ignore=shutil.ignore_patterns("__pycache__"))
    (mine / "tiles").mkdir()
    for k in range(8):
        rng = np.random.default_rng(k)
        nuclei, image = [], np.full((64, 64, 3), 230, np.uint8)
        for x, y in ((15, 15), (48, 15), (15, 48), (48, 48)):
            name, axes = [("round", (6, 6)), ("long", (9, 4))][rng.integers(2)]
            outline = cv2.ellipse2Poly((x, y), axes, int(rng.integers(180)), 0, 360, 30)
            nuclei.append({"type": name, "outline": outline.tolist()})
            cv2.fillPoly(image, [outline], (90, 60, 140))
        write_png(mine / "tiles" / f"P{k // 2 + 1}_tile{k}.png", image)
        (mine / "tiles" / f"P{k // 2 + 1}_tile{k}.json").write_text(json.dumps(nuclei))
    return mine


def test_a_model_of_the_package_trains_on_it_and_is_judged(command, mine):
    done = command("--config-dir", "conf", "experiment=centres_outlines", *SMALL, cwd=mine)
    assert done.status == 0, done.err
    run = mine / "run"
    logged = {key for row in rows(run / "metrics.csv") for key, value in row.items() if value}
    assert {"train/loss", "val/bpq", "test/bpq"} <= logged
    assert {next(iter(row.values())) for row in rows(run / "results.csv")} == {"P4_tile6", "P4_tile7"}
    (index,) = mine.rglob("index.csv")
    assert [(row["tile"], int(row["nuclei"])) for row in rows(index)] == [
        (f"P{k // 2 + 1}_tile{k}", 4) for k in range(8)
    ]
    info = json.loads((run / "bundles" / "segmenter" / "config.json").read_text())
    assert (info["mpp"], info["classes"]) == (0.5, ["round", "long"])
    assert list((run / "images" / "test").glob("*.png"))


def test_a_typo_in_its_settings_is_named(command, mine):
    done = command("--config-dir", "conf", "experiment=centres_outlines", *SMALL, "+data.patient=1", cwd=mine)
    assert done.status == 2
    assert "OutlinesDataModule has no argument 'patient'. Did you mean 'patients'?" in done.err
    (mine / "tiles" / "P1_tile0.json").write_text('[{"type": "lang", "outline": [[1, 1], [5, 1], [5, 5]]}]')
    done = command("--config-dir", "conf", "experiment=centres_outlines", *SMALL, cwd=mine)
    assert done.status == 1
    assert "P1_tile0.json: type 'lang', expected one of ['round', 'long']." in done.err
