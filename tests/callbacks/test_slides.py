"""Files of slides: made once, of all windows, and what failed is remembered."""

import csv
import json
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from ihc2he.callbacks import slides
from ihc2he.callbacks.slidefiles import Options, assemble
from ihc2he.callbacks.slides import SlideWriter, write_failed
from ihc2he.data.plans import Slide, make_plan, read_result
from ihc2he.errors import DataError
from ihc2he.images.writing import write_png

PLAIN = Options(write=())


@pytest.fixture
def planned(tmp_path):
    """Return the folder and the plan of a small slide with tissue."""
    image = np.full((600, 600, 3), 240, np.uint8)
    image[60:-60, 60:-60] = (215, 180, 220)
    write_png(tmp_path / "a.png", image)
    folder = tmp_path / "out" / "a"
    return folder, make_plan(folder, Slide("a", tmp_path / "a.png", 0.5), 0.5, 256, 32.0)


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
