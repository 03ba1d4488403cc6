import io
import logging
import os
import zipfile
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

from ihc2he.data import download as download_module
from ihc2he.data import endonuke as module
from ihc2he.data.endonuke import EndoNukeDataModule, id_blocks, parse_ids
from ihc2he.errors import ConfigError, DataError

# Which annotators of which split labelled each tile; point k of a file is (k, its number in this table, k % 3).
LABELS = {
    "bulk/stud1": (321, 322, 668),
    "bulk/ptg3": (669,),
    "hidden_agreement/ptg1": (4600,),
    "hidden_agreement/ptg2": (4600,),
    "hidden_agreement/stud1": (4600,),
    "posterior_agreement/stud1": (669, 4600),
}
UNIQUE = ("bulk/stud1", "bulk/ptg3", "hidden_agreement/ptg2")


@pytest.fixture
def root(tmp_path, write_image):
    """A tree of five tiles in the published layout, without lists; tile 668 is at 0.25 um/px."""
    root = tmp_path / "endonuke"
    for number in {number for numbers in LABELS.values() for number in numbers}:
        side = 400 if number == 668 else 200
        write_image(root / "dataset" / "images" / f"{number}.png", np.full((side, side, 3), number % 251, np.uint8))
    for row, (reader, numbers) in enumerate(LABELS.items()):
        for number in numbers:
            path = root / "dataset" / "labels" / reader / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{k} {row} {k % 3}\n" for k in range(row + 3)))
    return root


@pytest.fixture
def listed(root):
    """The same tree with the lists of three master files."""
    lists = root / "dataset" / "files_lists"
    for reader, numbers in LABELS.items():
        path = lists / f"{reader}_labels.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"./data/dataset/labels/{reader}/{number}.txt\n" for number in numbers))
    (root / "master_ymls").mkdir()
    agreement = [reader for reader in LABELS if "agreement" in reader]
    for name, readers in {"unique": UNIQUE, "agreement": agreement, "everything": LABELS}.items():
        above = "" if name == "unique" else "data/dataset/"
        names = "".join(f"- {above}files_lists/{reader}_labels.txt\n" for reader in readers)
        (root / "master_ymls" / f"{name}.yaml").write_text(f"images_lists: []\nlabels_lists:\n{names}")
    return root


def ready(root, **arguments):
    data = EndoNukeDataModule(root=str(root), **({"num_workers": 0} | arguments))
    data.prepare_data()
    data.setup()
    return data


def tiles(root, **arguments):
    return {int(tile.name): tile for tile in ready(root, **arguments).tiles["test"]}


def row_of(tile):
    """The row of LABELS that the reference of a tile is from."""
    return int(tile.points_n3[0, 1])


def label(root, number, reader="bulk/stud1"):
    return root / "dataset" / "labels" / reader / f"{number}.txt"


def test_a_batch_is_a_dict_of_lists(root):
    data = ready(root, ids=["321-668"], batch_size=3)
    (batch,) = data.test_dataloader()
    assert set(batch) == {"name", "group", "image", "mpp", "points", "readers", "second_readings"}
    assert batch["name"] == ["321", "322", "668"]
    assert batch["group"] == ["321-322", "321-322", "668-669"]
    assert batch["mpp"] == [0.5, 0.5, 0.25]
    assert [image.shape for image in batch["image"]] == [(200, 200, 3)] * 2 + [(400, 400, 3)]
    assert batch["image"][1][0, 0].tolist() == [71, 71, 71]
    assert batch["points"][0].tolist() == [[0, 0, 0], [1, 0, 1], [2, 0, 2]]
    assert batch["points"][0].dtype == np.int64
    assert list(batch["readers"][0]) == ["stud1"]
    assert (data.classes, data.truth_classes) == (["stroma", "epithelium", "other"], [])


def test_the_folder_above_will_do(root, tmp_path):
    (tmp_path / "above").mkdir()
    root.rename(tmp_path / "above" / "data")
    assert len(tiles(tmp_path / "above")) == 5


def test_without_lists_the_reference_is_a_pathologists(root):
    found = tiles(root)
    assert sorted(found) == [321, 322, 668, 669, 4600]
    assert row_of(found[669]) == 1, "ptg3, not stud1"
    assert row_of(found[4600]) == 2, "ptg1, the first by name"
    assert list(found[4600].readers) == ["ptg1", "ptg2", "stud1", "stud1 (posterior_agreement)"]
    assert found[4600].second_readings == ("stud1 (posterior_agreement)",)
    assert found[4600].points_n3.tolist() == found[4600].readers["ptg1"].tolist()


def test_the_reference_is_the_one_in_the_list_of_unique_tiles(listed):
    found = tiles(listed)
    assert sorted(found) == [321, 322, 668, 669, 4600]
    assert row_of(found[4600]) == 3, "ptg2, as listed"
    assert list(found[4600].readers) == ["ptg2", "ptg1", "stud1", "stud1 (posterior_agreement)"]
    assert [len(points) for points in found[4600].readers.values()] == [6, 5, 7, 8]


@pytest.mark.parametrize(
    ("subset", "rows"),
    [
        ("everything", {321: 0, 322: 0, 668: 0, 669: 1, 4600: 3}),
        ("agreement", {669: 5, 4600: 3}),
        ("posterior_agreement", {669: 5, 4600: 5}),  # a folder of labels that no list is named after
        ("bulk", {321: 0, 322: 0, 668: 0, 669: 1}),
    ],
)
def test_a_subset_chooses_tiles_and_reference(listed, subset, rows):
    assert {number: row_of(tile) for number, tile in tiles(listed, subset=subset).items()} == rows


def test_an_unknown_subset_is_told_with_the_nearest(listed):
    with pytest.raises(
        ConfigError, match=r"data\.subset=hidden_agree: .* has no such list or split\. Did you mean 'hidden_"
    ):
        ready(listed, subset="hidden_agree")


def test_annotators_leave_out_all_others(listed):
    found = tiles(listed, annotators=["stud1"], subset="everything")
    assert sorted(found) == [321, 322, 668, 669, 4600]
    assert row_of(found[669]) == 5
    assert list(found[4600].readers) == ["stud1", "stud1 (posterior_agreement)"]
    assert sorted(tiles(listed, annotators=["stud1"])) == [321, 322, 668], "of the unique labels"
    with pytest.raises(ConfigError, match=r"annotators with labels\. Did you mean 'stud1'"):
        ready(listed, annotators=["stud9"])


def test_tiles_to_validate_on_are_not_tested_on(root):
    data = ready(root, val_ids=["300-400"])
    assert [tile.name for tile in data.tiles["test"]] == ["668", "669", "4600"]
    (batch,) = data.val_dataloader()
    assert batch["name"] == ["321", "322"]
    with pytest.raises(ConfigError, match="nothing to validate on"):
        ready(root).val_dataloader()
    with pytest.raises(ConfigError, match=r"data\.ids and data\.val_ids share 1 tiles, such as 322"):
        ready(root, ids=["322-700"], val_ids=["300-400"])
    with pytest.raises(ConfigError, match=r"no tile to test on is left of 5"):
        ready(root, val_ids=["1-9999"])
    with pytest.raises(ConfigError, match=r"no tile to test on is left of 5"):
        ready(root, ids=[])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, r"data\.ids: there is no tile 5 with labels in this subset, which has 3 numbers from 2 to 9"),
        ("10-20", r"there is no tile 10-20"),
        ("9-2", r"there is no tile 9-2"),
        ("2-", r"'2-' is neither a number nor a range such as 321-456"),
        (-2, r"-2 is neither"),
        (2.0, r"2\.0 is neither"),
    ],
)
def test_ids_that_name_no_tile(entry, message):
    assert parse_ids("ids", ["2-3", "9", 2], [9, 2, 3]) == [2, 3, 9]
    with pytest.raises(ConfigError, match=message):
        parse_ids("ids", [entry], [2, 3, 9])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": "321-456"}, r"data\.ids=321-456: expected a list: data\.ids=\[321-456\]"),
        ({"val_ids": 7}, r"data\.val_ids=7: expected a list"),
        ({"annotators": "ptg1"}, r"data\.annotators=ptg1: expected a list"),
        ({"bad_labels": "drop"}, r"data\.bad_labels=drop: expected error or repeated or skip"),
        ({"mpp": 0}, r"data\.mpp=0: expected um/px from 0.01 to 100"),
    ],
)
def test_values_outside_of_their_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        EndoNukeDataModule(root="x", **arguments)


def test_blocks_are_runs_of_numbers():
    assert id_blocks([1, 50, 100, 149]) == {1: "1-50", 50: "1-50", 100: "100-149", 149: "100-149"}
    assert id_blocks([]) == {}


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("text", "message", "kept"),
    [
        (
            "1 2\n",
            r"321\.txt, line 1: '1 2', expected whole numbers x y class\. Correct it, or pass data\.bad_labels=skip",
            [],
        ),
        ("5 5 0\n1.5 2 0\n", r"line 2: '1\.5 2 0', expected whole numbers", [[5, 5, 0]]),
        ("1,2,0\n", r"line 1: '1,2,0'", []),
        ("\n5 5 0\n\n1 2 3\n", r"line 4: class 3, expected 0 stroma, 1 epithelium, 2 other", [[5, 5, 0]]),
        ("200 5 0\n", r"line 1: point \(200, 5\) lies outside of its tile of 200x200 px", []),
        ("5 -1 0\n", r"point \(5, -1\) lies outside", []),
        ("1_0 5 0\n", r"line 1: '1_0 5 0', expected whole numbers", []),
        ("\u0663 5 0\n", r"line 1: '\u0663 5 0', expected whole numbers", []),
        (f"{10**30} 5 0\n", r"line 1: '10+ 5 0', expected whole numbers", []),
    ],
)
def test_a_bad_line_is_an_error_or_left_out(root, caplog, text, message, kept):
    label(root, 321).write_text(text)
    with pytest.raises(DataError, match=message):
        ready(root)
    assert tiles(root, bad_labels="skip")[321].points_n3.tolist() == kept
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "left out 1 " in warning.getMessage()


def test_a_repeated_point_is_left_out_unless_that_is_an_error(root, caplog):
    label(root, 321).write_text("5 6 0\n5 6 0\n5 6 1\n7 7 2\n5 6 0\n")
    assert tiles(root)[321].points_n3.tolist() == [[5, 6, 0], [5, 6, 1], [7, 7, 2]]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "left out 2 repeated points, such as" in warning.getMessage()
    assert "321.txt, line 2: point (5, 6) repeats line 1" in warning.getMessage()
    with pytest.raises(DataError, match=r"321\.txt, line 2: point \(5, 6\) repeats line 1\. Correct it"):
        ready(root, bad_labels="error")


def test_an_empty_label_file_is_a_tile_without_nuclei(root):
    label(root, 321).write_text("")
    assert tiles(root)[321].points_n3.shape == (0, 3)


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(root):
    label(root, 321).write_bytes(b"\xef\xbb\xbf5 6 0\r\n7 7 1\r8 8 1")
    assert tiles(root)[321].points_n3.tolist() == [[5, 6, 0], [7, 7, 1], [8, 8, 1]]


def test_a_label_that_is_no_file_is_not_waited_for(root):
    label(root, 321).unlink()
    os.mkfifo(label(root, 321))
    with pytest.raises(DataError, match=r"321\.png: there is no label file of tile 321"):
        ready(root)


@pytest.mark.parametrize("text", ["{", "{}", '{"size": "big"}', "[]", '{"size": 0}'])
def test_a_damaged_note_of_the_simulator_is_named(root, text):
    (root / "truth").mkdir()
    (root / "truth" / "simulation.json").write_text(text)
    with pytest.raises(DataError, match=r"simulation\.json: no size of the tiles can be read.*simulate it again"):
        ready(root)


def test_a_missing_partner_is_an_error_or_left_out(root, caplog):
    (root / "dataset" / "images" / "321.png").unlink()
    with pytest.raises(DataError, match=r"321\.txt: there is no image of tile 321"):
        ready(root)
    label(root, 322).unlink()
    assert sorted(tiles(root, bad_labels="skip")) == [668, 669, 4600]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 labels without an image" in warning.getMessage()
    assert "1 images without a label" in warning.getMessage()
    assert "322.png: there is no label file of tile 322" in warning.getMessage()


def test_a_listed_label_that_is_not_there(listed, caplog):
    label(listed, 4600, "hidden_agreement/ptg2").unlink()
    with pytest.raises(DataError, match=r"the list unique names hidden_agreement/ptg2/4600\.txt, which is missing"):
        ready(listed)
    assert sorted(tiles(listed, bad_labels="skip")) == [321, 322, 668, 669]
    assert "1 listed labels without a file" in caplog.text
    assert len(tiles(listed, annotators=["stud1"])) == 3, "of others nothing is missed"


def test_damaged_lists_are_named(listed):
    path = listed / "dataset" / "files_lists" / "bulk" / "stud1_labels.txt"
    path.write_text("321\n")
    with pytest.raises(DataError, match=r"stud1_labels\.txt: found '321', expected label files such as"):
        ready(listed)
    path.unlink()
    with pytest.raises(DataError, match=r"unique\.yaml: its list .*stud1_labels\.txt is not below"):
        ready(listed)
    for text in ("labels: []\n", "[", "- 1\n", "labels_lists: all\n", "labels_lists: 3\n", "labels_lists: [3]\n"):
        (listed / "master_ymls" / "unique.yaml").write_text(text)
        with pytest.raises(DataError, match=r"unique\.yaml: (no list labels_lists can be read|labels_lists is)"):
            ready(listed)


def test_names_are_numbers(root):
    label(root, 321).rename(label(root, "notes"))
    with pytest.raises(DataError, match=r"notes\.txt: expected the number of a tile as its name, such as 321\.txt"):
        ready(root)


def test_a_tile_of_another_size_needs_its_pixel_size(root, write_image):
    write_image(root / "dataset" / "images" / "322.png", np.zeros((256, 256, 3), np.uint8))
    with pytest.raises(DataError, match=r"322\.png: 256x256 px, expected 200x200 or 400x400: 100 um.*data\.mpp"):
        ready(root)
    assert tiles(root, mpp=0.39)[322].mpp == 0.39
    write_image(root / "dataset" / "images" / "322.png", np.zeros((200, 195, 3), np.uint8))
    with pytest.raises(DataError, match="195x200 px"):
        ready(root)
    write_image(root / "dataset" / "images" / "322.png", np.zeros((200, 203, 3), np.uint8))
    assert tiles(root)[322].mpp == pytest.approx(0.4926, abs=1e-4)  # 100 um / 203 px, within 2 % of 0.5


def test_a_damaged_image_is_named_when_it_is_read(root):
    path = root / "dataset" / "images" / "322.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"322\.png: the PNG is truncated"):
        list(ready(root, num_workers=1).test_dataloader())


def test_no_dataset_tells_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"not found under .*none \(found: no folder\)[\s\S]*data\.download=true"):
        ready(tmp_path / "none")


def test_ranks_share_the_tiles_without_repeating_any(root):
    data = ready(root)
    seen = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        seen += [name for batch in data.test_dataloader() for name in batch["name"]]
    assert sorted(map(int, seen)) == [321, 322, 668, 669, 4600]


# ---------------------------------------------------------------------- downloaded


@pytest.fixture
def server(root, monkeypatch):
    """A server of the tree as data.zip, whose first answer breaks off in the middle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, f"data/{path.relative_to(root)}")
    state = SimpleNamespace(content=buffer.getvalue(), asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            self.wfile.write(state.content[start:] if wanted else state.content[:1000])

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{http.server_port}/data.zip")
    monkeypatch.setattr(download_module, "WAIT", 0)
    monkeypatch.setenv("no_proxy", "*")
    yield state
    http.shutdown()
    http.server_close()


def test_a_download_goes_on_where_it_broke_and_happens_once(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    home = tmp_path / "fetched"
    assert len(tiles(home, download=True)) == 5
    assert server.asked == [None, "bytes=1000-"]
    assert "EndoNuke is licensed CC BY 4.0" in caplog.text
    assert (home / "data.zip.sha256").read_text().split()[0] == sha256(server.content).hexdigest()
    assert sorted(path.name for path in home.iterdir()) == ["data", "data.zip", "data.zip.sha256"]
    ready(home, download=True)
    assert len(server.asked) == 2


def test_a_damaged_archive_leaves_no_tree(server, tmp_path):
    server.content = server.content[:-100] + bytes(100)
    with pytest.raises(DataError, match=r"data\.zip: damaged"):
        ready(tmp_path / "fetched", download=True)
    assert not (tmp_path / "fetched" / "data").exists()
