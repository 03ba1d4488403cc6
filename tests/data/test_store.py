import json
import logging
import os
import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

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
    assert json.loads((path.parent / "tiles.h5.times.json").read_text()) == {"he/1.png": 1}
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


def test_a_finished_store_is_only_read(path, sources, monkeypatch):
    before = path.read_bytes()
    os.utime(sources["he/1.png"], ns=(1, 1))
    real = h5py.File

    def read_only(name, mode="r", **arguments):
        assert mode == "r"
        return real(name, mode, **arguments)

    monkeypatch.setattr(h5py, "File", read_only)
    check_store(path, sources, SETTINGS)
    TileStore(path).read(0, "image")
    assert path.read_bytes() == before


def test_new_times_need_not_be_noted(path, sources, monkeypatch, caplog):
    os.utime(sources["he/1.png"], ns=(1, 1))
    monkeypatch.setattr(Path, "write_text", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(30, "Read-only")))
    with caplog.at_level(logging.INFO):
        check_store(path, sources, SETTINGS)
    assert "the new times of 1 source files could not be saved next to it" in caplog.text
    assert [file.name for file in path.parent.iterdir()] == ["tiles.h5"]


def test_times_of_a_store_before_count_no_longer_after_it_is_built_again(path, sources):
    os.utime(sources["he/1.png"], ns=(1, 1))
    check_store(path, sources, SETTINGS)
    write_store(path, range(4), load, sources, SETTINGS)
    assert [file.name for file in path.parent.iterdir()] == ["tiles.h5"]
    check_store(path, sources, SETTINGS)


def test_the_file_has_no_more_than_was_written(path):
    size = path.stat().st_size
    assert size < 4 * 300 * 200 * (3 + 4) * 1.5
    with h5py.File(path, "r") as file:
        assert file.id.get_filesize() == size


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from ihc2he.data.store import Record, write_store
from ihc2he.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
load = lambda k: Record({{"image": np.full((300, 300, 3), k, np.uint8)}}, {{"name": str(k)}})
try:
    write_store(Path(sys.argv[1]), range(60), load, {{}}, {{}})
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [1000, 2_000_000, 9_000_000])
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, limit):
    path = tmp_path / "store" / "tiles.h5"
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(limit=limit), str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert "Files may not grow so large here: look at ulimit -f. Name another data.store." in done.stdout
    assert not list(path.parent.iterdir())


def test_a_disk_too_small_is_told_after_a_few_tiles(tmp_path, monkeypatch):
    loaded = []

    def one(k):
        loaded.append(k)
        return load(k)

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5_000_000))
    with pytest.raises(DataError, match=r"needs some 0\.4 GB more\); 0\.0 GB are free\. Name another data\.store"):
        write_store(tmp_path / "tiles.h5", range(1000), one, {}, SETTINGS)
    assert len(loaded) < 200
    assert not list(tmp_path.iterdir())
