import logging
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from ihc2he.data.bci import BCIDataModule, parse_name
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.labels import read_labels

LAYOUTS = ["stain_first", "split_first", "side_by_side"]


@pytest.mark.parametrize(
    "name", ["00001_train_4+.png", "00001_train_1.png", "1+.png", "00001_train_1+.jpg", "a_test_0.png"]
)
def test_other_names_are_not_bcis(name):
    assert parse_name(name) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tiles(make_bci, bci, make_tile, layout):
    make_bci(layout)
    data = bci()
    assert Counter(row["split"] for row in data.tiles.rows) == {"train": 20, "test": 5}
    assert Counter(row["group"] for row in data.tiles.rows) == {"0": 3, "1+": 5, "2+": 10, "3+": 7}
    number = next(i for i, row in enumerate(data.tiles.rows) if row["name"] == "00007_train_2+.png")
    np.testing.assert_array_equal(data.tiles.read(number, "ihc"), make_tile(7))
    np.testing.assert_array_equal(data.tiles.read(number, "he"), make_tile(1007))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_validation_folder_is_found(make_bci, bci, layout):
    make_bci(layout, val=True)
    data = bci()
    names = [data.tiles.rows[i]["name"] for i in data.records["val", "ihc"]]
    assert names == ["00003_train_1+.png", "00004_train_1+.png", "00005_train_1+.png"]
    assert len(data.records["train", "ihc"]) == 17


def test_validation_is_stratified_and_depends_on_the_seed_alone(bci):
    data = bci(val_fraction=0.5)
    groups = Counter(data.tiles.rows[i]["group"] for i in data.records["val", "ihc"])
    assert groups == {"0": 1, "1+": 2, "2+": 4, "3+": 3}
    assert bci(val_fraction=0.5).records == data.records
    assert bci(val_fraction=0.5, seed=1).records != data.records


def test_training_batch(bci):
    batches = list(bci(batch_size=4).train_dataloader())
    assert len(batches) == 18 // 4
    for batch in batches:
        assert set(batch) == {"ihc", "he"}
        for x_bchw in batch.values():
            assert x_bchw.shape == (4, 3, 32, 32)
            assert x_bchw.dtype == torch.float32
            assert -1 <= x_bchw.min() < x_bchw.max() <= 1


def test_evaluation_batch_is_whole_and_paired(bci, make_tile):
    batches = list(bci().test_dataloader())
    assert [b["name"] for b in batches] == [
        [f"{k:05d}_test_{v}.png"] for k, v in enumerate(["0", "1+", "2+", "2+", "3+"])
    ]
    assert [b["group"] for b in batches] == [["0"], ["1+"], ["2+"], ["2+"], ["3+"]]
    batch = batches[1]
    assert batch["paired"].tolist() == [True]
    assert batch["paired"].dtype == torch.bool
    for stain, seed in (("ihc", 21), ("he", 1021)):
        restored = ((batch[stain][0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(restored, make_tile(seed))


def test_pixel_size_resamples_the_tiles(bci):
    data = bci(target_mpp=0.92)
    assert data.target_mpp == 0.92
    assert next(iter(data.test_dataloader()))["he"].shape == (1, 3, 32, 32)
    with pytest.raises(DataError, match=r"mpp: built with 0\.92, now 0\.46"):
        bci()
    assert bci(rebuild=True).tiles.rows[0]["shapes"]["he"] == [64, 64, 3]


def test_paired_training_shows_the_same_place(make_bci, bci, make_tile, write_image):
    root = make_bci()
    for path in (root / "IHC" / "train").iterdir():  # make both stains equal, so that places can be compared
        write_image(root / "HE" / "train" / path.name, cv2.imread(str(path))[..., ::-1])
    for batch in bci(paired=True, brightness_contrast=0.2).train_dataloader():
        assert torch.equal(batch["ihc"], batch["he"])
    assert not all(torch.equal(b["ihc"], b["he"]) for b in bci().train_dataloader())


def test_level_balanced_sampling_balances_both_stains(make_bci, bci, write_image):
    root = make_bci()
    shades = {"0": 0, "1+": 80, "2+": 160, "3+": 240}
    for path in root.rglob("*_train_*.png"):
        write_image(path, np.full((64, 64, 3), shades[path.stem.split("_")[-1]], np.uint8))
    data = bci(sampler="level_balanced", samples_per_epoch=800)
    for stain in ("ihc", "he"):
        shares = Counter(round(b[stain].mean().item(), 2) for b in data.train_dataloader())
        assert len(shares) == 4
        assert all(abs(n / 800 - 0.25) < 0.08 for n in shares.values())  # five standard deviations


def test_the_index_lies_beside_the_store(bci):
    folder = bci().store_folder
    lines = (folder / "index.csv").read_text().splitlines()
    assert lines[0] == (
        "tile,split,level,ihc_tissue,ihc_hematoxylin,ihc_dab,ihc_blue_share,"
        "he_tissue,he_hematoxylin,he_eosin,he_blue_share"
    )
    assert len(lines) == 26
    assert lines[1].startswith("00000_test_0.png,test,0,") or lines[1].startswith("00000_train_0.png,train,0,")


def test_exploration_picture_shows_six_pairs(bci):
    picture = bci().store_folder / "exploration.png"
    assert cv2.imread(str(picture)).shape == (900, 1400, 3)
    picture.unlink()
    bci()
    assert picture.is_file(), "drawn again where somebody deleted it"


def test_simulated_tissue_fills_the_root(tmp_path, caplog):
    data = BCIDataModule(
        root=str(tmp_path / "simulated"),
        store=str(tmp_path / "store"),
        simulate={"tiles": 5, "size": 64, "seed": 0},
        crop_size=32,
        num_workers=0,
    )
    for _ in range(2):
        data.prepare_data()
    data.setup()
    assert [len(data.records[split, "he"]) for split in ("train", "val", "test")] == [3, 1, 1]
    assert "published" not in caplog.text
    (batch,) = data.test_dataloader()
    truth = read_labels(tmp_path / "simulated" / "truth" / "instances" / "IHC" / "test" / batch["name"][0])
    np.testing.assert_array_equal(batch["inst"][0], truth)
    assert truth.max() > 1
    assert batch["mpp"].tolist() == [0.46]
    assert "inst" not in next(iter(data.val_dataloader()))


def test_the_truth_of_simulated_tissue_follows_the_pixel_size(tmp_path):
    data = BCIDataModule(
        root=str(tmp_path / "simulated"), store=str(tmp_path / "store"), target_mpp=0.92, crop_size=32, num_workers=0,
        simulate={"tiles": 3, "size": 96, "seed": 0},
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    (batch,) = data.test_dataloader()
    assert batch["inst"].shape == batch["ihc"].shape[:1] + batch["ihc"].shape[2:] == (1, 48, 48)
    assert batch["inst"].max() > 0
    assert batch["mpp"].tolist() == [0.92]


def test_counts_are_compared_with_the_published_ones(bci, caplog):
    with caplog.at_level(logging.WARNING):
        bci()
    assert "train 20 (published 3896), test 5 (published 977), test 0 1 (published 38)" in caplog.text


def test_a_second_start_reads_no_image(bci, monkeypatch):
    bci()
    monkeypatch.setattr("ihc2he.data.bci.read_image", lambda path: pytest.fail(f"read {path}"))
    bci()


def test_rebuilding_happens_once_per_run(bci, monkeypatch):
    data = bci(rebuild=True)
    monkeypatch.setattr("ihc2he.data.bci.read_image", lambda path: pytest.fail(f"read {path}"))
    data.prepare_data()  # as the Trainer does before its next stage


def test_a_changed_source_is_refused(bci, make_bci, tmp_path):
    bci()
    (tmp_path / "BCI_dataset/HE/train/00000_train_0.png").unlink()
    (tmp_path / "BCI_dataset/IHC/train/00000_train_0.png").unlink()
    with pytest.raises(DataError, match=r"2 removed \(he/train/00000_train_0\.png, ihc/train/00000_train_0\.png\)"):
        bci()


def test_a_store_works_without_its_source(bci, tmp_path):
    bci()
    (tmp_path / "BCI_dataset").rename(tmp_path / "elsewhere")
    data = BCIDataModule(root=str(tmp_path / "BCI_dataset"), store=str(tmp_path / "store"), crop_size=32, num_workers=0)
    data.prepare_data()
    data.setup()
    assert len(data.test_dataloader()) == 5
    (tmp_path / "elsewhere").rename(tmp_path / "BCI_dataset")
    bci()  # moved back, or to another disk: the names inside the dataset count


def test_without_data_it_says_where_to_get_it(tmp_path):
    (tmp_path / "BCI" / "Downloads").mkdir(parents=True)
    data = BCIDataModule(root=str(tmp_path / "BCI"), store=str(tmp_path / "store"))
    with pytest.raises(DataError) as caught:
        data.prepare_data()
    message = str(caught.value)
    for part in (
        "found: Downloads",
        "bci.grand-challenge.org",
        "non-commercial",
        "/HE/{train,test}/*.png",
        "data.root=",
    ):
        assert part in message
    assert not (tmp_path / "store").exists()


def test_setup_before_prepare_says_so(tmp_path):
    with pytest.raises(DataError, match="no tile store yet"):
        BCIDataModule(root=str(tmp_path), store=str(tmp_path / "store")).setup()


@pytest.mark.parametrize(("missing", "left"), [("IHC", "HE"), ("HE", "IHC")])
def test_a_tile_without_its_partner_is_named(make_bci, bci, missing, left):
    root = make_bci()
    (root / missing / "train" / "00004_train_1+.png").unlink()
    with pytest.raises(DataError, match=rf"{left}/train/00004_train_1\+\.png: its partner .*{missing}.* is missing"):
        bci()


def test_partners_of_unequal_size_are_named(make_bci, bci, make_tile, write_image, tmp_path):
    root = make_bci()
    write_image(root / "HE" / "train" / "00004_train_1+.png", make_tile(0, 48))
    with pytest.raises(DataError, match=r"IHC/train/00004_train_1\+\.png: 64x64 px, .*partner .*HE.* 48x48"):
        bci()
    assert not (tmp_path / "store" / "tiles.h5").exists()


def test_a_foreign_name_is_named(make_bci, bci, make_tile, write_image):
    root = make_bci()
    for stain in ("HE", "IHC"):
        write_image(root / stain / "train" / "image (1).png", make_tile(0))
    with pytest.raises(DataError, match=r"image \(1\)\.png: expected a name like 00012_train_3\+\.png"):
        bci()


def test_a_training_tile_in_the_test_folder_is_named(make_bci, bci):
    root = make_bci()
    for stain in ("HE", "IHC"):
        (root / stain / "train" / "00004_train_1+.png").rename(root / stain / "test" / "00004_train_1+.png")
    with pytest.raises(DataError, match=r"test/00004_train_1\+\.png: by its name a tile of train"):
        bci()


def test_single_tiles_are_not_taken_for_side_by_side_ones(make_bci, bci, make_tile, write_image):
    root = make_bci("side_by_side")
    write_image(root / "train" / "00004_train_1+.png", make_tile(0))
    with pytest.raises(DataError, match=r"00004_train_1\+\.png: 64x64 px; expected twice as wide as high, H&E left"):
        bci()


def test_a_corrupt_tile_is_named(make_bci, bci, tmp_path):
    path = make_bci() / "HE" / "train" / "00004_train_1+.png"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"HE/train/00004_train_1\+\.png: the PNG is truncated"):
        bci()


def test_tiles_smaller_than_the_crop_fail_before_training_only(bci):
    data = bci()
    data.crop_size = 65
    with pytest.raises(DataError, match=r"18 training tiles are smaller than the crop of 65 px.*ihc 64x64.*crop_size"):
        data.setup("fit")
    data.setup("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "level_balance"}, r"data\.sampler=level_balance: expected uniform or level_balanced"),
        ({"fraction": 0.0}, r"data\.fraction=0\.0: expected above 0 and at most 1"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0: expected"),
        ({"target_mpp": 0}, r"data\.target_mpp=0: expected um/px"),
        ({"mpp": 0.92}, r"data\.mpp=0\.92: expected 0\.46, .* for images of 0\.92 um/px pass data\.target_mpp=0\.92\."),
        ({"crop_size": 16}, r"data\.crop_size=16: expected at least 32 px"),
        ({"batch_size": 0}, r"data\.batch_size=0: expected at least 1"),
        ({"samples_per_epoch": 0}, r"data\.samples_per_epoch=0: expected"),
        ({"brightness_contrast": 2}, r"data\.brightness_contrast=2: expected"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        BCIDataModule(root="a", store="b", **arguments)


def test_a_batch_larger_than_an_epoch_is_refused(bci):
    with pytest.raises(ConfigError, match=r"data\.batch_size=19: an epoch has only 18 samples per process"):
        bci(batch_size=19).train_dataloader()


def test_simulated_tissue_and_its_store_may_lie_on_a_disk_that_can_only_be_read(tmp_path, bci, read_only):
    arguments = {"root": str(tmp_path / "sim"), "simulate": {"tiles": 6, "size": 64, "seed": 0}, "val_fraction": 0.3}
    bci(**arguments)
    before = {file: file.stat() for file in tmp_path.rglob("*")}
    read_only(tmp_path)
    assert len(bci(**arguments).tiles.rows) == 6
    assert {file: file.stat() for file in tmp_path.rglob("*")}.keys() == before.keys()
