import csv
import logging
import os

import cv2
import numpy as np
import pytest

from ihc2he.data.unpaired import UnpairedDataModule
from ihc2he.errors import ConfigError, DataError


def ready(data):
    data.prepare_data()
    data.setup()
    return data


def names(data, split, stain):
    return [data.tiles.rows[i]["name"] for i in data.records[split, stain]]


def test_both_stains_come_at_the_coarser_pixel_size(unpaired):
    data = ready(unpaired())
    assert data.target_mpp == 0.5
    batch = next(iter(data.test_dataloader()))
    assert batch["ihc"].shape == batch["he"].shape == (1, 3, 64, 64)
    assert batch["paired"].tolist() == [False]
    assert batch["group"] == [""]


def test_enlarging_needs_to_be_asked_for(unpaired):
    batch = next(iter(ready(unpaired(target_mpp=0.25)).test_dataloader()))
    assert batch["ihc"].shape == batch["he"].shape == (1, 3, 128, 128)


def test_each_stain_is_divided_without_overlap_and_repeatably(unpaired):
    data = ready(unpaired(val_fraction=0.25, test_fraction=0.25))
    for stain, sizes in (("ihc", (3, 2, 7)), ("he", (2, 2, 4))):
        parts = [names(data, split, stain) for split in ("test", "val", "train")]
        assert tuple(len(part) for part in parts) == sizes
        assert sorted(name for part in parts for name in part) == [
            f"{k:02d}.png" for k in range(12 if stain == "ihc" else 8)
        ]
    assert ready(unpaired(val_fraction=0.25, test_fraction=0.25)).records == data.records


def test_evaluation_names_each_ihc_tile_once(unpaired):
    data = ready(unpaired(test_fraction=0.5))
    batches = list(data.test_dataloader())
    assert len(data.records["test", "he"]) == 4
    assert [batch["name"][0] for batch in batches] == names(data, "test", "ihc")
    assert len(batches) == 6


def test_epoch_is_as_long_as_the_larger_stain(unpaired, tmp_path, write_image, make_tile):
    data = ready(unpaired())
    assert len(data.train_dataloader()) == len(data.records["train", "ihc"]) == 10
    for k in range(30):
        write_image(tmp_path / "he" / f"more_{k}.png", make_tile(k, 128))
    data = ready(unpaired(rebuild=True))
    assert len(data.train_dataloader()) == len(data.records["train", "he"]) == 31
    assert len(ready(unpaired(samples_per_epoch=7)).train_dataloader()) == 7


@pytest.mark.parametrize("stain_a", ["ihc", "he"])
def test_a_and_b_folders(tmp_path, write_image, stain_a):
    shade = {"ihc": 10, "he": 200}
    other = "he" if stain_a == "ihc" else "ihc"
    for split, n in (("train", 3), ("test", 2), ("val", 1)):
        for k in range(n):
            write_image(tmp_path / "root" / f"{split}A" / f"{k}.jpg", np.full((64, 64, 3), shade[stain_a], np.uint8))
            write_image(tmp_path / "root" / f"{split}B" / f"{k}.tif", np.full((64, 64, 3), shade[other], np.uint8))
    data = UnpairedDataModule(
        root=str(tmp_path / "root"),
        stain_a=stain_a,
        mpp_ihc=0.5,
        mpp_he=0.5,
        crop_size=64,
        num_workers=0,
        store=str(tmp_path / "store"),
    )
    ready(data)
    assert [len(data.records[split, "he"]) for split in ("train", "test", "val")] == [3, 2, 1]
    batch = next(iter(data.val_dataloader()))
    for stain, value in shade.items():
        assert batch[stain].mean().item() == pytest.approx(value / 127.5 - 1, abs=0.01)


@pytest.fixture
def bad(unpaired, tmp_path, write_image, make_tile):
    """Four bad files of different kinds among the good ones."""
    good = (tmp_path / "ihc" / "00.png").read_bytes()
    (tmp_path / "ihc" / "truncated.png").write_bytes(good[:-40])
    (tmp_path / "ihc" / "text.png").write_text("no image")
    (tmp_path / "he" / "empty.tif").touch()
    write_image(tmp_path / "he" / "tiny.png", make_tile(0, 40))  # 20 px at the common pixel size
    return unpaired


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("ihc/truncated.png", "the PNG is truncated"),
        ("ihc/text.png", "not a PNG, JPEG or TIFF"),
        ("he/empty.tif", "the file is empty"),
        ("he/tiny.png", "20x20 px after resampling; expected at least 32 px"),
    ],
)
def test_bad_files_are_errors_by_default(bad, tmp_path, kept, message):
    for name in {"ihc/truncated.png", "ihc/text.png", "he/empty.tif", "he/tiny.png"} - {kept}:
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{kept}: .*{message}"):
        bad().prepare_data()
    assert not (tmp_path / "store" / "tiles.h5").exists()


def test_bad_files_can_be_left_out_and_are_listed(bad, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = ready(bad(on_bad_file="skip"))
    assert len(data.tiles.rows) == 20
    assert "4 images are left out" in caplog.text
    with (tmp_path / "store" / "skipped.csv").open() as file:
        listed = {row["name"].rsplit("/", 1)[-1]: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {"truncated.png", "text.png", "empty.tif", "tiny.png"}
    assert "truncated" in listed["truncated.png"]
    assert all(name in caplog.text for name in listed)


@pytest.mark.parametrize("reports", [True, False])
def test_a_finished_store_may_lie_on_a_disk_that_can_only_be_read(bad, tmp_path, read_only, caplog, reports):
    store = tmp_path / "store"
    ready(bad(on_bad_file="skip"))
    os.utime(tmp_path / "he" / "00.png", ns=(1, 1))
    if not reports:
        for name in ("index.csv", "skipped.csv", "exploration.png", "tiles.lock"):
            (store / name).unlink(missing_ok=True)
    before = {file: file.read_bytes() for file in store.iterdir()}
    read_only(tmp_path)
    with caplog.at_level(logging.WARNING):
        data = ready(bad(on_bad_file="skip"))
    assert len(list(data.test_dataloader())) > 0
    assert "4 images are left out" in caplog.text
    assert ("index.csv: could not be written" in caplog.text) is not reports
    assert {file: file.read_bytes() for file in store.iterdir()} == before


def test_the_list_of_skipped_files_goes_when_nothing_is_skipped(bad, tmp_path):
    ready(bad(on_bad_file="skip"))
    for name in ("ihc/truncated.png", "ihc/text.png", "he/empty.tif", "he/tiny.png"):
        (tmp_path / name).unlink()
    ready(bad(rebuild=True))
    assert not (tmp_path / "store" / "skipped.csv").exists()


def test_a_store_with_gaps_is_not_used_under_the_strict_policy(bad):
    ready(bad(on_bad_file="skip"))
    with pytest.raises(DataError, match=r"built without 4 bad files, such as .*rebuild=true.*on_bad_file=skip"):
        bad().prepare_data()


def test_a_mended_file_is_a_changed_source(bad, tmp_path, write_image, make_tile):
    ready(bad(on_bad_file="skip"))
    write_image(tmp_path / "ihc" / "text.png", make_tile(0))
    with pytest.raises(DataError, match=r"1 changed \(ihc/train/text\.png\)"):
        bad(on_bad_file="skip").prepare_data()


def test_training_images_smaller_than_the_crop(unpaired, tmp_path, write_image, make_tile):
    write_image(tmp_path / "ihc" / "small.png", make_tile(0, 40))
    nothing_held_out = {"crop_size": 48, "val_fraction": 0.0, "test_fraction": 0.0}
    data = unpaired(**nothing_held_out)
    data.prepare_data()
    with pytest.raises(
        DataError, match=r"1 training tiles are smaller than the crop of 48 px.*small\.png \(ihc 40x40\)"
    ):
        data.setup("fit")
    data = ready(unpaired(**nothing_held_out, on_bad_file="skip"))
    assert "small.png" not in names(data, "train", "ihc")
    assert "small.png (ihc 40x40),smaller than the training crop" in (tmp_path / "store/skipped.csv").read_text()


def test_files_of_other_kinds_are_mentioned(unpaired, tmp_path, caplog):
    (tmp_path / "he" / "notes.txt").touch()
    (tmp_path / "he" / "slide.svs").touch()
    unpaired().prepare_data()
    assert "{'.txt': 1, '.svs': 1}" in caplog.text or "{'.svs': 1, '.txt': 1}" in caplog.text


@pytest.mark.parametrize("exchanged", [False, True])
def test_exchanged_stains_are_noticed(unpaired, tmp_path, write_image, caplog, exchanged):
    brown, purple = (160, 110, 60), (150, 90, 170)
    for stain, colour in (("he", brown), ("ihc", purple)) if exchanged else (("ihc", brown), ("he", purple)):
        for path in (tmp_path / stain).iterdir():
            write_image(path, np.full((64, 64, 3), colour, np.uint8))
    unpaired(crop_size=32).prepare_data()
    assert ("Are the two stains swapped?" in caplog.text) == exchanged


def test_nested_folders_keep_their_names(unpaired, tmp_path):
    (tmp_path / "ihc" / "slide 1").mkdir()
    (tmp_path / "ihc" / "00.png").rename(tmp_path / "ihc" / "slide 1" / "00.PNG")
    data = ready(unpaired())
    assert "slide 1/00.PNG" in [row["name"] for row in data.tiles.rows]


def test_an_empty_folder_says_what_it_holds(unpaired, tmp_path):
    for path in (tmp_path / "he").iterdir():
        path.rename(path.with_suffix(".bmp"))
    with pytest.raises(DataError, match=r"/he: expected he images \(\.png, .*\), found \{'\.bmp': 8\}"):
        unpaired().prepare_data()


def test_missing_folders(tmp_path):
    data = UnpairedDataModule(ihc="no", he="where", mpp_ihc=0.5, mpp_he=0.5, store=str(tmp_path / "store"))
    with pytest.raises(DataError, match=r"None of these folders is there: no, where; .*data\.root=FOLDER"):
        data.prepare_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"data\.root=None, data\.ihc=None, data\.he=None: pass data\.root=FOLDER"),
        ({"ihc": "a"}, r"data\.he=None: pass"),
        ({"root": "a", "ihc": "b", "he": "c"}, r"data\.root=a, .*: pass data\.root=FOLDER"),
        ({"root": "a", "mpp_ihc": 0.5}, r"data\.mpp_ihc=0\.5, data\.mpp_he=None: pass the pixel size of both"),
        ({"root": "a", "mpp_ihc": 0.5, "mpp_he": -1}, r"data\.mpp_he=-1: pass the pixel size"),
        ({"root": "a", "mpp_ihc": 1, "mpp_he": 1, "stain_a": "A"}, r"data\.stain_a=A: expected ihc or he"),
        (
            {"root": "a", "mpp_ihc": 1, "mpp_he": 1, "on_bad_file": "skp"},
            r"data\.on_bad_file=skp: expected error or skip",
        ),
        ({"ihc": "a", "he": "a/b", "mpp_ihc": 1, "mpp_he": 1}, "lies inside the other"),
    ],
)
def test_missing_or_contradicting_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        UnpairedDataModule(store="s", **arguments)


def test_the_exploration_picture_can_be_drawn_of_one_image_each(unpaired, tmp_path):
    for stain in ("ihc", "he"):
        for path in list((tmp_path / stain).iterdir())[1:]:
            path.unlink()
    data = unpaired(val_fraction=0.0, test_fraction=0.0)
    ready(data)
    assert cv2.imread(str(tmp_path / "store" / "exploration.png")) is not None
    assert len(data.train_dataloader()) == 1


def test_the_former_name_of_the_target_is_refused_with_the_present_one(unpaired):
    with pytest.raises(ConfigError, match=r"data\.mpp=1\.0: expected data\.mpp_ihc .*pass data\.target_mpp=1\.0\."):
        unpaired(mpp=1.0)
