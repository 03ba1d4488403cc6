import logging
import os
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from ihc2he.data.store import Record, Skipped, TileStore, check_store, map_in_threads, write_store
from ihc2he.errors import DataError

SETTINGS = {"mpp": 0.5}


@pytest.fixture
def sources(tmp_path):
    files = {f"he/{k}.png": tmp_path / "raw" / f"{k}.png" for k in range(4)}
    for k, file in enumerate(files.values()):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes([k]) * 100)
    return files


def load(k):
    image = np.random.default_rng(k).integers(0, 256, (300, 200, 3), np.uint8)
    return Record({"image": image, "instances": image[..., 0].astype(np.int32) * 1000}, {"name": f"{k}.png"})


@pytest.fixture
def path(tmp_path, sources):
    write_store(tmp_path / "store" / "tiles.h5", range(4), load, sources, SETTINGS)
    return tmp_path / "store" / "tiles.h5"


def test_arrays_of_any_type_come_back(path):
    store = TileStore(path)
    assert [row["name"] for row in store.rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert store.rows[0]["shapes"] == {"image": [300, 200, 3], "instances": [300, 200]}
    expected = load(2).arrays
    np.testing.assert_array_equal(store.read(2, "image"), expected["image"])
    np.testing.assert_array_equal(store.read(2, "instances"), expected["instances"])
    assert store.read(2, "instances").dtype == np.int32
    window = (slice(100, 228), slice(50, 178))
    np.testing.assert_array_equal(store.read(2, "image", window), expected["image"][window])


def test_a_crop_touches_few_chunks(path):
    with h5py.File(path) as file:
        assert file["image/000000"].chunks == (100, 100, 3), "equal parts, none above 128, nothing padded"
        assert file["instances/000000"].chunks == (100, 100)


def test_the_build_leaves_nothing_but_the_store(path):
    assert [file.name for file in path.parent.iterdir()] == ["tiles.h5"]


def test_a_failing_build_leaves_nothing(tmp_path, sources):
    def fail(k):
        if k == 2:
            msg = "2.png: broken"
            raise DataError(msg)
        return load(k)

    with pytest.raises(DataError, match=r"2\.png: broken"):
        write_store(tmp_path / "store" / "tiles.h5", range(4), fail, sources, SETTINGS)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_killed_build_is_started_again(tmp_path, sources):
    target = tmp_path / "store" / "tiles.h5"
    process = get_context("fork").Process(
        target=write_store,
        args=(target, range(4), lambda k: os._exit(1) if k == 3 else load(k), sources, SETTINGS),
    )
    process.start()
    process.join(30)
    assert process.exitcode == 1
    assert [file.name for file in target.parent.iterdir()] == ["tiles.h5.part"]
    write_store(target, range(4), load, sources, SETTINGS)
    assert [file.name for file in target.parent.iterdir()] == ["tiles.h5"]
    assert len(TileStore(target).rows) == 4


def test_skipped_tiles_are_recorded(tmp_path, sources):
    target = tmp_path / "tiles.h5"
    write_store(target, range(3), lambda k: Skipped("1.png", "torn") if k == 1 else load(k), sources, SETTINGS)
    store = TileStore(target)
    assert store.skipped == [("1.png", "torn")]
    np.testing.assert_array_equal(store.read(1, "image"), load(2).arrays["image"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_store_can_be_read_in_another_process(path, method):
    store = TileStore(path)
    here = store.read(1, "image")
    with get_context(method).Pool(1) as pool:
        there = pool.apply(store.read, (1, "image"))
    np.testing.assert_array_equal(there, here)


def test_a_forked_process_opens_the_file_for_itself(path):
    store = TileStore(path)
    store.read(0, "image")
    ours = store._file
    process = get_context("fork").Process(
        target=lambda: os._exit(store.read(0, "image") is None or store._file is ours)
    )
    process.start()
    process.join(30)
    assert process.exitcode == 0


def test_an_unchanged_source_passes(path, sources):
    check_store(path, sources, SETTINGS)


def test_a_new_time_alone_passes_and_is_noted(path, sources):
    file = sources["he/1.png"]
    os.utime(file, ns=(1, 1))
    check_store(path, sources, SETTINGS)
    with h5py.File(path) as store:
        assert store["source/mtime_ns"][1] == 1
    file.write_bytes(b"x" * 100)
    os.utime(file, ns=(1, 1))
    check_store(path, sources, SETTINGS)  # same size, same time: the content is not read again


def test_changed_content_of_the_same_size_is_refused(path, sources):
    sources["he/1.png"].write_bytes(b"x" * 100)
    os.utime(sources["he/1.png"], ns=(1, 1))
    with pytest.raises(DataError, match=r"tiles\.h5 does not match.*1 changed \(he/1\.png\).*data\.rebuild=true"):
        check_store(path, sources, SETTINGS)


def test_all_differences_are_named(path, sources):
    sources["he/0.png"].write_bytes(b"longer" * 100)
    del sources["he/2.png"]
    for name in "abcd":
        sources[f"he/{name}.png"] = sources["he/1.png"]
    message = r"4 added \(he/a\.png, he/b\.png, he/c\.png, \.\.\.\); 1 removed \(he/2\.png\); 1 changed \(he/0\.png\)"
    with pytest.raises(DataError, match=message):
        check_store(path, sources, SETTINGS)


def test_other_settings_are_refused(path, sources):
    with pytest.raises(DataError, match=r"mpp: built with 0\.5, now 0\.25.*rebuild=true.*another store"):
        check_store(path, sources, {"mpp": 0.25})


def test_a_store_outlives_its_source(path, caplog):
    with caplog.at_level(logging.INFO):
        check_store(path, None, SETTINGS)
    assert "its source is not there any more" in caplog.text
    with pytest.raises(DataError, match="other settings"):
        check_store(path, None, {"mpp": 1.0})


def test_a_missing_store_says_who_builds_it(tmp_path):
    with pytest.raises(DataError, match=r"no tile store yet.*prepare_data"):
        TileStore(tmp_path / "tiles.h5")


def test_other_files_are_refused(tmp_path, path):
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(DataError, match=r"found version 99; expected a tile store of version 2.*rebuild=true"):
        TileStore(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DataError, match="never completed"):
        TileStore(path)
    path.write_bytes(b"not HDF5")
    with pytest.raises(DataError, match=r"tiles\.h5: not a readable tile store"):
        TileStore(path)


def damage(path, where, size=8):
    data = bytearray(path.read_bytes())
    data[where : where + size] = bytes(byte ^ 0xFF for byte in data[where : where + size])
    path.write_bytes(bytes(data))


def test_a_changed_pixel_is_noticed_when_it_is_read(path):
    stored = load(2).arrays["image"].tobytes()
    where = path.read_bytes().index(stored[:64])
    damage(path, where + 20, 1)
    store = TileStore(path)
    store.read(0, "image")
    with pytest.raises(DataError, match=r"tiles\.h5: image of 2\.png is damaged .*data\.rebuild=true"):
        store.read(2, "image")


def test_a_changed_row_is_noticed(path):
    damage(path, path.read_bytes().index(b'"name": "1.png"') + 10, 1)
    with pytest.raises(DataError, match=r"tiles\.h5: the tables of records are not those that were written"):
        TileStore(path)


@pytest.mark.parametrize("missing", ["rows", "skipped", "source", "image"])
def test_a_missing_part_is_named(path, sources, missing):
    with h5py.File(path, "r+") as file:
        del file[missing]

    def use():
        check_store(path, sources, SETTINGS)
        TileStore(path).read(0, "image")

    with pytest.raises(DataError, match=r"tiles\.h5: .*data\.rebuild=true"):
        use()


def test_threads_keep_the_order_and_hold_few_results():
    started = []

    def work(k):
        started.append(k)
        return k

    results = map_in_threads(work, range(1000))
    assert next(results) == 0
    assert len(started) < 500
    assert list(results) == list(range(1, 1000))


def test_a_full_disk_is_explained(tmp_path, sources, monkeypatch):
    def full(*args, **kwargs):
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(DataError, match=r"could not be written \(No space left on device\); [\d.]+ GB are free"):
        write_store(Path(tmp_path / "tiles.h5"), range(4), load, sources, SETTINGS)
