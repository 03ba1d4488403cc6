import math
from types import SimpleNamespace

import numpy as np
import pytest

from ihc2he.callbacks.checkpoint import BestCheckpoint
from ihc2he.callbacks.panels import ImagePanels
from ihc2he.callbacks.results import Results
from ihc2he.callbacks.summaries import Summaries
from ihc2he.images.writing import write_png
from ihc2he.loggers.base import Csv, Wandb
from ihc2he.models.task import Ranking


def test_a_training_shows_its_best_values_size_and_duration(toy, tiles, trainer, tmp_path, offline_runs):
    keeper = BestCheckpoint(str(tmp_path / "checkpoints"), "val/score", "max")
    run = trainer(keeper, Summaries(), logger=Wandb(str(tmp_path)))
    run.fit(toy(scores=(0.5, 0.75, 0.25)), tiles)
    (found,) = offline_runs()
    shown = found.summary
    assert shown["val/score"] == {"max": 0.75}  # not 0.25, the last
    assert {key: shown[key] for key in ("best/val/score", "best/epoch", "parameters", "device", "world_size")} == {
        "best/val/score": 0.75,
        "best/epoch": 1,
        "parameters": 3,
        "device": "cpu",
        "world_size": 1,
    }
    assert 0 < shown["seconds/fit"] < 60
    assert "seconds/test" not in shown


def test_the_best_of_a_metric_is_that_of_its_card(toy, tiles, trainer, tmp_path, offline_runs):
    class Scored(toy):
        def validation_step(self, batch, batch_idx):
            epoch = self.current_epoch
            psnr = {"val/he/psnr": (20.0, 22.0, 22.0)[epoch], "val/he/psnr/3+": (19.0, math.nan, 18.0)[epoch]}
            self.log_dict(
                psnr | {"val/other": 3.0 + epoch, "val/bias": epoch - 1.0, "val/own": 3.0 + epoch}, batch_size=1
            )

    module = Scored()
    module.known |= {"other": SimpleNamespace(better="lower"), "bias": SimpleNamespace(better="closest to 0")}
    trainer(Summaries(), logger=Wandb(str(tmp_path))).fit(module, tiles)
    (found,) = offline_runs()
    shown = {key: value for key, value in found.summary.items() if key.startswith("val/")}
    expected = {"val/he/psnr": {"max": 22.0}, "val/he/psnr/3+": {"max": 19.0}, "val/other": {"min": 3.0}}
    # The best value of a bias is none of the extremes, and of the last nobody knows a direction.
    assert shown == {**expected, "val/bias": 1.0, "val/own": 5.0}


def test_a_test_shows_its_values_and_its_worst_tiles(toy, tiles, trainer, tmp_path, offline_runs):
    """The toy gives psnr 20 to `b/1.png` and 22 to the others."""
    callbacks = [Summaries(n_worst=3), Results(str(tmp_path)), ImagePanels(str(tmp_path / "images"), n_images=2)]
    trainer(*callbacks, logger=Wandb(str(tmp_path))).test(toy(), tiles)
    (found,) = offline_runs()
    assert (found.summary["test/he/psnr"], found.summary["test/he/psnr/3+"]) == (21.5, 22.0)
    assert found.summary["seconds/test"] > 0
    table = found.tables["worst_tiles"]
    assert table["columns"] == ["picture", "name", "group", "he/psnr"]
    assert [row[1:] for row in table["data"]] == [
        ["b/1.png", None, 20.0],
        ["a/1.png", "3+", 22.0],
        ["a/2.png", "3+", 22.0],
    ]
    assert [row[0] and row[0]["_type"] for row in table["data"]] == ["image-file", "image-file", None]


def test_a_pipeline_shows_the_tiles_that_its_pages_rank_worst(toy, tiles, trainer, tmp_path, offline_runs):
    class Compared(toy):
        ranking = Ranking("f1", "higher", "cyclegan+classical")

        def test_step(self, batch, batch_idx):
            rows = [
                {"name": name, "group": method, "f1": value, "n_true": 7, "block": block, "lost": lost}
                for value, name, block, lost in (
                    (0.5, "1", "7", ""),
                    (0.25, "x/2", "case", 1.5),
                    (math.nan, "3", "8", 2.5),
                )  # names and blocks may look like numbers, and numbers may be missing
                for method, value in (("none+classical", 0.0), ("cyclegan+classical", value))
            ]
            return {"rows": rows if batch_idx == 0 else []}

    write_png(tmp_path / "images" / "worst" / "01_x_2.png", np.zeros((30, 900, 3), np.uint8))
    trainer(Results(str(tmp_path)), Summaries(), logger=Wandb(str(tmp_path))).test(Compared(), tiles)
    (found,) = offline_runs()
    data = found.tables["worst_tiles"]["data"]
    assert [row[1:] for row in data] == [
        ["x/2", "cyclegan+classical", 0.25, 7, "case", 1.5],
        ["1", "cyclegan+classical", 0.5, 7, "7", None],
    ]
    assert (data[0][0]["width"], data[0][0]["height"], data[1][0]) == (640, 21, None)


def test_without_wandb_nothing_happens(toy, tiles, trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.init", lambda **options: pytest.fail("W&B was called"))
    run = trainer(Results(str(tmp_path)), Summaries(), logger=Csv(str(tmp_path)))
    run.fit(toy(scores=(0.5,)), tiles)
    run.test(toy(), tiles)
    assert "parameters" not in (tmp_path / "metrics.csv").read_text()
