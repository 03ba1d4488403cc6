"""Annotated tiles of one folder: splits, pixel sizes, and files that are refused."""

import logging
from collections import Counter

import cv2
import numpy as np
import pytest
import tifffile

from ihc2he.data.nuclei import NucleiDataModule
from ihc2he.data.tables import read_table
from ihc2he.errors import ConfigError, DataError
from ihc2he.files import write_csv
from ihc2he.nuclei.decoders.hover import HoverDecoder
from ihc2he.simulate import write_nuclei


def table(split=("train", "train", "train", "val", "val", "test"), mpp=0.25):
    return [{"name": str(k), "split": split[k], "um_per_px": mpp, "licence": "none"} for k in range(6)]


def names(data, split):
    return [data.tiles.rows[i]["name"] for i in data.records[split]]


def test_a_table_names_the_splits(root, prepared, labels):
    write_csv(root / "tiles.csv", table())
    data = prepared()
    assert [names(data, split) for split in ("train", "val", "test")] == [["0", "1", "2"], ["3", "4"], ["5"]]
    batch = next(iter(data.test_dataloader()))
    assert batch["name"] == ["5"]
    assert batch["group"] == [""]
    inst_hw, types_hw = labels
    np.testing.assert_array_equal(batch["inst"][0], np.select([inst_hw == 3, inst_hw == 9, inst_hw == 700], [1, 2, 3]))
    np.testing.assert_array_equal(batch["type"][0], types_hw)
    assert (data.store_folder / "index.csv").read_text().splitlines()[1] == "0,train,,48,48,3,1,2"


@pytest.mark.parametrize(
    ("test_split", "expected"), [("val", ["3", "4"]), ("all", list("012345")), ("train", list("012"))]
)
def test_a_test_may_be_on_other_tiles(root, prepared, test_split, expected):
    write_csv(root / "tiles.csv", table())
    data = prepared(test_split=test_split)
    assert names(data, "test") == expected
    assert names(data, "train") == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            ["train"] * 4 + ["val"] * 2,
            r"nuclei: found no test tiles to test on .of 4 train, 2 val.\. Pass data\.test_split=val",
        ),
        (["train"] * 6, r"nuclei: found no test tiles to test on .of 6 train, 0 val.\. Pass stages=\[fit\]"),
    ],
)
def test_a_test_without_tiles_says_what_there_is(root, prepared, splits, message):
    write_csv(root / "tiles.csv", table(splits))
    with pytest.raises(DataError, match=message):
        prepared().test_dataloader()


def test_a_run_that_would_test_without_tiles_ends_before_it_trains(root, cli, tmp_path):
    settings = ("data.classes=[a,b]", "data.num_workers=0", "trainer=cpu", "logger=csv")
    write_csv(root / "tiles.csv", table(["train"] * 6))
    done = cli("experiment=nuclei_finetune", f"data.root={root}", "hydra.run.dir=run", *settings)
    assert done.status == 1
    assert "found no test tiles to test on" in done.err
    assert not list(tmp_path.glob("run/**/*.ckpt"))


def test_without_a_table_fractions_are_held_out(root, prepared):
    data = prepared(val_fraction=0.4, test_fraction=0.2)
    assert Counter({s: len(r) for s, r in data.records.items()}) == {"train": 3, "val": 2, "test": 1}
    assert sorted(i for records in data.records.values() for i in records) == list(range(6))
    assert prepared(val_fraction=0.4, test_fraction=0.2).records == data.records
    assert prepared(val_fraction=0.4, test_fraction=0.2, seed=1).records != data.records


def test_tissues_come_from_the_table(root, prepared):
    write_csv(root / "tiles.csv", [{"name": f"{k}.png", "tissue": "Colon" if k % 2 else "Breast"} for k in range(6)])
    data = prepared(val_fraction=0.4, test_fraction=0)
    assert sorted(data.tiles.rows[i]["group"] for i in data.records["val"]) == ["Breast", "Colon"]
    assert next(iter(data.val_dataloader()))["group"][0] in ("Breast", "Colon")


def test_without_classes_there_are_no_types(root, prepared, caplog):
    with caplog.at_level(logging.WARNING):
        data = prepared(classes=None, decoder=HoverDecoder())
    assert data.classes == []
    assert set(next(iter(data.train_dataloader()))) == {"image", "inst", "hv"}
    assert set(next(iter(data.test_dataloader()))) == {"image", "inst", "name", "group"}
    assert "types is not used: data.classes names no types" in caplog.text


def test_each_tile_is_resampled_from_its_own_pixel_size(root, prepared):
    rows = table()
    rows[5]["um_per_px"], rows[4]["um_per_px"] = 0.5, 0.125
    write_csv(root / "tiles.csv", rows)
    data = prepared(test_split="all")
    batches = {batch["name"][0]: batch for batch in data.test_dataloader()}
    for name, factor in (("0", 1), ("5", 2), ("4", 0.5)):
        batch = batches[name]
        assert batch["image"].shape[-1] == batch["inst"].shape[-1] == 48 * factor
        for field in ("inst", "type"):
            assert [(batch[field] == k).sum() for k in (1, 2)] == [
                n * factor**2 for n in ((144, 144) if field == "inst" else (144, 160))
            ]


def test_nuclei_that_vanish_are_counted_and_told(root, prepared, labels, caplog, write_image):
    inst = labels[0].copy()
    inst[1, 3] = 44  # one pixel
    write_image(root / "instances" / "2.png", inst)
    data = prepared(target_mpp=1.0, classes=None, crop_size=8)
    assert "1 of 19 nuclei are smaller than a pixel of 1 um and are lost" in caplog.text
    assert (data.store_folder / "index.csv").read_text().splitlines()[3] == "2,,,12,12,3,1"


def test_a_mask_may_be_a_tiff_of_many_nuclei(root, prepared):
    inst = np.arange(48 * 48, dtype=np.int32).reshape(48, 48) + 70_000
    tifffile.imwrite(root / "instances" / "0.tif", inst)
    (root / "instances" / "0.png").unlink()
    data = prepared(classes=None, test_split="all")
    assert next(iter(data.test_dataloader()))["inst"].max() == 48 * 48


def write_png(root, name, array):
    cv2.imwrite(str(root / name), array)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "instances/3.png").unlink(), r"instances: has no 3 \(1 such\)"),
        (lambda r: (r / "images/3.png").unlink(), r"instances: has a superfluous 3 \(1 such\)"),
        (lambda r: (r / "types/3.png").unlink(), r"types: has no 3 \(1 such\)"),
        (lambda r: (r / "images/3.png").rename(r / "images/0.jpg"), r"images/0\.png: there is also 0\.jpg"),
        (
            lambda r: write_png(r, "instances/3.png", np.zeros((48, 40), np.uint16)),
            r"3\.png: 40x48 px, but its image .* 48x48",
        ),
        (
            lambda r: write_png(r, "instances/3.png", np.zeros((48, 48, 3), np.uint8)),
            r"3\.png: found an array of shape \(48, 48, 3\)",
        ),
        (
            lambda r: write_png(r, "types/3.png", np.full((48, 48), 3, np.uint8)),
            r"types/3\.png: found type 3, but data\.classes names only 2: round, square",
        ),
        (
            lambda r: write_png(r, "types/3.png", np.zeros((48, 48), np.uint8)),
            r"types/3\.png: 304 pixels of nuclei have no type, and 0 pixels outside",
        ),
        (
            lambda r: write_png(r, "types/3.png", np.ones((48, 48), np.uint8)),
            r"types/3\.png: 0 pixels of nuclei have no type, and 2000 pixels outside",
        ),
        (lambda r: (r / "instances/3.png").write_bytes(b""), r"instances/3\.png: the file is empty"),
        (
            lambda r: (r / "instances/3.png").write_bytes((r / "instances/3.png").read_bytes()[:-20]),
            r"3\.png: the PNG is truncated",
        ),
        (
            lambda r: (r / "instances/3.png").write_bytes(cv2.imencode(".jpg", np.ones((48, 48), np.uint8))[1]),
            r"3\.png: JPEG changes the values",
        ),
    ],
)
def test_what_does_not_fit_is_named(root, prepared, tmp_path, spoil, message):
    spoil(root)
    with pytest.raises(DataError, match=message):
        prepared()
    assert not (tmp_path / "store" / "tiles.h5").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(split="training"), r"tiles\.csv: 0: split 'training', expected train, val, test"),
        (lambda rows: rows[0].update(split=""), r"tiles\.csv: 1 tiles have no split, such as 0"),
        (
            lambda rows: rows[0].update(um_per_px="40x"),
            r"tiles\.csv: um_per_px '40x' for 0\.png, expected um/px from 0.01 to 100",
        ),
        (
            lambda rows: rows[0].update(um_per_px="inf"),
            r"tiles\.csv: um_per_px 'inf' for 0\.png, expected um/px from 0.01 to 100",
        ),
        (
            lambda rows: rows[0].update(um_per_px=0),
            r"tiles\.csv: um_per_px '0' for 0\.png, expected um/px from 0.01 to 100",
        ),
        (lambda rows: rows.pop(0), r"tiles\.csv: has no 0 \(1 such\)"),
        (
            lambda rows: rows[0].update(name="7"),
            r"tiles\.csv, line 2: there is no image '7' below .*nuclei\. Known: 0, 1",
        ),
        (lambda rows: rows[0].update(name=" 0"), r"line 2: there is no image ' 0' below .*Did you mean '0'\?"),
        (lambda rows: [row.update(Split=row.pop("split")) for row in rows], r"column 'Split' .*Did you mean 'split'\?"),
        (lambda rows: [row.update(mpp=row.pop("um_per_px")) for row in rows], r"column 'mpp' .*mean 'um_per_px'\?"),
        (lambda rows: rows[0].update(um_per_px="0,25"), r"um_per_px '0,25' for 0\.png.* Write 0\.25, with a point"),
        (lambda rows: rows[0].update(name="1.png"), r"tiles\.csv: 1 comes twice"),
        (lambda rows: [row.pop("name") for row in rows], r"tiles\.csv: found the columns split, .*called name"),
    ],
)
def test_a_wrong_table_is_named(root, prepared, change, message):
    rows = table()
    change(rows)
    write_csv(root / "tiles.csv", rows)
    with pytest.raises(DataError, match=message):
        prepared()


def test_a_changed_table_is_noticed(root, prepared):
    write_csv(root / "tiles.csv", table())
    prepared()
    write_csv(root / "tiles.csv", table(["train"] * 5 + ["test"]))
    with pytest.raises(DataError, match=r"1 changed \(tiles\.csv\).*data\.rebuild=true"):
        prepared()
    assert len(prepared(rebuild=True).records["train"]) == 5


def test_the_pixel_size_must_be_known(root, prepared):
    with pytest.raises(ConfigError, match=r"data\.mpp=null: the pixel size of .*images/0\.png is not known"):
        prepared(mpp=None)


def test_files_that_state_another_pixel_size_are_told_once_in_a_run(root, prepared, make_tile, caplog):
    (root / "images" / "0.png").unlink()
    tifffile.imwrite(
        root / "images" / "0.tif", make_tile(0, 48), photometric="rgb", ome=True,
        metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )  # fmt: skip
    prepared().prepare_data()  # of the next stage
    assert caplog.text.count("1 of 6 images state another pixel size") == 1
    assert "0.tif states 0.5 um/px, 0.25 is used" in caplog.text


@pytest.mark.parametrize(
    ("former", "mpp", "target"),
    [({"mpp_files": 0.5}, 0.5, 0.25), ({"mpp_files": 0.5, "mpp": 1.0}, 0.5, 1.0),
     ({"mpp_files": 0.5, "target_mpp": 0.5}, 0.5, 0.5)],
)  # fmt: skip
def test_the_former_names_of_pixel_sizes_are_understood_and_said(caplog, former, mpp, target):
    data = NucleiDataModule(root="a", store="b", **former)
    assert (data.mpp, data.target_mpp, data.info.mpp) == (mpp, target, target)
    assert f"understood as data.mpp={mpp:g} data.target_mpp={target:g}." in caplog.text


def test_a_pixel_size_that_no_file_has_is_an_error_that_names_the_other_key(root, prepared):
    write_csv(root / "tiles.csv", table())
    with pytest.raises(ConfigError, match=r"data\.mpp=0\.5: .*tiles\.csv tells .* such as 0\.25 of 0.*target_mpp=0\.5"):
        prepared(mpp=0.5)
    assert prepared(mpp=0.25).target_mpp == 0.25


def test_without_data_it_says_what_is_expected(tmp_path, prepared):
    with pytest.raises(DataError, match=r"nuclei/images is not there(.|\n)*instances/\*\.png(.|\n)*tiles\.csv"):
        prepared()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_split": "both"}, r"data\.test_split=both: expected train or val or test or all"),
        ({"mpp": 0.0}, r"data\.mpp=0\.0: expected"),
        ({"mpp_files": 0.0}, r"data\.mpp_files=0\.0: expected"),
        (
            {"mpp_files": 0.5, "mpp": 0.5, "target_mpp": 1.0},
            r"data\.mpp_files=0\.5, .*former and present names together",
        ),
        ({"target_mpp": 0}, r"data\.target_mpp=0: expected"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0: expected"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        NucleiDataModule(root="a", store="b", **arguments)


def test_names_may_hold_dots(tmp_path):
    (tmp_path / "tiles.csv").write_bytes(b"\xef\xbb\xbfname,split\nS.12.3,train\nS.12.4.png,val\n")  # as Excel saves
    assert list(read_table(tmp_path / "tiles.csv")) == ["S.12.3", "S.12.4"]


def test_a_simulated_tree_works_as_it_is(tmp_path, prepared):
    write_nuclei(tmp_path / "nuclei", tiles=15, size=40)
    data = prepared(classes=["a", "b", "c", "d", "e"], mpp=None)
    assert (len(data.records["train"]), len(data.records["val"])) == (12, 3)
    assert next(iter(data.train_dataloader()))["type"].shape == (2, 32, 32)


@pytest.mark.parametrize(
    ("folder", "classes", "train", "val", "nuclei"),
    [
        ("he_nuclei", None, 31, 7, 5761),
        ("he_nuclei_typed", ["epithelial", "lymphocyte", "macrophage", "neutrophil"], 18, 3, 3603),
    ],
)
def test_real_tiles_work_as_they_are(realdata, prepared, folder, classes, train, val, nuclei):
    data = prepared(root=str(realdata / folder), classes=classes, mpp=None, crop_size=256, test_split="val")
    assert [len(data.records[split]) for split in ("train", "val", "test")] == [train, val, val]
    assert sum(row["nuclei"] for row in data.tiles.rows) == nuclei
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 256, 256)
    assert 0.05 < (batch["inst"] > 0).float().mean() < 0.7
    for batch in data.test_dataloader():
        nucleus, around = (batch["image"][0, 0][mask].mean() for mask in (batch["inst"][0] > 0, batch["inst"][0] == 0))
        assert nucleus < around, "nuclei are darker in red"
        if classes:
            assert ((batch["type"] > 0) == (batch["inst"] > 0)).all()


def squares(values):
    """Return a map with squares of 6 px in a row of each value, 2 px apart."""
    inst = np.zeros((48, 48), np.uint16)
    for k, value in enumerate(values):
        inst[10:16, 8 * k : 8 * k + 6] = value
    return inst


@pytest.mark.parametrize("values", [[255, 255], [255] * 5, [1] * 3, [1, 1, 1, 2, 2]])
def test_masks_that_mark_nuclei_alike_are_refused_or_split(root, prepared, write_image, values):
    write_image(root / "instances" / "3.png", squares(values))
    with pytest.raises(
        DataError,
        match=rf"instances/3\.png: found {len(values)} separate pieces, but only {len(set(values))} values .*"
        r"pass data\.binary_masks=split",
    ):
        prepared(classes=None)
    data = prepared(classes=None, binary_masks="split", test_split="all")
    batch = next(batch for batch in data.test_dataloader() if batch["name"] == ["3"])
    assert batch["inst"].unique().tolist() == list(range(len(values) + 1))


@pytest.mark.parametrize("values", [[1], [255], [1, 1], [7, 7, 8], [1, 2, 255, 255], []])
def test_a_nucleus_cut_in_two_and_stray_pixels_pass(root, prepared, write_image, values):
    inst = squares(values)
    if values:
        inst[40, ::3] = values[0]  # stray pixels
    write_image(root / "instances" / "3.png", inst)
    data = prepared(classes=None, test_split="all")
    batch = next(batch for batch in data.test_dataloader() if batch["name"] == ["3"])
    assert batch["inst"].max() == len(set(values))
    with pytest.raises(DataError, match=r"binary_masks: built with None, now 'split'"):
        prepared(classes=None, binary_masks="split")
