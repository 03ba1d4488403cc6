"""Files of slides: made once, of all windows, and what failed is remembered."""

import csv
import json
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from ihc2he.callbacks import slidefiles, slides
from ihc2he.callbacks.slidefiles import Options, _Assembly, assemble
from ihc2he.callbacks.slides import SlideWriter, write_failed
from ihc2he.data.plans import Slide, make_plan, read_result, read_tissue, regions_of
from ihc2he.errors import DataError
from ihc2he.images.rescaled import Rescaled
from ihc2he.images.source import ArraySource
from ihc2he.images.writing import write_png
from ihc2he.nuclei.fields import HotSpot

PLAIN = Options(write=())


@pytest.fixture
def planned(tmp_path):
    """Return the folder and the plan of a small slide with tissue."""
    image = np.full((600, 600, 3), 240, np.uint8)
    image[60:-60, 60:-60] = (215, 180, 220)
    write_png(tmp_path / "a.png", image)
    folder = tmp_path / "out" / "a"
    return folder, make_plan(folder, Slide("a", tmp_path / "a.png", 0.5), 0.5, 256, 16.0)


def test_a_finished_slide_is_not_made_again(planned):
    folder, plan = planned
    result = {"windows_failed": [], "nuclei": 7, "area_mm2": {}, "counts": {}}
    (folder / "slide.json").write_text(json.dumps(result))
    assert plan.windows
    assert assemble(folder, PLAIN) == result  # though windows/ is gone
    assert read_result(folder) == result


def test_without_any_window_there_is_no_result(planned):
    folder, plan = planned
    with pytest.raises(DataError, match=rf"a\.png: none of its {len(plan.windows)} windows"):
        assemble(folder, PLAIN)
    assert read_result(folder) is None


def test_the_last_window_alone_begins_the_files_and_once(planned, monkeypatch):
    folder, plan = planned
    listed = []
    monkeypatch.setattr(slides, "done_windows", lambda at: listed.append(at) or {*range(len(written))})
    writer = SlideWriter(str(folder.parent))
    writer.setup(SimpleNamespace(is_global_zero=False, world_size=1, strategy=SimpleNamespace(broadcast=lambda x: x)), SimpleNamespace(fingerprint={}), "predict")  # fmt: skip  # noqa: E501
    begun, written = [], []
    writer._pool = SimpleNamespace(submit=lambda *job: begun.append(job) or Future())
    for number in range(len(plan.windows)):
        assert not begun
        written.append(number)
        writer._count(plan)
    writer._count(plan)  # of a thread that was slower
    assert len(begun) == 1
    assert len(listed) == 2  # not after each of the windows


def test_what_failed_stays_until_it_is_tried_again_or_gone(tmp_path):
    for name in "abc":
        (tmp_path / name).touch()
    path = tmp_path / "failed.csv"
    rows = {name: {"slide": name, "window": "3", "error": "e", "path": str(tmp_path / name)} for name in "abc"}
    write_failed(path, [*rows.values()], {*"abc"})
    (tmp_path / "c").unlink()
    write_failed(path, [], {"b"})
    with path.open(newline="") as stream:
        assert [*csv.DictReader(stream)] == [rows["a"]]
    write_failed(path, [], {"a"})
    assert not path.exists()


class TwoLevels(ArraySource):
    """A slide with a level of a quarter of the size, which notes what is read."""

    levels = (1.0, 4.0)

    def read(self, rows, columns, level=0):
        self.read_px = (rows.stop - rows.start, columns.stop - columns.start)
        return np.zeros((*self.read_px, 3), np.uint8)


def test_hot_spots_are_read_at_the_pixel_size_of_their_picture(planned, monkeypatch):
    folder, plan = planned
    monkeypatch.setattr(slidefiles, "_SPOT_PX", 100)
    source = TwoLevels(np.zeros((*plan.shape, 3), np.uint8), plan.mpp)
    sheet = _Assembly(folder, PLAIN)._close_up(Rescaled(source, plan.grid_mpp), HotSpot(110.0, 110.0, 100.0, 1, 1))
    assert source.read_px == (100, 100)  # of 400
    assert sheet.picture.shape == (100, 100, 3)
    assert sheet._corner == pytest.approx([20, 20])


def test_what_lies_under_a_pen_is_no_area_of_a_region(tmp_path):
    pytest.importorskip("shapely")
    image = np.full((600, 600, 3), 240, np.uint8)
    image[60:-60, 60:-60] = (215, 180, 220)
    image[:, 280:360] = (30, 120, 60)
    write_png(tmp_path / "a.png", image)
    corners = [[100, 100], [500, 100], [500, 500], [100, 500], [100, 100]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [corners]}}
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    slide = Slide("a", tmp_path / "a.png", 0.5, regions=tmp_path / "r.geojson")
    plan = make_plan(tmp_path / "out", slide, 0.5, 256, 16.0)
    tissue = read_tissue(tmp_path / "out", plan)
    assert tissue.at(np.array([[200, 300], [320, 300], [450, 300], [550, 300]])).tolist() == [True, False, True, False]
    (area,) = _Assembly(tmp_path / "out", PLAIN)._areas(regions_of(tmp_path / "out"), tissue)
    assert 400 * 250 * 0.25e-6 < area < 400 * 320 * 0.25e-6  # with the rim of the stroke
