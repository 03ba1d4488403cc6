"""Large images come and go block by block, with the files that the same blocks of a whole array give."""

import csv
import gc
import json
import os
import time
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from lightning.pytorch import Callback

from ihc2he.callbacks.imagefiles import ImageFiles
from ihc2he.callbacks.predictions import PredictionWriter
from ihc2he.data import tiles as tiles_module
from ihc2he.data.tiles import TilesDataModule
from ihc2he.errors import DataError
from ihc2he.images import source as source_module
from ihc2he.images.decoding import read_image
from ihc2he.images.source import ArraySource
from ihc2he.models.pipeline.blocks import OpenImage
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.segmenters import Classical
from ihc2he.models.pipeline.translators import Identity, Recolour

KINDS = ("he", "instances", "geojson", "nuclei", "overlay")


def tissue(height=700, width=430, seed=0):
    """Return nuclei of two stains on glass at 0.5 um/px, and a green pen stroke."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (235, 228, 236), np.uint8)
    for x, y in rng.uniform(0, (width, height), (500, 2)).astype(int).tolist():
        colour = [(110, 105, 170), (120, 75, 45)][rng.integers(2)]
        cv2.ellipse(image, (x, y), (9, 6), rng.integers(180), 0, 360, colour, -1)
    image[:, 200:215] = (40, 140, 60)
    return np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def predict(trainer, tmp_path):
    """Return `predict(path, out)`, which predicts with blocks of 128 px and writes all files."""

    def go(path, out, translator="recolour", module=None, callbacks=(), **data):
        translators = {"recolour": Recolour(1.7, 0.2, 0.22, 1.0), "none": Identity()}
        use = {"translators": [translator], "segmenters": ["classical"]}
        module = module or Pipeline(translators, {"classical": Classical()}, use, workers=0, block=128)
        own = TilesDataModule(path=str(path), mpp=0.5, done=str(out / "done"), **({"num_workers": 0} | data))
        trainer(callbacks=[*callbacks, PredictionWriter(str(out))]).predict(module, own, return_predictions=False)
        return out

    return go


def saved(path, image):
    if path.suffix == ".png":
        cv2.imwrite(str(path), image[..., ::-1])
    else:
        tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), compression="zlib")
    return path


def contents(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for kind in KINDS for path in (out / kind).glob("*")}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_block_by_block_gives_the_files_of_the_whole(suffix, workers, predict, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        saved(folder / f"{seed}{suffix}", tissue(seed=seed))
    expected = contents(predict(folder, tmp_path / "whole", num_workers=workers))
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    found = contents(predict(folder, tmp_path / "blocks", num_workers=workers, batch_size=3))
    assert len(expected) == 3 * len(KINDS)
    assert found == expected


def test_results_are_those_of_one_map(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    image = tissue()
    out = predict(saved(tmp_path / "a.tif", image), tmp_path / "out", "none")
    inst_hw = cv2.imread(str(out / "instances/a.png"), cv2.IMREAD_UNCHANGED).astype(np.int32)
    assert inst_hw.shape == image.shape[:2]
    with (out / "nuclei/a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["id"]) for row in rows] == list(range(1, inst_hw.max() + 1))
    assert len(rows) > 200
    for row in rows:
        y, x = np.nonzero(inst_hw == int(row["id"]))
        box = [int(row[f"{side}_px"]) for side in ("left", "top", "right", "bottom")]
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert (float(row["x_px"]), float(row["y_px"])) == pytest.approx((x.mean(), y.mean()), abs=1e-3)
        assert int(row["area_px2"]) == len(x)
    features = json.loads((out / "geojson/a.geojson").read_text())["features"]
    assert [feature["properties"]["name"] for feature in features] == [row["id"] for row in rows]
    assert not (out / "he").exists()
    assert 0.02 < json.loads((out / "done/a.json").read_text())["ink_share"] < 0.06


def test_a_large_tiff_is_never_read_whole(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    monkeypatch.setattr(source_module, "WHOLE_PX", 0)
    monkeypatch.setattr(source_module, "_ROWS", 32)
    path = saved(tmp_path / "a.tif", tissue())
    seen = []
    samples = source_module.tiff.samples

    def counted(page, rows, columns):
        seen.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return samples(page, rows, columns)

    monkeypatch.setattr(source_module.tiff, "samples", counted)
    monkeypatch.setattr(source_module, "read_image", None)
    monkeypatch.setattr(source_module, "_WHITE_PX", 256)
    predict(path, tmp_path / "out")
    assert max(seen) <= 128 * 430


@pytest.mark.parametrize("kind", ["region", "whole"])
def test_an_image_with_a_damaged_part_leaves_nothing_and_the_others_go_on(kind, predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        saved(folder / f"{name}.tif", tissue())
    if kind == "region":  # the last tile but ten does not decode, in blocks other than the first
        with tifffile.TiffFile(folder / "b.tif") as file:
            offset, count = file.pages[0].dataoffsets[-10], file.pages[0].databytecounts[-10]
        content = bytearray((folder / "b.tif").read_bytes())
        content[offset : offset + count] = bytes(count)
        (folder / "b.tif").write_bytes(content)
    else:
        (folder / "b.tif").write_bytes((folder / "b.tif").read_bytes()[:-50_000])
    with pytest.raises(DataError, match=r"1 of 3 images could not be read: .*b\.tif"):
        predict(folder, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(path.stem for path in out.glob("done/*.json")) == ["a", "c"]
    assert sorted(path.stem for path in out.glob("he/*")) == ["a", "c"]
    assert not list(out.rglob(".*part*"))


def test_what_stops_midway_leaves_no_half_image(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    add = ImageFiles.add

    def full(self, strip):
        if strip.top:
            raise OSError(28, "No space left on device")
        add(self, strip)

    monkeypatch.setattr(ImageFiles, "add", full)
    path = saved(tmp_path / "a.tif", tissue())
    with pytest.raises(OSError, match="No space left"):
        predict(path, tmp_path / "out")
    files = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {".lock", "settings.json"}
    monkeypatch.undo()
    assert len(contents(predict(path, tmp_path / "out"))) == len(KINDS)


class Stop(Callback):
    """Stops a run after some batches, while their files are being written."""

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, *args):
        if batch_idx == 9:
            raise RuntimeError("stopped")


def test_what_stops_while_strips_wait_leaves_no_half_image(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    add = ImageFiles.add
    monkeypatch.setattr(ImageFiles, "add", lambda self, strip: (time.sleep(0.5), add(self, strip)))
    with pytest.raises(RuntimeError, match="stopped"):
        predict(saved(tmp_path / "a.tif", tissue(2000, 130)), tmp_path / "out", callbacks=[Stop()])
    assert not [file for kind in (*KINDS, "done") for file in (tmp_path / "out").glob(f"{kind}/*")]


def test_what_a_killed_run_left_is_deleted_by_the_next(predict, tmp_path):
    path = saved(tmp_path / "a.tif", tissue(64, 64))
    out = predict(path, tmp_path / "out")
    left = out / "he" / ".b.12345.part.png"
    left.touch()
    predict(path, out)
    assert not left.exists()
    assert len(contents(out)) == len(KINDS)


def test_an_image_that_changes_under_way_is_predicted_again(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    path = saved(tmp_path / "a.tif", tissue())
    finish = ImageFiles._finish
    later = path.stat().st_mtime_ns + 10**9

    def changed(self, strip):
        os.utime(path, ns=(later, later))
        finish(self, strip)

    monkeypatch.setattr(ImageFiles, "_finish", changed)
    done = predict(path, tmp_path / "out") / "done/a.json"
    assert json.loads(done.read_text())["mtime_ns"] == later - 10**9
    predict(path, tmp_path / "out")
    assert json.loads(done.read_text())["mtime_ns"] == later


@pytest.mark.parametrize(
    ("step", "change", "error"),
    [
        ("predict_dataloader", lambda path: saved(path, tissue(300, 300)), "was changed"),
        ("predict_dataloader", Path.unlink, "cannot be read"),
        ("setup", Path.unlink, "cannot be read"),
    ],
)
def test_an_image_that_another_replaces_or_that_vanishes_is_named(step, change, error, predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    for name in "ab":
        saved(tmp_path / f"{name}.tif", tissue())
    whole = getattr(TilesDataModule, step)

    def then_changed(self, **given):
        result = whole(self, **given)
        change(tmp_path / "b.tif")
        return result

    monkeypatch.setattr(TilesDataModule, step, then_changed)
    with pytest.raises(DataError, match=r"1 of 2 images could not be read: .*b\.tif"):
        predict(tmp_path / "*.tif", tmp_path / "out")
    with (tmp_path / "out/failed.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert error in row["error"]
    assert [path.stem for path in tmp_path.glob("out/done/*")] == ["a"]


def test_a_name_too_long_counts_once(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    with pytest.raises(DataError, match="1 of 1 images"):
        predict(saved(tmp_path / f"{'a' * 245}.tif", tissue()), tmp_path / "out")


def test_a_mended_image_is_predicted_by_the_same_module(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    use = {"translators": ["none"], "segmenters": ["classical"]}
    module = Pipeline({"none": Identity()}, {"classical": Classical()}, use, workers=0, block=128)
    path = tmp_path / "a.tif"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="1 of 1 images"):
        predict(path, tmp_path / "out", module=module)
    saved(path, tissue())
    assert (predict(path, tmp_path / "out", module=module) / "nuclei/a.csv").is_file()


def test_images_leave_the_memory_when_they_are_complete(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "LARGE", 0)
    for name in "abcd":
        saved(tmp_path / f"{name}.tif", tissue(300, 300))
    alive = weakref.WeakSet()
    create = OpenImage.__init__
    monkeypatch.setattr(OpenImage, "__init__", lambda self, *given: (alive.add(self), create(self, *given))[1])
    gc.collect()
    gc.disable()
    try:
        predict(tmp_path / "*.tif", tmp_path / "out")
        assert len(alive) <= 1
    finally:
        gc.enable()


def test_a_png_is_decoded_once_in_its_loading_process(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(source_module, "read_image", lambda path: (decoded.append(path), read_image(path))[1])
    tile = tiles_module.Tile("a", saved(tmp_path / "a.png", tissue(64, 64)), 0.5)
    read = tiles_module._Reader(None)
    first, second = (read(tiles_module.Piece(tile, k, slice(0, 32), slice(0, 32))) for k in (0, 1))
    assert isinstance(first["open"](), ArraySource)
    assert np.array_equal(first["open"]().whole(), tissue(64, 64))
    assert (first["image"], second["image"], second["open"]) == (None, None, None)
    assert len(decoded) == 1
