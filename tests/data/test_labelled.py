import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from ihc2he.data import pseudocases
from ihc2he.data.her2 import HER2DataModule
from ihc2he.data.labelled_tiles import LabelledTilesDataModule
from ihc2he.data.leaks import near_duplicates, thumbnails_of, warn_of_leaks
from ihc2he.data.origins import digests
from ihc2he.data.pseudocases import clustered
from ihc2he.data.splits import reduced, split_as_published, split_by_case
from ihc2he.errors import ConfigError, DataError
from ihc2he.simulate import write_bci

LEVELS = ["0", "1+", "2+", "3+"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("her2")
    write_bci(folder / "bci", tiles=32, size=32, seed=1, cases=16)
    return folder


@pytest.fixture
def her2(simulated):
    def make(prepare=True, **options):
        defaults = {"root": str(simulated / "bci"), "store": str(simulated / "store"), "size": 16, "num_workers": 0}
        data = HER2DataModule(**(defaults | {"batch_size": 4, "eval_batch_size": 4} | options))
        if prepare:
            data.prepare_data()
            data.setup()
        return data

    return make


def test_batches(her2):
    data = her2()
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"image", "label", "name", "case"}
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["label"].dtype == torch.int64
    assert [name.rsplit("_", 1)[1] for name in batch["name"]] == [f"{LEVELS[label]}.png" for label in batch["label"]]
    assert all(case.startswith("case_") for case in batch["case"])
    assert (data.info.classes, data.info.size, data.info.channels) == (LEVELS, 16, 3)
    assert data.info.mpp == pytest.approx(0.92)
    assert her2(prepare=False).info.mpp == pytest.approx(0.92)


def test_two_stains_are_six_channels(her2):
    both, ihc, he = (her2(stain=stain).part("test").image_nhwc for stain in ("both", "ihc", "he"))
    np.testing.assert_array_equal(both, np.concatenate([ihc, he], -1))
    batch = next(iter(her2(stain="both", rotate=20, crop=0.6, brightness_contrast=0.2).train_dataloader()))
    assert batch["image"].shape == (4, 6, 16, 16)


def test_augmentation_depends_on_seed_epoch_and_index_alone(her2):
    def epoch(number, **options):
        loader = her2(rotate=10, brightness_contrast=0.2, **options).train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([batch["image"] for batch in loader])

    torch.testing.assert_close(epoch(1), epoch(1), rtol=0, atol=0)
    assert (epoch(1) != epoch(2)).any()
    assert (epoch(1) != epoch(1, seed=1)).any()


def test_published_split_shares_cases_and_says_so(her2, caplog):
    data = her2()
    assert [name.split("_")[1] for name in data.part("test").names] == ["test"] * 6
    assert {*data.part("train").cases} & {*data.part("test").cases}
    assert "are in both train and test" in caplog.text


@pytest.mark.parametrize("split", ["cases", "pseudo_cases"])
def test_no_case_is_in_two_splits(her2, split, caplog):
    data = her2(split=split, val_fraction=0)
    cases = [{*data.part(part).cases} for part in ("train", "test")]
    assert sum(map(len, cases)) == len(set.union(*cases))
    assert all({*data.part(part).label_n} == {0, 1, 2, 3} for part in ("train", "test"))
    assert "are in both" not in caplog.text


def test_pseudo_cases_are_found_once_and_drawn(her2, simulated):
    data = her2(split="pseudo_cases", val_fraction=0)
    with (simulated / "store" / "pseudo_cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in data.tiles.rows]
    assert [row["case"][: -len(" 001")] for row in rows] == [row["group"] for row in data.tiles.rows]  # within a level
    assert (simulated / "store" / "pseudo_cases.png").is_file()
    assert [row["case"] for row in rows] == her2(split="pseudo_cases", val_fraction=0)._cases


def test_clusters_are_those_that_were_made():
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(5), 8)
    look_nqf = rng.normal(0, 10, (5, 1, 4))[true] + rng.normal(0, 0.3, (40, 4, 4))
    look_nqf[3, :, 2] = np.nan
    cases, quality = clustered(look_nqf, [""] * 40)
    assert len({*zip(cases, true.tolist(), strict=True)}) == len(set(cases)) == 5
    assert quality > 0.8


def test_shares_of_cases_and_tiles(her2):
    whole, half = (
        her2(split="cases", test_fraction=0.25, val_fraction=0.25),
        her2(split="cases", test_fraction=0.25, val_fraction=0.25, case_share=0.5),
    )
    assert len({*whole.part("train").cases}) == 8
    assert len({*half.part("train").cases}) == 4
    assert half.part("test").names == whole.part("test").names
    counts, reduced_counts = (her2(real_share=share).info.class_counts for share in (1, 0.5))
    assert sum(reduced_counts) == sum(counts) // 2
    assert all(abs(n - 2 * kept) <= 2 for n, kept in zip(counts, reduced_counts, strict=True))


def test_every_level_is_drawn_equally_often(her2):
    data = her2(sampler="level_balanced", samples_per_epoch=400, batch_size=100)
    labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
    assert len(labels) == 400
    assert (labels.bincount(minlength=4) > 70).all()


def test_near_duplicates_are_found_and_others_are_not(make_tile, caplog):
    tiles = np.stack([make_tile(k) for k in range(8)])
    noise = np.random.default_rng(0).normal(0, 4, tiles[0].shape)
    copy = np.clip(np.rot90(tiles[5], 1) * 0.9 + noise, 0, 255).astype(np.uint8)
    assert near_duplicates(thumbnails_of(tiles[:7]), thumbnails_of(np.stack([tiles[7], copy]))) == [(5, 1)]
    names = [f"{k}.png" for k in range(7)]
    parts = {"train": (tiles[:7], names, names), "test": (copy[None], ["copy.png"], ["6.png"])}
    warn_of_leaks(parts)
    assert "1 pairs of tiles of train and test are near-duplicates, such as 5.png and copy.png" in caplog.text
    assert "1 cases, such as 6.png, are in both train and test: 1 of 1 test tiles" in caplog.text


def test_splits_of_cases_need_cases(her2, tmp_path):
    with pytest.raises(DataError, match=r"data.cases=none.csv: there is no such file. Pass a CSV file"):
        her2(split="cases", cases="none.csv")
    empty = tmp_path / "cases.csv"
    empty.write_text("name,case\n")
    with pytest.raises(DataError, match=r"the case of 32 of 32 tiles is not known. Name them in .*cases.csv"):
        her2(split="cases", cases=str(empty))
    with pytest.raises(ConfigError, match="2 cases, one or two of a class, are too few for a val split"):
        split_by_case(["a", "b"], ["0", "0"], {"test": 0.2, "val": 0.2}, seed=0)
    assert reduced(range(3), ["", "", ""], ["0", "0", "1"], 0.5, seed=0) != [0, 1, 2]


def test_a_missing_split_is_one_of_cases_where_they_are_known(her2):
    data = her2(val_fraction=0.25)
    assert not {*data.part("train").cases} & {*data.part("val").cases}
    published, labels = ["train"] * 8 + ["test"], ["0"] * 9
    records = split_as_published(published, labels, {"test": 0.2, "val": 0.25}, seed=0, cases=[*"aabbccdda"])
    assert (len(records["train"]), len(records["val"]), records["test"]) == (6, 2, [8])
    assert records["val"][1] == records["val"][0] + 1  # both tiles of a case


def test_a_class_with_too_few_cases_for_a_split_is_named(caplog):
    split_by_case([*"abcde"], ["0", "0", "0", "3+", "3+"], {"test": 0.3, "val": 0.3}, seed=0)
    assert [record.getMessage()[:55] for record in caplog.records] == [
        "Class 3+ has no case in val: there are only 2. What is "
    ]


def test_a_share_of_tiles_keeps_every_class():
    labels = ["0"] * 20 + ["3+"]
    kept = reduced(range(21), [""] * 21, labels, 0.1, seed=0)
    assert 20 in kept
    assert len(kept) == 3


def test_a_size_beyond_the_tiles_is_refused(her2):
    with pytest.raises(ConfigError, match=r"data.size=64: the tiles .* are only 32 px wide"):
        her2(size=64)


@pytest.fixture
def synthetic(tmp_path, make_tile, write_image):
    rows = [f"{k:03d}.png,{LEVELS[k % 4]},{k}" for k in range(80)]
    for k in range(80):
        write_image(tmp_path / "made" / f"{k:03d}.png", make_tile(k, 16))
    (tmp_path / "made" / "manifest.csv").write_text("\n".join(["name,level,seed", *rows]) + "\n")
    return str(tmp_path / "made")


def test_synthetic_tiles_join_the_training(her2, synthetic, caplog):
    caplog.set_level(logging.INFO)
    real = her2().info.class_counts
    assert her2(synthetic=synthetic, synthetic_share=2).info.class_counts == [3 * n for n in real]
    assert "synthetic tiles" in caplog.text
    assert her2(synthetic=synthetic, synthetic_share="balance").info.class_counts == [max(real)] * 4
    only = her2(synthetic=synthetic, real_share=0)
    assert {*only.part("train").cases} == {"synthetic"}
    assert only.info.class_counts == real
    assert "synthetic" not in {*only.part("val").cases, *only.part("test").cases}
    with pytest.raises(DataError, match=r"manifest.csv: 20 tiles of level 0, \d+ are needed"):
        her2(synthetic=synthetic, synthetic_share=20)
    with pytest.raises(DataError, match=r"16x16 px, expected 32x32 or more .* Pass data.size=16 or less"):
        her2(synthetic=synthetic, size=32)
    with pytest.raises(DataError, match=r"expected 32x16 or more .*: the stains side by side. Pass the data.stain"):
        her2(synthetic=synthetic, stain="both")
    (Path(synthetic) / "manifest.csv").unlink()
    with pytest.raises(DataError, match=r"data.synthetic=.*/made: there is no .*manifest.csv. Pass a folder that"):
        her2(synthetic=synthetic)
    with pytest.raises(ConfigError, match="there is nothing to train on"):
        her2(real_share=0)


def trained_on(folder, digests):
    (Path(folder) / "trained_on.csv").write_text("\n".join(["digest", *digests]) + "\n")


def test_a_generator_that_was_trained_on_test_tiles_is_refused(her2, synthetic, caplog):
    split = {"split": "cases", "val_fraction": 0.25, "test_fraction": 0.25}
    generator = her2(**split, seed=5)
    trained_on(synthetic, generator.info.trained_on)
    joined = her2(**split, synthetic=synthetic, seed=6)
    assert {*joined.info.trained_on} == {*generator.info.trained_on}
    assert "it is not known on which tiles" not in caplog.text
    with pytest.raises(ConfigError, match=r"trained on \d+ of \d+ (val|test) tiles.* \(here cases\)"):
        her2(**split, split_seed=1, synthetic=synthetic)
    one = generator.part("test").cases[0]
    trained_on(synthetic, sorted(digests(["another tile"], [one])))
    n, of = generator.part("test").cases.count(one), len(generator.part("test"))
    with pytest.raises(ConfigError, match=f"was trained on {n} of {of} test tiles, or on tiles of their cases"):
        her2(**split, synthetic=synthetic)
    her2(synthetic=synthetic)  # the published split has cases on both sides anyway


def test_a_folder_that_does_not_say_what_its_generator_knows_gives_one_warning(her2, synthetic, caplog):
    her2(synthetic=synthetic)
    assert caplog.text.count("trained_on.csv: it is not known on which tiles the generator was trained") == 1


@pytest.mark.parametrize("split", ["published", "cases"])
def test_the_seed_of_a_training_does_not_change_the_split(her2, split):
    names = [her2(split=split, seed=seed, val_fraction=0.25).part("val").names for seed in (0, 1)]
    assert names[0] == names[1] != her2(split=split, split_seed=1, val_fraction=0.25).part("val").names


@pytest.fixture
def labelled(tmp_path, make_tile, write_image):
    def make(paths, **options):
        for k, path in enumerate(paths):
            write_image(tmp_path / "own" / path, make_tile(k, 32))
        defaults = {"root": str(tmp_path / "own"), "store": str(tmp_path / "store"), "mpp": 0.5, "target_mpp": 0.5}
        data = LabelledTilesDataModule(**(defaults | {"size": 16, "num_workers": 0, "batch_size": 2} | options))
        data.prepare_data()
        data.setup()
        return data

    return make


def test_a_folder_per_class(labelled):
    data = labelled([f"{kind}/{k}.png" for kind in ("low", "high") for k in range(10)], classes=["low", "high"])
    assert data.info.classes == ["low", "high"]
    assert {split: len(data.part(split)) for split in ("train", "val", "test")} == {"train": 14, "val": 2, "test": 4}
    assert all(
        (name.startswith("high")) == label
        for name, label in zip(data.part("train").names, data.part("train").label_n, strict=True)
    )


def test_folders_of_splits(labelled):
    data = labelled([f"{split}/{kind}/{k}.png" for split in ("train", "test") for kind in "ab" for k in range(4)])
    assert all(name.startswith("test/") for name in data.part("test").names)
    assert len(data.part("test")) == 8


def test_a_table_of_classes_and_cases(labelled, tmp_path):
    (tmp_path / "own").mkdir()
    rows = [f"{k}.png,{'ab'[k // 6]},case {k // 2}" for k in range(12)]
    (tmp_path / "own" / "tiles.csv").write_text("\n".join(["name,class,case", *rows]) + "\n")
    data = labelled([f"{k}.png" for k in range(12)], split="cases", test_fraction=0.3, val_fraction=0.3)
    assert [len({*data.part(split).cases}) for split in ("train", "val", "test")] == [2, 2, 2]


def test_a_table_only_adds_to_the_folders(labelled, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tiles.csv").write_text("name,case\na/0.png,first\n")
    data = labelled([f"{kind}/{k}.png" for kind in "ab" for k in range(6)])
    assert sorted((row["name"], row["case"]) for row in data.tiles.rows if row["group"] == "a")[:2] == [
        ("a/0", "first"),
        ("a/1", ""),
    ]
    assert len(data.tiles.rows) == 12


def test_names_of_classes_may_look_like_numbers(labelled):
    data = labelled([f"{kind}/{k}.png" for kind in ("0", "1+") for k in range(6)], classes=[0, "1+"])
    assert data.info.classes == ["0", "1+"]
    with pytest.raises(ConfigError, match=r"data.classes: the name '0' is repeated"):
        labelled([], classes=[0, "0"])


def test_a_store_with_other_classes_is_refused(labelled, tmp_path):
    labelled([f"{kind}/{k}.png" for kind in "ab" for k in range(6)])
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"data.classes=\['a', 'c'\]: .*tiles.h5 has tiles of b too. Name all"):
        labelled([], classes=["a", "c"])


def test_pseudo_cases_of_changed_tiles_are_found_again(labelled, tmp_path, make_tile, write_image, monkeypatch):
    paths = [f"{kind}/{k}.png" for kind in "ab" for k in range(4)]
    split = {"split": "pseudo_cases", "val_fraction": 0, "test_fraction": 0}
    first = labelled(paths, **split)
    table = tmp_path / "store" / "pseudo_cases.csv"
    before = table.read_text()
    for k, path in enumerate(paths):
        write_image(tmp_path / "own" / path, make_tile(50 + k, 32))
    again = labelled([], rebuild=True, **split)
    assert table.read_text() != before
    assert again.tiles.origin != first.tiles.origin
    table.unlink()

    def full(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(pseudocases, "write_csv", full)
    with pytest.raises(DataError, match=r"pseudo_cases.csv: could not be written \(Read-only .* Pass a data.store"):
        labelled([], **split)


def test_tiles_of_no_class_are_refused(labelled):
    with pytest.raises(DataError, match=r"0.png: its class is not known. Put it into a folder"):
        labelled(["0.png"])
