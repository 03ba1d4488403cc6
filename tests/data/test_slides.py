"""Which slides are done, and that the results of others stay."""

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ihc2he.data import slides as module
from ihc2he.data.plans import Slide, make_plan, read_plan, read_result, read_tissue
from ihc2he.data.slides import SlidesDataModule, slides_of
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.source import ArraySource
from ihc2he.images.writing import write_png

WANTED = (0.5, 256, 16.0)


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "slides" / "a.png"
    image = np.full((600, 600, 3), 240, np.uint8)
    image[60:-60, 60:-60] = (215, 180, 220)
    write_png(path, image)
    return path


@pytest.fixture
def data(tmp_path):
    """Return the slides that are set up, with a pixel size of 0.5 unless told otherwise."""

    def set_up(path, **changes):
        found = SlidesDataModule(path=str(path), **({"out": str(tmp_path / "out"), "mpp": 0.5} | changes))
        found.setup()
        model = SimpleNamespace(working_mpp=0.5, block=256, halo_um=16.0, white=None)
        found.trainer = SimpleNamespace(global_rank=0, world_size=1, lightning_module=model)
        return found

    return set_up


@pytest.fixture
def finished(tmp_path, slide):
    """Return the folder of the finished slide."""
    folder = tmp_path / "out" / "a"
    make_plan(folder, Slide("a", slide, 0.5), *WANTED)
    (folder / "slide.json").write_text(json.dumps({"name": "a", "stain": "", "case": "", "windows_failed": []}))
    return folder


def test_results_outlive_a_slide_that_cannot_be_reached(tmp_path, slide, data, finished):
    (tmp_path / "list.csv").write_text(f"path,name\n{slide},a\n")
    away = slide.rename(tmp_path / "away.png")
    found = data(tmp_path / "list.csv")
    (window,) = found.predict_dataloader().dataset.tiles
    assert "No such file" in window.error
    assert read_result(finished)
    away.rename(slide)
    slide.write_bytes(slide.read_bytes()[:100])  # a copy that was cut
    assert data(tmp_path / "list.csv").predict_dataloader().dataset.tiles[0].error
    assert read_result(finished)


def test_a_changed_slide_is_done_again(slide, data, finished, caplog):
    os.utime(slide, (1, 1))
    assert data(slide).predict_dataloader().dataset.tiles
    assert read_result(finished) is None
    assert "a.png: was changed since its results were made" in caplog.text


def test_results_are_not_replaced_by_those_of_another_slide_or_setting(tmp_path, slide, data, finished):
    other = tmp_path / "others" / "a.png"
    other.parent.mkdir()
    other.write_bytes(slide.read_bytes())
    with pytest.raises(ConfigError, match=r"has the results of another image called a: .*slides/a\.png"):
        data(other)
    assert data(finished / "tissue.png", out=str(tmp_path / "again")).slides  # as it is named
    link = tmp_path / "others" / "b.png"
    link.symlink_to(slide)
    with pytest.raises(ConfigError, match="under the name a; as b it would be counted twice"):
        data(link)
    with pytest.raises(ConfigError, match=r"a: has results, which are lost with data.mpp=0.25 instead of 0.5"):
        data(slide, mpp=0.25)
    assert read_result(finished)
    assert data(slide).slides == []


def test_results_do_not_go_among_slides(tmp_path, slide, data):
    (tmp_path / "list.csv").write_text(f"path\n{slide}\n")
    for path in (slide, slide.parent, tmp_path / "list.csv"):
        with pytest.raises(ConfigError, match="results do not go among slides"):
            data(path, out=str(slide.parent))


def test_a_moved_slide_and_its_corrected_notes_are_taken_over(tmp_path, slide, data, finished):
    moved = slide.rename(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(f"path,name,stain,case\n{moved},a,ER,17\n")
    found = data(tmp_path / "list.csv")
    assert not len(found.predict_dataloader().dataset)
    assert (read_result(finished)["stain"], read_result(finished)["case"]) == ("ER", "17")
    assert read_plan(finished).source == str(moved)


def test_a_missing_package_ends_all_ranks(slide, data, monkeypatch):
    def refuse(*_):
        msg = "reading this slide needs OpenSlide"
        raise ConfigError(msg)

    found = data(slide)
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_plan", refuse)
        with pytest.raises(ConfigError, match="needs OpenSlide"):
            found.predict_dataloader()
    monkeypatch.setattr(module, "from_all_ranks", lambda own: [own, ({}, "b.svs needs OpenSlide")])
    with pytest.raises(ConfigError, match=r"b\.svs needs OpenSlide"):  # of another rank
        found.predict_dataloader()


def test_regions_belong_to_one_slide(tmp_path, slide, data):
    pytest.importorskip("shapely")
    write_png(slide.with_name("b.png"), np.zeros((9, 9, 3), np.uint8))
    one = tmp_path / "regions" / "a.geojson.gz"
    one.parent.mkdir()
    one.touch()
    with pytest.raises(ConfigError, match="is of one slide, and there are 2"):
        data(slide.parent, regions=str(one))
    with pytest.raises(DataError, match=r"there is no .*b\.geojson\. Export"):
        data(slide.parent, regions=str(one.parent))
    assert data(slide, regions=str(one.parent)).slides[0].regions == one


def test_parts_of_slides_and_earlier_results_are_no_slides(tmp_path, monkeypatch):
    names = ["c/1.dcm", "c/2.dcm", "c/3.dcm", "old/s/he.ome.tif", "old/s/windows/0.png", "v.vms", "v0.jpg", "w.jpg"]
    files = [tmp_path / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("ImageFile=v0.jpg" if file.suffix == ".vms" else "")
    (tmp_path / "old" / "s" / "plan.json").touch()
    series = {"3": "second"}
    monkeypatch.setattr(module, "SlideSource", lambda path, mpp: SimpleNamespace(series=series.get(path.stem, "first")))
    assert [file.relative_to(tmp_path).as_posix() for file in slides_of(files)] == [
        "c/1.dcm",
        "c/3.dcm",
        "v.vms",
        "w.jpg",
    ]


def test_what_arrives_from_readers_has_no_plan_until_then(slide, data):
    found = data(slide)
    dataset = found.predict_dataloader().dataset
    entry = dataset[0]
    assert entry["plan"] is None
    assert entry["image"].shape[2] == 3
    batch = found.transfer_batch_to_device({key: [value] for key, value in entry.items()}, None, 0)
    assert batch["plan"] == [found.plans["a"]]


class Damaged(ArraySource):
    """A slide whose upper left corner, glass elsewhere, does not decode."""

    def read(self, rows, columns, level=0):
        if rows.start < 64 and columns.start < 64:
            msg = "damaged"
            raise DataError(msg)
        return super().read(rows, columns, level)


def test_windows_that_do_not_decode_are_tried(tmp_path, slide, monkeypatch, caplog):
    image = np.full((600, 600, 3), 240, np.uint8)
    image[400:, 400:] = (215, 180, 220)
    monkeypatch.setattr("ihc2he.data.plans.open_slide", lambda *_: Damaged(image, 0.5))
    plan = make_plan(tmp_path / "out", Slide("a", slide, 0.5), *WANTED)
    assert 0 in plan.windows
    assert 2 not in plan.windows
    assert "% of it do not decode where it was searched for tissue" in caplog.text


def test_a_slide_that_does_not_decode_at_all_is_one_error(tmp_path, slide, monkeypatch):
    monkeypatch.setattr("ihc2he.data.plans.open_slide", lambda *_: Damaged(np.zeros((60, 60, 3), np.uint8), 0.5))
    with pytest.raises(DataError, match=r"a\.png: no part of it decodes"):
        make_plan(tmp_path / "out", Slide("a", slide, 0.5), *WANTED)


def test_the_white_of_a_plan_is_that_of_glass(tmp_path, slide):
    image = np.full((1200, 600, 3), 255, np.uint8)  # unscanned below
    image[:600] = (215, 214, 213)
    image[100:300, 100:300] = (190, 150, 190)
    write_png(slide, image)
    plan = make_plan(tmp_path / "out", Slide("a", slide, 0.5), *WANTED)
    assert plan.white == pytest.approx((215, 214, 213), abs=2)


def test_a_white_that_is_given_is_not_measured(tmp_path, slide, data):
    found = data(slide.parent)
    found.trainer.lightning_module.white = (230.0, 231.0, 232.0)
    (window, *_) = found.predict_dataloader().dataset.tiles
    assert window.plan.white == (230.0, 231.0, 232.0)
    assert window.plan.open().white == (230.0, 231.0, 232.0)


def test_a_plan_of_other_settings_is_used_where_windows_are_done_alone(slide, data, tmp_path):
    def halo(halo_um):
        found = data(slide.parent)
        found.trainer.lightning_module.halo_um = halo_um
        return found.predict_dataloader().dataset.tiles[0].plan.halo

    assert [halo(16.0), halo(48.0)] == [32, 96]  # as if the first run had been killed at once
    (tmp_path / "out" / "a" / "windows").mkdir()
    (tmp_path / "out" / "a" / "windows" / "000000.npz").write_bytes(b"")
    assert halo(16.0) == 96


def test_windows_end_where_tissue_ends_and_their_cores_cover_it(tmp_path, slide):
    image = np.full((900, 1200, 3), 240, np.uint8)
    image[200:400, 100:1000] = (215, 180, 220)
    write_png(slide, image)
    plan = make_plan(tmp_path / "out", Slide("a", slide, 0.5), *WANTED)
    tissue = read_tissue(tmp_path / "out", plan)
    covered = np.zeros(plan.grid, int)
    seen = 0
    for block in plan.blocks.values():
        covered[slice(*block.core_y), slice(*block.core_x)] += 1
        assert (block.rows.start % 32, block.columns.start % 32) == (0, 0)
        assert block.rows.start == max(0, block.core_y[0] - 32)
        assert block.columns.stop == min(1200, block.core_x[1] + 32)
        assert max(block.rows.stop - block.rows.start, block.columns.stop - block.columns.start) <= 256
        seen += (block.rows.stop - block.rows.start) * (block.columns.stop - block.columns.start)
    assert covered.max() == 1
    assert covered[tissue.region(slice(None), slice(None))].all()
    assert seen < 3 * tissue.share * covered.size
    assert read_plan(tmp_path / "out") == plan


def test_a_slide_of_one_block_is_one_window(tmp_path, slide):
    image = np.full((250, 200, 3), 240, np.uint8)
    image[20:-20, 10:-10] = (215, 180, 220)
    write_png(slide, image)
    plan = make_plan(tmp_path / "out", Slide("a", slide, 0.5), *WANTED)
    assert plan.windows == [0]


class Sleepy(ArraySource):
    """A slide on a slow disk."""

    def read(self, rows, columns, level=0):
        time.sleep(0.2)
        return super().read(rows, columns, level)


def test_a_slow_disk_does_not_leave_the_device_idle(tmp_path, slide, data, monkeypatch):
    image = np.full((700, 700, 3), (215, 180, 220), np.uint8)
    image[:20] = 240
    monkeypatch.setattr("ihc2he.data.plans.open_slide", lambda *_: Sleepy(image, 0.5))

    def idle_s(readers):
        windows = iter(data(slide, num_workers=readers).predict_dataloader())
        next(windows)
        waited = 0.0
        for _ in range(12):
            time.sleep(0.05)  # the device is busy
            started = time.monotonic()
            next(windows)
            waited += time.monotonic() - started
        return waited

    assert idle_s(1) > 12 * 0.1
    assert idle_s(5) < idle_s(1) / 3
