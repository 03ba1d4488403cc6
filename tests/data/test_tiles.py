import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from lightning.pytorch import LightningModule, Trainer

from ihc2he.data import tiles as module
from ihc2he.data.evaluation import TileLoader, Tiles
from ihc2he.data.tiles import TilesDataModule, find_files
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.source import ImageSource
from ihc2he.tiling.windows import divide


@pytest.fixture
def folder(tmp_path, write_image, make_tile):
    """Three images: a.png (48 px), deep/b.jpg (32 px) and deep/c.d.tif (40 px); and files that are no images."""
    folder = tmp_path / "slides"
    for k, (name, size) in enumerate({"a.png": 48, "deep/b.jpg": 32, "deep/c.d.tif": 40}.items()):
        write_image(folder / name, make_tile(k, size))
    (folder / "._a.png").write_bytes(b"of macOS")
    (folder / "notes.txt").write_text("no image")
    return folder


def ready(path, **arguments):
    data = TilesDataModule(path=str(path), **({"mpp": 0.5, "num_workers": 0} | arguments))
    data.setup()
    return data


def names(data):
    return [name for batch in data.predict_dataloader() for name in batch["name"]]


def note(done, name, file, **changes):
    stat = file.stat()
    (done / name).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns} | changes)
    (done / f"{name}.json").write_text(text)


def test_a_folder_gives_its_images_as_they_are(folder, make_tile):
    (batch,) = ready(folder, batch_size=3).predict_dataloader()
    assert batch["name"] == ["a", "deep/b", "deep/c.d"]
    assert batch["path"] == [str(folder / name) for name in ("a.png", "deep/b.jpg", "deep/c.d.tif")]
    assert batch["mpp"] == [0.5] * 3
    assert batch["error"] == [None] * 3
    assert [image.shape for image in batch["image"]] == [(48, 48, 3), (32, 32, 3), (40, 40, 3)]
    assert (batch["image"][0] == make_tile(0, 48)).all()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.png", ["a"]),
        ("deep/c.d.tif", ["c.d"]),
        ("*", ["a"]),
        ("deep/[bc]*", ["b", "c.d"]),
        ("*/*.jpg", ["deep/b"]),
        ("**/*", ["a", "deep/b", "deep/c.d"]),
    ],
)
def test_a_file_or_a_glob_will_do(folder, path, found, monkeypatch):
    assert names(ready(folder / path)) == found
    monkeypatch.chdir(folder)
    assert names(ready(path)) == found


def test_folders_behind_links_are_read(folder, tmp_path):
    (folder / "deep").rename(tmp_path / "elsewhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(folder)
    for path in (folder, folder / "**" / "*"):
        assert names(ready(path)) == ["a", "linked/b", "linked/c.d"]


def test_files_that_are_not_read_are_named_where_nothing_else_is_there(tmp_path):
    (tmp_path / "1.svs").touch()
    with pytest.raises(DataError, match=r"found no image there, expected PNG, JPEG or TIFF files\. Found: 1 \.svs\."):
        ready(tmp_path)


def test_brackets_in_a_name_that_exists_are_no_glob(folder):
    (folder / "[1]").mkdir()
    (folder / "a.png").rename(folder / "[1]" / "a.png")
    assert names(ready(folder / "[1]")) == ["a"]


@pytest.mark.parametrize(("path", "near"), [("missing", "missed"), ("a.pgn", "a.png")])
def test_a_path_that_is_not_there_is_an_error_with_the_nearest_name(folder, path, near):
    (folder / "missed").mkdir()
    with pytest.raises(DataError, match=rf"{path}: there is no such file or folder\. Did you mean '{near}'\?"):
        ready(folder / path)


@pytest.mark.parametrize("path", ["*.bmp", "empty"])
def test_nothing_found_is_an_error(folder, path):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.path=.*: found no image there, expected PNG, JPEG or TIFF"):
        ready(folder / path)


def test_two_files_of_one_name_are_both_named(folder, write_image, make_tile):
    write_image(folder / "a.tif", make_tile(9))
    with pytest.raises(DataError, match=r"a\.tif: a\.png has the same name apart from the extension"):
        ready(folder)


def test_what_cannot_be_read_comes_with_its_error(folder, monkeypatch):
    (folder / "deep" / "b.jpg").write_bytes(b"\xff\xd8 cut")
    (folder / "z.svs").write_bytes(b"a slide")
    (batch,) = ready(folder, batch_size=3).predict_dataloader()
    assert batch["image"][1] is None
    assert "b.jpg: the JPEG is truncated" in batch["error"][1]
    assert batch["error"][0] is None
    assert batch["error"][2] is None
    (batch,) = ready(folder / "z.svs").predict_dataloader()  # asked for by its name
    assert "z.svs: the content is not a PNG, JPEG or TIFF" in batch["error"][0]

    def no_memory(path):
        raise MemoryError

    monkeypatch.setattr(module, "read_image", no_memory)
    (batch,) = ready(folder / "a.png").predict_dataloader()
    assert "a.png: needs more memory than is free" in batch["error"][0]


def test_the_pixel_size_of_the_table_comes_first(folder):
    (folder / "tiles.csv").write_text("name,um_per_px\ndeep/b.jpg,0.25\na,\n")
    (batch,) = ready(folder, batch_size=3).predict_dataloader()
    assert batch["mpp"] == [0.5, 0.25, 0.5]
    with pytest.raises(ConfigError, match=r"pixel size of .*a\.png is not known.*QuPath.*tiles\.csv"):
        ready(folder, mpp=None)
    (folder / "tiles.csv").write_text("name,um_per_px\na,0.1\ndeep/b,0.2\ndeep/c.d,0.3\n")
    assert [tile.mpp for tile in ready(folder, mpp=None).tiles] == [0.1, 0.2, 0.3]


def test_a_file_may_state_its_own_pixel_size(folder):
    tif = folder / "deep" / "c.d.tif"
    tifffile.imwrite(
        tif, tifffile.imread(tif), photometric="rgb", resolution=(40000, 40000), resolutionunit="CENTIMETER"
    )
    assert [tile.mpp for tile in ready(tif, mpp=None).tiles] == [pytest.approx(0.25)]
    assert [tile.mpp for tile in ready(tif, mpp=0.5).tiles] == [0.5]
    (folder / "tiles.csv").write_text("name,um_per_px\na,0.1\ndeep/b,0.2\n")
    assert [tile.mpp for tile in ready(folder, mpp=None).tiles] == [0.1, 0.2, pytest.approx(0.25)]


def test_a_row_of_the_table_without_an_image_is_an_error(folder):
    (folder / "tiles.csv").write_text("name,um_per_px\ndeep/bb,0.25\n")
    with pytest.raises(
        DataError, match=r"line 2: there is no image 'deep/bb' below .*slides\. Did you mean 'deep/b'\?"
    ):
        ready(folder)
    (folder / "tiles.csv").write_text("name,um_per_px\ndeep\\b.JPG,0.25\na.png,0.3\n")  # as Windows writes it
    assert [tile.mpp for tile in ready(folder).tiles] == [0.3, 0.25, 0.5]
    assert [tile.mpp for tile in ready(folder / "a.png").tiles] == [0.3], "the table may name those not asked for"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "half"])
def test_a_pixel_size_that_makes_no_sense(folder, value):
    (folder / "tiles.csv").write_text(f"name,um_per_px\na,{value}\n")
    with pytest.raises(DataError, match=rf"tiles\.csv: um_per_px '{value}' for a\.png, expected um/px from"):
        ready(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": None}, r"data\.path=None: expected an image"),
        ({"path": "x", "mpp": 0}, r"data\.mpp=0: expected um/px from 0.01 to 100"),
        ({"path": "x", "batch_size": 0}, r"data\.batch_size=0"),
        ({"path": "x", "num_workers": -1}, r"data\.num_workers=-1"),
    ],
)
def test_values_outside_of_their_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TilesDataModule(**arguments)


def test_finished_images_are_skipped(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    done = tmp_path / "out" / "done"
    assert names(ready(folder, done=str(done))) == ["a", "deep/b", "deep/c.d"]
    assert not caplog.text
    note(done, "a", folder / "a.png")
    note(done, "deep/c.d", folder / "deep" / "c.d.tif")
    assert names(ready(folder, done=str(done))) == ["deep/b"]
    assert "2 of 3 images were finished before and are skipped" in caplog.text
    note(done, "deep/b", folder / "deep" / "b.jpg")
    assert names(ready(folder, done=str(done))) == []
    assert "No image is left to do" in caplog.text


def test_an_image_whose_pixel_size_was_corrected_is_done_again(folder, tmp_path):
    done = tmp_path / "out" / "done"
    for name in ("a.png", "deep/b.jpg", "deep/c.d.tif"):
        note(done, name.rpartition(".")[0], folder / name, mpp=0.5)
    assert names(ready(folder, done=str(done))) == []
    (folder / "tiles.csv").write_text("name,um_per_px\ndeep/b,0.25\n")
    assert names(ready(folder, done=str(done))) == ["deep/b"]
    assert names(ready(folder, done=str(done), mpp=0.3)) == ["a", "deep/b", "deep/c.d"]


def test_equal_names_of_two_folders_are_refused(folder, tmp_path, write_image, make_tile):
    done = tmp_path / "out" / "done"
    note(done, "a", folder / "a.png", source=str(folder / "a.png"))
    write_image(tmp_path / "other" / "a.png", make_tile(5))
    with pytest.raises(ConfigError, match=r"results of another image called a: .*slides/a\.png.*other/a\.png"):
        ready(tmp_path / "other", done=str(done))
    (folder / "a.png").unlink()  # gone, so these are the results of nothing
    assert names(ready(tmp_path / "other", done=str(done))) == ["a"]


def test_images_that_were_moved_stay_finished(folder, tmp_path):
    done = tmp_path / "out" / "done"
    note(done, "a", folder / "a.png", source=str(folder / "a.png"))
    folder.rename(tmp_path / "elsewhere")
    assert names(ready(tmp_path / "elsewhere", done=str(done))) == ["deep/b", "deep/c.d"]


def test_one_image_is_not_counted_under_two_names(folder, tmp_path):
    done = tmp_path / "out" / "done"
    note(done, "deep/b", folder / "deep" / "b.jpg", source=str(folder / "deep" / "b.jpg"))
    with pytest.raises(ConfigError, match=r"b\.jpg under the name deep/b; as b it would be counted twice"):
        ready(folder / "deep", done=str(done))


def test_links_to_images_of_the_same_folder_are_counted_once(folder, caplog):
    (folder / "z.png").symlink_to(folder / "a.png")
    assert names(ready(folder)) == ["a", "deep/b", "deep/c.d"]
    assert "left out 1 images that are links to others, such as z, which is a" in caplog.text


def test_a_changed_image_or_a_damaged_note_is_done_again(folder, tmp_path):
    done = tmp_path / "out" / "done"
    note(done, "a", folder / "a.png", size=1)
    note(done, "deep/b", folder / "deep" / "b.jpg")
    os.utime(folder / "deep" / "b.jpg", ns=(1, 1))
    note(done, "deep/c.d", folder / "deep" / "c.d.tif")
    (done / "deep" / "c.d.json").write_text('{"size": 1')
    assert len(names(ready(folder, done=str(done)))) == 3


def test_results_are_never_taken_for_images(folder, write_image, make_tile):
    write_image(folder / "out" / "overlay" / "a.png", make_tile(0))
    assert names(ready(folder, done=str(folder / "out" / "done"))) == ["a", "deep/b", "deep/c.d"]
    with pytest.raises(ConfigError, match=r"results would lie among the images.*another out="):
        ready(folder, done=str(folder / "done"))
    outside = folder.parent / "done"  # beside the images and not below them
    assert len(names(ready(folder, done=str(outside)))) == 4


def test_ranks_share_the_images_without_repeating_any(folder):
    data = ready(folder)
    seen = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        seen.append(names(data))
    assert seen == [["a", "deep/c.d"], ["deep/b"]]


class Collect(LightningModule):
    def __init__(self):
        super().__init__()
        self.seen = []

    def predict_step(self, batch, batch_idx):
        self.seen += batch["name"]
        assert all(isinstance(image, np.ndarray) for image in batch["image"])


def test_the_trainer_predicts_on_every_image(folder):
    model = Collect()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.predict(
        model, datamodule=TilesDataModule(path=str(folder), mpp=0.5, num_workers=1), return_predictions=False
    )
    assert model.seen == ["a", "deep/b", "deep/c.d"]


def fail(number):
    if number:
        msg = f"tile {number} is bad."
        raise DataError(msg)
    return {"name": "good"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_loading_process_comes_as_it_is(num_workers):
    loader = TileLoader(Tiles([0, 7], fail), batch_size=1, num_workers=num_workers, collate_fn=list)
    batches = iter(loader)
    assert next(batches) == {"name": ["good"]}
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "tile 7 is bad."


def test_files_come_below_the_fixed_part_of_a_glob(folder):
    assert find_files(str(folder / "d*" / "*.jpg")) == (folder, [folder / "deep" / "b.jpg"])


class Listed(ImageSource):
    """An image of which the file says only the size."""

    def __init__(self, path, mpp):
        self.name, self.mpp, self.shape = path, mpp, tuple(map(int, Path(path).read_text().split()))

    def read(self, rows, columns, level=0):
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)


def test_an_own_source_comes_block_by_block_however_small_its_file(tmp_path):
    (tmp_path / "a.txt").write_text("100 50")
    data = ready(tmp_path / "a.txt", source={"_target_": f"{__name__}.Listed"})
    model = SimpleNamespace(divide=lambda height, width, mpp: divide(height, width, 64, 16))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, lightning_module=model)
    batches = list(data.predict_dataloader())
    assert [batch["block"] for batch in batches] == [[0], [1]]
    assert [batch["image"][0].shape for batch in batches] == [(64, 50, 3)] * 2
