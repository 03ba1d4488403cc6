import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
from filelock import FileLock
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from ihc2he.callbacks import imagefiles, predictions
from ihc2he.callbacks.imagefiles import OVERLAY_PX, ImageFiles
from ihc2he.callbacks.predictions import PredictionWriter
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.writing import write_instances
from ihc2he.models.pipeline.assembly import TileNuclei
from ihc2he.models.pipeline.prediction import Prediction

CLASSES = ["epithelium", "stroma"]


def tile_nuclei(side):
    """Return three nuclei: a brown one, a blue one and one of unknown type."""
    inst_hw = np.zeros((side, side), np.int32)
    inst_hw[2:8, 2:8], inst_hw[2:8, 12:18], inst_hw[12:18, 2:8] = 1, 2, 3
    return TileNuclei(
        inst_hw=inst_hw,
        types_n=np.array([1, 2, 0]),
        shares_n=np.array([0.75, 1, 0], np.float32),
        scores_n=np.array([0.9, 0.8, 0.7], np.float32),
        agreement_n=np.array([1, 0.5, 0.25], np.float32),
        centres_n2=np.array([[4.5, 4.5], [14.5, 4.5], [4.5, 14.5]]),
    )


def predicted(name, path, side=20, **changes):
    image = np.full((side, side, 3), 240, np.uint8)
    image[2:8, 2:8] = (100, 50, 20)
    whole = {
        "name": name, "path": str(path), "error": None, "image": image, "he": 255 - image,
        "nuclei": tile_nuclei(side), "mpp": 0.5, "classes": CLASSES, "white": (255.0, 255.0, 255.0), "ink_share": 0.0,
    }  # fmt: skip
    return Prediction(**(whole | changes))


class Finder(LightningModule):
    """Finds the same three nuclei on each tile, and hands out a tile's prediction one batch late."""

    fingerprint = {"methods": ["none+classical"], "views": [0]}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.late = []

    def predict_step(self, batch, batch_idx):
        path = batch[0]
        if path.read_bytes() == b"broken":
            now = [predicted(path.stem, path, error=f"{path}: cannot be read", image=None, nuclei=None)]
        else:
            now = [predicted(path.stem, path)]
        ready, self.late = self.late, now
        if batch_idx + 1 == self.trainer.num_predict_batches[0]:
            ready, self.late = ready + self.late, []
        return ready


class Files(LightningDataModule):
    """The files of a folder of which `done/` knows nothing."""

    def __init__(self, folder, out):
        super().__init__()
        self.folder, self.out = folder, out
        self.mpp = 0.5

    def predict_dataloader(self):
        paths = [p for p in sorted(self.folder.iterdir()) if not (self.out / "done" / f"{p.stem}.json").is_file()]
        return DataLoader(paths, batch_size=1, collate_fn=list)


@pytest.fixture
def run(tmp_path, trainer):
    """Return `run(**images)`, which writes source files of these contents and predicts what is not done yet."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()

    def go(images=(), module=None, **settings):
        for name, content in dict(images).items():
            (source / f"{name}.png").write_bytes(content)
        writer = PredictionWriter(str(out), **settings)
        trainer(writer).predict(module or Finder(), Files(source, out), return_predictions=False)

    return go


def write(out, prediction, *settings):
    ImageFiles(out, prediction, *settings).add(prediction)


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_file_of_an_image_is_written(run, tmp_path):
    run({"a.1": b"12345"})
    out = tmp_path / "out"
    assert files_below(out) == [
        ".lock", "done/a.1.json", "geojson/a.1.geojson", "he/a.1.png", "instances/a.1.png", "nuclei/a.1.csv",
        "overlay/a.1.png", "settings.json", "summary.csv",
    ]  # fmt: skip
    assert np.array_equal(cv2.imread(str(out / "instances/a.1.png"), cv2.IMREAD_UNCHANGED), tile_nuclei(20).inst_hw)
    assert (cv2.imread(str(out / "he/a.1.png"))[4, 4, ::-1] == [155, 205, 235]).all()
    assert cv2.imread(str(out / "overlay/a.1.png")).shape[1] == OVERLAY_PX[0]
    source = tmp_path / "source" / "a.1.png"
    done = json.loads((out / "done/a.1.json").read_text())
    assert (done["source"], done["size"], done["mtime_ns"]) == (str(source), 5, source.stat().st_mtime_ns)
    assert sorted(done["files"]) == files_below(out)[2:7]
    assert done["area_mm2"] == pytest.approx(20 * 20 * 0.5**2 / 1e6)
    assert done["counts"]["epithelium"] == {"negative": 0, "weak": 0, "moderate": 0, "strong": 1}


def test_the_table_of_nuclei_has_what_was_measured_on_the_ihc(run, tmp_path):
    run({"a": b"1"})
    brown, blank, unknown = read(tmp_path / "out/nuclei/a.csv")
    assert [row["type"] for row in (brown, blank, unknown)] == ["epithelium", "stroma", "unknown"]
    expected = {
        "x_px": 4.5,
        "y_um": 2.25,
        "area_um2": 9,
        "type_share": 0.75,
        "score": 0.9,
        "agreement": 1,
        "positive": 1,
    }
    assert {key: float(brown[key]) for key in expected} == expected
    assert float(brown["dab_od"]) > 0.6
    assert float(blank["dab_od"]) < 0.1
    assert (blank["positive"], blank["agreement"]) == ("0", "0.5")
    feature = json.loads((tmp_path / "out/geojson/a.geojson").read_text())["features"][0]
    assert feature["properties"]["measurements"]["positive"] == 1


def test_the_summary_counts_each_image_and_class_and_all_images(run, tmp_path):
    run({"a": b"1", "b": b"2"})
    rows = {(row["image"], row["class"]): row for row in read(tmp_path / "out/summary.csv")}
    assert [key[0] for key in rows] == ["a"] * 4 + ["b"] * 4 + ["all images"] * 4
    assert [key[1] for key in rows][:4] == ["epithelium", "stroma", "unknown", "all"]
    assert rows["b", "all"] == {
        "image": "b", "class": "all", "nuclei": "3", "positive": "1", "percent_positive": "33.33", "h_score": "100.00",
        "area_mm2": "0.0001", "nuclei_per_mm2": "30000", "percent_ink": "0.00",
    }  # fmt: skip
    whole = rows["all images", "epithelium"]
    assert (whole["nuclei"], whole["percent_positive"], whole["h_score"]) == ("2", "100.00", "300.00")
    assert (whole["area_mm2"], whole["nuclei_per_mm2"]) == ("0.0002", "10000")


def test_a_later_run_continues_and_counts_what_the_first_has_done(run, tmp_path):
    run({"a": b"1"})
    before = (tmp_path / "out/nuclei/a.csv").stat().st_mtime_ns
    run({"b": b"2"})
    assert (tmp_path / "out/nuclei/a.csv").stat().st_mtime_ns == before
    assert {row["image"] for row in read(tmp_path / "out/summary.csv")} == {"a", "b", "all images"}


def test_a_summary_that_was_never_written_is_made_though_no_image_is_left(run, tmp_path):
    run({"a": b"1"})
    (tmp_path / "out/summary.csv").unlink()
    run()
    assert len(read(tmp_path / "out/summary.csv")) == 8


def test_files_that_cannot_be_read_are_reported_at_the_end(run, tmp_path):
    with pytest.raises(DataError, match=r"2 of 3 images could not be read: .*b\.png, .*c\.png; see .*failed\.csv"):
        run({"a": b"1", "b": b"broken", "c": b"broken"})
    out = tmp_path / "out"
    assert [(row["name"], row["error"][-14:]) for row in read(out / "failed.csv")] == [
        ("b", "cannot be read"), ("c", "cannot be read"),
    ]  # fmt: skip
    assert {row["image"] for row in read(out / "summary.csv")} == {"a", "all images"}
    run({"b": b"2", "c": b"3"})  # repaired, and the lock was given back
    assert not (out / "failed.csv").exists()


def test_an_image_that_no_longer_can_be_read_is_no_longer_counted(run, tmp_path):
    run({"a": b"1", "b": b"2"})
    out = tmp_path / "out"
    (out / "done/b.json").rename(tmp_path / "b.json")  # as if its size had changed
    with pytest.raises(DataError, match="1 of 1 images"):
        run({"b": b"broken"})
    assert {row["image"] for row in read(out / "summary.csv")} == {"a", "all images"}
    (tmp_path / "b.json").rename(out / "done/b.json")
    predictions.withdraw(out, "b")
    assert all("b." not in name for name in files_below(out))


def test_other_settings_are_refused_and_named(run, tmp_path):
    run({"a": b"1"})
    before = files_below(tmp_path / "out")
    expected = (
        r"begun with other settings: thresholds: \[0\.2, 0\.4, 0\.6\] before, \[0\.1, 0\.4, 0\.6\] now\. .*repeat"
    )
    with pytest.raises(ConfigError, match=expected):
        run({"b": b"2"}, thresholds=(0.1, 0.4, 0.6))
    other = Finder()
    other.fingerprint = {"methods": ["none+hovernet"], "views": [0]}
    with pytest.raises(ConfigError, match="methods: "):
        run(module=other)
    assert files_below(tmp_path / "out") == before
    run()  # the lock was given back


def test_a_name_that_is_too_long_is_counted_and_the_others_go_on(tmp_path, trainer):
    class Named(Finder):
        def predict_step(self, batch, batch_idx):
            return [predicted(name, tmp_path / "a.png") for name in ("ok", f"deep/{'x' * 250}", "y" * 245, "also")]

    (tmp_path / "a.png").write_bytes(b"1")
    out = tmp_path / "out"
    writer = PredictionWriter(str(out))
    with pytest.raises(DataError, match=r"2 of 4 images could not be read: .*failed\.csv"):
        trainer(writer).predict(Named(), DataLoader([0]), return_predictions=False)
    errors = {row["name"]: row["error"] for row in read(out / "failed.csv")}
    assert set(errors) == {f"deep/{'x' * 250}", "y" * 245}
    assert all("the name is too long: with" in error and "Shorten it" in error for error in errors.values())
    assert {row["image"] for row in read(out / "summary.csv")} == {"ok", "also", "all images"}


def test_results_know_their_source_and_those_of_another_file_are_never_overwritten(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(folder.encode())
    first, second = (predicted("a", tmp_path / folder / "a.png") for folder in ("one", "two"))
    settings = ["nuclei"], (0.2, 0.4, 0.6), ""
    write(tmp_path / "out", first, *settings)
    before = (tmp_path / "out/done/a.json").read_text()
    assert json.loads(before)["mpp"] == 0.5
    with pytest.raises(ConfigError, match=r"another image called a: .*one/a\.png.*two/a\.png.*another out="):
        write(tmp_path / "out", second, *settings)
    assert (tmp_path / "out/done/a.json").read_text() == before
    (tmp_path / "one/a.png").rename(tmp_path / "moved.png")  # the same image elsewhere
    write(tmp_path / "out", predicted("a", tmp_path / "moved.png"), *settings)


def test_two_runs_do_not_share_a_folder(run, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ConfigError, match="another run is writing there"):
        run({"a": b"1"})
    assert files_below(tmp_path / "out") == [".lock"]


def test_only_what_is_asked_for_is_written(run, tmp_path):
    run({"a": b"1"}, write=["geojson"])
    assert files_below(tmp_path / "out") == [
        ".lock", "done/a.json", "geojson/a.geojson", "settings.json", "summary.csv",
    ]  # fmt: skip
    assert read(tmp_path / "out/summary.csv")[0]["nuclei"] == "1"


def test_without_a_translation_there_is_no_virtual_h_and_e(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    prediction = predicted("sub/a", tmp_path / "a.png", he=None)
    write(tmp_path / "out", prediction, ["he", "nuclei"], (0.2, 0.4, 0.6), "")
    assert files_below(tmp_path / "out") == ["done/sub/a.json", "nuclei/sub/a.csv"]
    assert {row["image"] for row in predictions.summary(tmp_path / "out")} == {"sub/a", "all images"}


def test_what_cannot_be_written_ends_the_run(run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagefiles, "write_geojson", full)
    with pytest.raises(OSError, match="No space left"):
        run({"a": b"1"})
    assert not (tmp_path / "out/done").exists()
    monkeypatch.undo()
    run()
    assert (tmp_path / "out/done/a.json").is_file()


def test_more_nuclei_than_16_bits_count_are_written_with_32(tmp_path):
    inst_hw = np.arange(70_000, dtype=np.int32).reshape(200, 350)
    write_instances(tmp_path / "a.tif", inst_hw)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), inst_hw)
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint32
    (tmp_path / "b.png").write_bytes(b"1")
    n = 69_999
    nuclei = TileNuclei(
        inst_hw=inst_hw, types_n=np.zeros(n, int), shares_n=np.zeros(n, np.float32), scores_n=np.ones(n, np.float32),
        agreement_n=None,
        centres_n2=np.zeros((n, 2)),
    )  # fmt: skip
    prediction = predicted("b", tmp_path / "b.png", image=np.zeros((200, 350, 3), np.uint8), nuclei=nuclei)
    write(tmp_path / "out", prediction, ["instances"], (0.2, 0.4, 0.6), "")
    assert files_below(tmp_path / "out") == ["done/b.json", "instances/b.tif"]


def test_mistakes_in_the_settings_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no 'overlays'\. Did you mean 'overlay'"):
        PredictionWriter(str(tmp_path), write=["overlays"])
    with pytest.raises(ConfigError, match="three rising"):
        PredictionWriter(str(tmp_path), thresholds=(0.4, 0.2, 0.6))


def test_other_stages_leave_the_folder_alone(toy, tiles, trainer, tmp_path):
    trainer(PredictionWriter(str(tmp_path / "out"))).test(toy(), tiles, verbose=False)
    assert not (tmp_path / "out").exists()


TWO_RANKS = """
import sys
from pathlib import Path
import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from ihc2he.callbacks.predictions import PredictionWriter
from ihc2he.models.pipeline.assembly import TileNuclei
from ihc2he.models.pipeline.prediction import Prediction

class Finder(LightningModule):
    fingerprint = {}

    def predict_step(self, batch, batch_idx):
        name = f"tile{batch[0]}"
        if batch[0] == int(sys.argv[2]):
            return [Prediction(name, name, "broken", None, None, None, 0.5, [])]
        nuclei = TileNuclei(
            inst_hw=np.ones((9, 9), np.int32), types_n=np.ones(1, int), shares_n=np.ones(1), scores_n=np.ones(1),
            agreement_n=None, centres_n2=np.full((1, 2), 4.0),
        )
        image = np.zeros((9, 9, 3), np.uint8)
        return [Prediction(name, __file__, None, image, None, nuclei, 0.5, ["a"])]

trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False, enable_checkpointing=False,
    enable_model_summary=False, callbacks=[PredictionWriter(sys.argv[1])],
)
trainer.predict(Finder(), DataLoader(range(3), batch_size=1, collate_fn=list), return_predictions=False)
print("rank", trainer.global_rank, "is through")
"""


@pytest.mark.slow
@pytest.mark.parametrize("broken", [-1, 1])  # 1 is of the second rank
def test_two_ranks_write_into_one_folder_and_the_first_reports(broken, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_RANKS)
    command = [sys.executable, str(script), str(tmp_path / "out"), str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    written = {f"tile{i}" for i in range(3)} - {f"tile{broken}"}
    assert {row["image"] for row in read(tmp_path / "out/summary.csv")} == {*written, "all images"}
    if broken == -1:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert "1 of 3 images could not be read: tile1;" in done.stderr


def test_each_rank_gives_up_where_the_first_does(tmp_path):
    writer = PredictionWriter(str(tmp_path / "out"))
    fake = SimpleNamespace(
        is_global_zero=False, datamodule=None, strategy=SimpleNamespace(broadcast=lambda _: "out=... is taken")
    )
    with pytest.raises(ConfigError, match="is taken"):
        writer.setup(fake, Finder(), "predict")
    assert not (tmp_path / "out").exists()


def test_what_ink_covers_is_no_area_of_the_nuclei_and_counts_as_ink(tmp_path):
    for name, share in (("a", 0.0), ("half", 0.5), ("whole", 1.0)):
        (tmp_path / f"{name}.png").write_bytes(b"1")
        prediction = predicted(name, tmp_path / f"{name}.png", ink_share=share)
        write(tmp_path / "out", prediction, [], (0.2, 0.4, 0.6), "")
    rows = {row["image"]: row for row in predictions.summary(tmp_path / "out") if row["class"] == "all"}
    found = {name: (row["area_mm2"], row["nuclei_per_mm2"], row["percent_ink"]) for name, row in rows.items()}
    assert found == {  # of 20 x 20 px at 0.5 um/px with three nuclei each
        "a": ("0.0001", "30000", "0.00"), "half": ("5e-05", "60000", "50.00"), "whole": ("0", "", "100.00"),
        "all images": ("0.00015", "60000", "50.00"),
    }  # fmt: skip
