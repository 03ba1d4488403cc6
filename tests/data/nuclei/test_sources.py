"""Several folders of annotated tiles that train together."""

import logging
from collections import Counter

import numpy as np
import pytest

from ihc2he.errors import ConfigError, DataError
from ihc2he.files import write_csv


def table(split=("train", "train", "train", "val", "val", "test"), mpp=0.25):
    return [{"name": str(k), "split": split[k], "um_per_px": mpp, "licence": "none"} for k in range(6)]


def names(data, split):
    return [data.tiles.rows[i]["name"] for i in data.records[split]]


@pytest.fixture
def roots(root, tmp_path, write_image, make_tile, labels):
    """The folder with types, one whose types are numbered otherwise, and one without types at another pixel size."""
    write_csv(root / "tiles.csv", [row | {"licence": "CC0" if k < 4 else "NC"} for k, row in enumerate(table())])
    inst, types = labels
    for k in range(2):
        write_image(tmp_path / "b" / "images" / f"{k}.png", make_tile(k, 48))
        write_image(tmp_path / "b" / "instances" / f"{k}.png", inst)
        write_image(tmp_path / "b" / "types" / f"{k}.png", np.array([0, 3, 1], np.uint8)[types])
    (tmp_path / "b" / "tiles.csv").write_text("name,split,source\n0,train,x\n1,val,y\n")
    write_image(tmp_path / "c" / "images" / "0.png", make_tile(0, 48))
    write_image(tmp_path / "c" / "instances" / "0.png", inst)
    (tmp_path / "c" / "tiles.csv").write_text("name,split,um_per_px\n0,train,0.5\n")
    return {
        "a": str(root),
        "b": {"root": str(tmp_path / "b"), "classes": ["square", "round", None]},
        "c": {"root": str(tmp_path / "c")},
    }


def test_several_folders_train_together_each_as_it_is(roots, prepared):
    data = prepared(root=roots, sampler="source_balanced", samples_per_epoch=600)
    assert names(data, "train") == ["a/0", "a/1", "a/2", "b/0", "c/0"]
    rows = {row["name"]: row for row in data.tiles.rows}
    assert [rows[name]["source"] for name in ("a/0", "b/0", "b/1", "c/0")] == ["a", "x", "y", "c"]
    assert rows["a/0"]["counts"] == {"round": 1, "square": 2}
    assert rows["b/0"]["counts"] == {"round": 0, "square": 2}  # the value 3 has no class
    assert rows["c/0"]["counts"] == {"round": 0, "square": 0}
    assert [rows[name]["shapes"]["image"][0] for name in ("a/0", "c/0")] == [48, 96]
    drawn = Counter(names(data, "train")[sample.index % 5] for sample in data.train_dataloader().sampler)
    origins = [drawn["a/0"] + drawn["a/1"] + drawn["a/2"], drawn["b/0"], drawn["c/0"]]
    assert all(150 < n < 250 for n in origins)
    batch = next(iter(data.train_dataloader()))
    assert batch["type"].shape == batch["inst"].shape
    prepared(root=roots)  # the store still fits


def test_folders_in_a_list_are_named_as_they_are(roots, prepared, root, tmp_path):
    data = prepared(root=[str(root), str(tmp_path / "c")], classes=None)
    assert names(data, "train") == ["nuclei/0", "nuclei/1", "nuclei/2", "c/0"]
    with pytest.raises(DataError, match=r"data\.root\.d: .*images is not there or holds no image"):
        prepared(root=[str(root), str(tmp_path / "d")])
    with pytest.raises(ConfigError, match=r"two folders have the same name\. Name them"):
        prepared(root=[str(root), str(tmp_path / "other" / "nuclei")])


def test_a_licence_can_be_asked_for(roots, prepared, root, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert names(prepared(where={"licence": "CC0"}), "train") == ["0", "1", "2"]
    assert not [said for said in caplog.messages if "columns that are not read" in said and "licence" in said]
    data = prepared(root=roots | {"a": {"root": str(root), "where": {"licence": ["NC"]}}}, store=str(tmp_path / "s"))
    assert [row["name"] for row in data.tiles.rows] == ["a/4", "a/5", "b/0", "b/1", "c/0"]
    with pytest.raises(DataError, match="built with other settings: roots"):
        prepared(where={"licence": "NC"})
    for where, message in (
        ({"licence": ["CC1"]}, r"no tile of .*tiles.csv has the licence 'CC1'\. Found: CC0, NC\."),
        ({"licenze": ["CC0"]}, r"tiles.csv has no column 'licenze'\. Did you mean 'licence'"),
        ({"licence": ["NC"], "split": ["train"]}, r"no tile of .*tiles.csv fits all of it"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepared(where=where, store=str(tmp_path / "t"))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"root": "b", "clases": []}, r"data\.root\.b: there is no key 'clases'.* Did you mean 'classes'"),
        ({"root": "b", "mpp": -1}, r"data\.root\.b\.mpp=-1: expected"),
        ({"root": "b", "classes": ["rund"]}, r"data\.root\.b\.classes: there is no 'rund' in data\.classes=.*'round'"),
        ({"mpp": 0.5}, r"data\.root\.b={'mpp': 0\.5}: expected a folder, or a mapping with root"),
    ],
)
def test_a_wrong_description_of_a_folder_is_named(prepared, node, message):
    with pytest.raises(ConfigError, match=message):
        prepared(root={"b": node})


def test_types_beyond_those_of_a_folder_are_named(roots, prepared):
    roots["b"]["classes"] = ["square", "round"]
    with pytest.raises(DataError, match=r"found type 3, but data\.root\.b\.classes names only 2: square, round"):
        prepared(root=roots)
