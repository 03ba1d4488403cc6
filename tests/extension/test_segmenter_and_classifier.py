"""From outside the package, by the command line and `--config-dir` alone: star-convex nuclei, and grades of tiles."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ihc2he.images.writing import write_png
from ihc2he.tiling.augmentation import VIEWS, turned

HERE = Path(__file__).parent


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def mine(tmp_path):
    """Return `mine(name)`, the folder of a user."""

    def copy(name):
        shutil.copytree(HERE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        return tmp_path / name

    return copy


def test_another_segmenter_trains_is_judged_and_finds_nuclei_in_the_pipeline(command, mine, monkeypatch):
    folder = mine("stars")
    small = [
        "data=pannuke_sim", "data.simulate={tiles: 6, size: 64, seed: 0}", "data.crop_size=48", "data.batch_size=2",
        "data.num_workers=0", "data.eval_batch_size=2", "trainer=cpu", "trainer.log_every_n_steps=1",
        "hydra.run.dir=run",
    ]  # fmt: skip
    done = command("--config-dir", "conf", "experiment=stars_pannuke", *small, cwd=folder)
    assert done.status == 0, done.err
    logged = {key for row in rows(folder / "run" / "metrics.csv") for key, value in row.items() if value}
    assert {"train/loss_nucleus", "train/loss_rays", "val/bpq", "test/bpq"} <= logged
    assert len(rows(folder / "run" / "results.csv")) == 2
    assert list((folder / "run" / "images" / "test").glob("*.png"))
    bundle = folder / "run" / "bundles" / "segmenter"
    info = json.loads((bundle / "config.json").read_text())
    assert info["decoder"] == {"_target_": "stars.StarDecoder", "reach_um": 8.0}

    write_png(folder / "tile.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    node = f"{{_target_: ihc2he.models.pipeline.segmenters.Learned, weights: {bundle}, name: stars}}"
    predict = [
        "experiment=predict_tiles", "data.path=tile.png", "data.mpp=0.25", "data.num_workers=0", "trainer=cpu",
        "model.use.translators=[none]", f"+model.segmenters.stars={node}", "model.use.segmenters=[stars]",
        "model.workers=1", "out=found", "hydra.run.dir=predicted",
    ]  # fmt: skip
    done = command(*predict, cwd=folder)
    assert done.status == 1
    assert "IHC2HE_TRUSTED=stars" in done.err  # a bundle alone may not choose what is imported
    monkeypatch.setenv("IHC2HE_TRUSTED", "stars")
    done = command(*predict, cwd=folder)
    assert done.status == 0, done.err
    assert list((folder / "found").rglob("*.geojson"))


def test_the_decoder_of_stars_keeps_the_contract(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "stars"))
    from stars import StarDecoder

    decoder = StarDecoder()
    inst = np.zeros((40, 52), np.int32)
    inst[8:21, 6:17], inst[20:32, 25:42] = 1, 2

    def maps_of(inst_hw):
        rays = decoder.targets(inst_hw, 0.25)["rays"]
        return torch.from_numpy(np.concatenate([(inst_hw > 0).astype(np.float32)[None], rays]))[None]

    for view in VIEWS:
        seen = turned(torch.from_numpy(inst)[None, None], view)[0, 0].numpy()
        assert torch.equal(decoder.turned_back(maps_of(np.ascontiguousarray(seen)), view), maps_of(inst))
    found = decoder.find(maps_of(inst)[0].numpy(), 0.25)
    assert found.nuclei.inst_hw.max() == 2


def test_a_classifier_of_tiles_trains_and_is_judged(command, mine):
    folder = mine("grader")
    rng = np.random.default_rng(0)
    (folder / "tiles").mkdir()
    lines = ["name,split,grade"]
    for i in range(12):
        grade = ("low", "high")[i % 2]
        tile = rng.integers(0, 100, (24, 24, 3)) + (120 if grade == "high" else 0)
        write_png(folder / "tiles" / f"{i}.png", tile.astype(np.uint8))
        lines.append(f"{i}.png,{'test' if i >= 8 else 'train'},{grade}")
    (folder / "tiles" / "labels.csv").write_text("\n".join(lines) + "\n")
    done = command("--config-dir", "conf", "experiment=grader", "trainer=cpu", "hydra.run.dir=run", cwd=folder)
    assert done.status == 0, done.err
    assert [row["name"] for row in rows(folder / "run" / "results.csv")] == [f"{i}.png" for i in (10, 11, 8, 9)]
    (accuracy,) = (row for row in rows(folder / "run" / "test.csv") if row["metric"] == "accuracy")
    assert (accuracy["better"], accuracy["n"]) == ("higher", "4")
    info = json.loads((folder / "run" / "bundles" / "grader" / "config.json").read_text())
    assert (info["role"], info["classes"], info["mpp"]) == ("classifier", ["low", "high"], 0.5)
