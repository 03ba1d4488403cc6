import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ihc2he.callbacks.checkpoint import BestCheckpoint
from ihc2he.callbacks.panels import panel
from ihc2he.callbacks.worst import WorstPanels, worst

NAMES = ("a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png")
VALUES = {"a/1.png": 0.5, "a/2.png": 0.25, "b/1.png": 0.75, "b/2.png": float("nan"), "b/3.png": 0.125}


@pytest.fixture
def scored(toy, tiles):
    """A module that judges tiles one batch late, as one does whose nuclei are found by workers; and its tiles."""

    class Scored(toy):
        late = ()

        def test_step(self, batch, batch_idx):
            names, self.late = [*self.late], batch["name"]
            if batch_idx == 2:
                names += self.late
            return {"rows": [{"name": name, "group": "", "score": VALUES[name]} for name in names]}

    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = [{"ihc": image, "name": name} for image, name in zip(images, NAMES, strict=True)]
    tiles.test_dataloader = lambda: DataLoader(rows, batch_size=2)
    return Scored(), tiles, dict(zip(NAMES, images, strict=True))


@pytest.mark.parametrize(("mode", "expected"), [("max", ["b/3.png", "a/2.png"]), ("min", ["b/1.png", "a/1.png"])])
def test_the_worst_tiles_of_a_test_are_drawn(scored, trainer, tmp_path, mode, expected):
    module, tiles, images = scored
    (tmp_path / "worst").mkdir()
    (tmp_path / "worst" / "01_old.png").write_bytes(b"")
    keeper = BestCheckpoint(str(tmp_path / "checkpoints"), "val/score", mode)
    trainer(WorstPanels(str(tmp_path), n_tiles=2), keeper).test(module, tiles)
    files = sorted((tmp_path / "worst").iterdir())
    plain = [name.removesuffix(".png").replace("/", "_") for name in expected]
    assert [file.name for file in files] == [f"{i}_{name}.png" for i, name in zip(("01", "02"), plain, strict=True)]
    for file, name in zip(files, expected, strict=True):
        shown = panel([("IHC", images[name]), ("made H&E", -images[name])])
        assert np.array_equal(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB), shown)


def test_where_nothing_was_judged_nothing_is_drawn(scored, trainer, tmp_path):
    module, tiles, _ = scored
    module.test_step = lambda batch, batch_idx: {"rows": []}
    trainer(WorstPanels(str(tmp_path))).test(module, tiles)
    assert not (tmp_path / "worst").exists()


def test_without_a_metric_that_chooses_checkpoints_the_first_card_ranks(toy, tiles, trainer, tmp_path):
    """The toy gives psnr 20 to `b/1.png` and 22 to the others."""
    trainer(WorstPanels(str(tmp_path), n_tiles=1)).test(toy(), tiles)
    assert [file.name for file in (tmp_path / "worst").iterdir()] == ["01_b_1.png"]


@pytest.mark.parametrize(
    ("better", "expected"),
    [("higher", ["c", "a", "b"]), ("lower", ["d", "a", "b"]), ("closest to 0.6", ["c", "d", "a"])],
)
def test_worst_depends_on_the_direction_and_ties_on_the_name(better, expected):
    values = {"b": "0.5", "a": "0.5", "c": "0.25", "d": "0.75", "e": "nan", "f": "", "g": "inf"}
    rows = [{"name": name, "x": value} for name, value in values.items()]
    assert [row["name"] for row in worst(rows, "x", better, 3)] == expected
