import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from ihc2he.errors import ConfigError
from ihc2he.files import read_csv
from ihc2he.nuclei.colours import INVENTED, MATCHED, MISSED, colour_of
from ihc2he.nuclei.drawing import LINE_PX
from ihc2he.report import tiles as pages
from ihc2he.report.strip import strip
from ihc2he.report.tiles import CELL_PX, GAP_PX, TilePages, f1_of, page

METHODS = ["none+classical", "cyclegan+hovernet"]
ALONE = SimpleNamespace(world_size=1, is_global_zero=True)


def result(matched, missed, invented, side=60):
    """Return what a method found: keypoints and nuclei stand in a row each, the matched ones first."""
    n = matched + invented
    inst_hw = np.zeros((side, side), np.int32)
    for i in range(n):
        inst_hw[40:44, 6 * i : 6 * i + 4] = i + 1
    score = SimpleNamespace(
        true_m=np.arange(matched), pred_m=np.arange(matched), missed=np.arange(matched, matched + missed),
        invented=np.arange(matched, n),
    )  # fmt: skip
    centres_n2 = np.array([[6 * i + 2, 42] for i in range(n)]).reshape(n, 2)
    nuclei = SimpleNamespace(inst_hw=inst_hw, types_n=np.full(n, 1), shares_n=np.ones(n), centres_n2=centres_n2)
    return SimpleNamespace(he=np.full((side, side, 3), 200, np.uint8), nuclei=nuclei, score=score)


def tile(name, *counts):
    """Return a tile with these (matched, missed, invented) of each method."""
    keypoints = max((matched + missed for matched, missed, _ in counts), default=0)
    points = np.array([[6 * i + 2, 12, 0] for i in range(keypoints)], np.int64).reshape(-1, 3)
    results = dict(zip(METHODS, (result(*own) for own in counts), strict=True))
    image = np.full((60, 60, 3), 255, np.uint8)
    return SimpleNamespace(
        name=name, group="", mpp=0.5, image=image, points_n3=points, classes=["stroma", "other"], results=results
    )


def run_test(callback, tiles, trainer=ALONE):
    callback.on_test_start(trainer, SimpleNamespace(methods=METHODS))
    for number, one in enumerate(tiles):
        callback.on_test_batch_end(trainer, None, {"rows": [], "scored": [one]}, None, number)
    callback.on_test_end(trainer, None)


def names(folder):
    return sorted(path.stem for path in folder.glob("*.png"))


@pytest.mark.parametrize(("counts", "f1"), [((3, 1, 0), 6 / 7), ((0, 0, 4), 0), ((0, 3, 0), 0), ((0, 0, 0), np.nan)])
def test_f1_of_a_tile(counts, f1):
    assert f1_of(result(*counts)) == pytest.approx(f1, nan_ok=True)


def test_a_page_has_a_row_of_four_pictures_for_each_method():
    picture = page(tile("a", (3, 1, 1), (1, 3, 0)))
    assert picture.shape == (2 * LINE_PX + 2 * (2 * LINE_PX + CELL_PX), GAP_PX + 4 * (CELL_PX + GAP_PX), 3)
    for row, (matched, missed, invented) in enumerate([(3, 1, 1), (1, 3, 0)]):
        top = 3 * LINE_PX + row * (2 * LINE_PX + CELL_PX)
        cells = [
            picture[top : top + CELL_PX, GAP_PX + i * (CELL_PX + GAP_PX) :][:, :CELL_PX]
            for i in range(len(pages.COLUMNS))
        ]
        assert (cells[0] == 255).all()
        assert (cells[1] == 200).all()
        assert (cells[2] == colour_of(1)).all(-1).any()
        for colour, n in ((MATCHED, matched), (MISSED, missed), (INVENTED, invented)):
            mask = (cells[3] == colour).all(-1).astype(np.uint8)
            assert cv2.connectedComponents(cv2.dilate(mask, np.ones((3, 3))))[0] - 1 == n


def test_a_large_tile_gets_a_page_of_the_same_size():
    small, large = tile("a", (1, 0, 0), (1, 0, 0)), tile("a", (1, 0, 0), (1, 0, 0))
    large.image = np.full((2000, 2000, 3), 255, np.uint8)
    for own in large.results.values():
        own.he = large.image
        own.nuclei.inst_hw = np.kron(own.nuclei.inst_hw, np.ones((40, 40), int))[:2000, :2000]
    assert page(large).shape == page(small).shape


def test_pages_are_spread_over_the_test_and_the_worst_come_in_order(tmp_path):
    tiles = [tile(f"{i:02d}", (i % 7, 7 - i % 7, 0), (i % 7, 0, 0)) for i in range(40)]
    run_test(TilePages(str(tmp_path), n_first=4, n_worst=3, worst_by=METHODS[0]), tiles)
    shown = [int(name[3:]) for name in names(tmp_path / "test")]
    assert len(shown) == 4
    assert shown[0] == 0
    assert shown[-1] >= 32
    assert max(np.diff(shown)) <= 16
    assert names(tmp_path / "worst") == ["01_00", "02_07", "03_14"]  # F1 0; ties by name


def test_the_last_method_decides_and_tiles_without_any_nucleus_are_not_the_worst(tmp_path):
    tiles = [tile("a", (0, 1, 0), (1, 0, 0)), tile("b", (1, 0, 0), (0, 0, 0)), tile("c/d", (1, 0, 0), (1, 1, 0))]
    run_test(TilePages(str(tmp_path), n_first=0), tiles)
    assert names(tmp_path / "worst") == ["01_c_d", "02_a"]
    assert names(tmp_path / "test") == []


def test_the_strip_has_the_worst_the_middle_and_the_best_tile_by_the_mean_of_all_methods(tmp_path):
    matched = np.random.default_rng(0).permutation(41)  # many more than are kept
    tiles = [tile(f"{k:02d}", (k, 40 - k, 0), (k, 40 - k, 0)) for k in matched.tolist()]
    run_test(TilePages(str(tmp_path), n_first=1, n_worst=1), [*tiles, tile("empty", (0, 0, 0), (0, 0, 0))])
    folder = tmp_path / "strip"
    rows = read_csv(folder / "strip.csv")
    assert [(row["place"], row["name"]) for row in rows[::3]] == [("worst", "00"), ("middle", "20"), ("best", "40")]
    assert [row["method"] for row in rows[:3]] == ["IHC", *METHODS]
    assert {key: rows[4][key] for key in ("matched", "missed", "invented")} == {
        "matched": "20", "missed": "20", "invented": "0",
    }  # fmt: skip
    assert float(rows[4]["mean_f1"]) == float(rows[4]["f1"]) == pytest.approx(2 / 3)
    assert {path.name for path in folder.iterdir()} == {"strip.csv", *(row["file"] for row in rows)}
    html = strip(folder, METHODS[::-1])
    captions = re.findall("<figcaption>(.*?)</figcaption>", html)
    assert captions[3:6] == [
        "IHC", f"{METHODS[1]}: F1 0.667, 20 found, 20 missed, 0 invented",
        f"{METHODS[0]}: F1 0.667, 20 found, 20 missed, 0 invented",
    ]  # fmt: skip
    assert "<h3>Middle tile: 20, mean F1 0.667</h3>" in html


def test_of_two_tiles_there_is_no_strip(tmp_path):
    run_test(TilePages(str(tmp_path)), [tile("a", (1, 0, 0), (1, 0, 0)), tile("b", (0, 1, 0), (0, 1, 0))])
    assert not (tmp_path / "strip").exists()
    assert strip(tmp_path / "strip", METHODS) is None


def test_pages_of_an_earlier_test_make_way(tmp_path):
    callback = TilePages(str(tmp_path))
    run_test(callback, [tile("a", (1, 0, 0), (1, 0, 0)), tile("b", (1, 0, 0), (1, 0, 0))])
    run_test(callback, [tile("c", (1, 0, 0), (1, 0, 0))])
    assert names(tmp_path / "test") == names(tmp_path / "worst") == ["01_c"]


def test_tiles_of_all_ranks_are_judged_together(tmp_path, monkeypatch):
    other = tile("b", (0, 1, 0), (0, 1, 0))

    def gather(parts, own):
        parts[:] = [own, ([other], [other], [(0.0, other)], [0.0])]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for first in (True, False):
        trainer = SimpleNamespace(world_size=2, is_global_zero=first)
        run_test(TilePages(str(tmp_path / str(first))), [tile("a", (1, 0, 0), (1, 0, 0))], trainer)
    assert names(tmp_path / "True/worst") == ["01_b", "02_a"]
    assert names(tmp_path / "True/test") == ["01_a", "02_b"]
    assert not (tmp_path / "False").exists()


def test_a_method_that_is_not_there_is_named(tmp_path):
    callback = TilePages(str(tmp_path), worst_by="cyclegan+hover")
    with pytest.raises(ConfigError, match=r"no method 'cyclegan\+hover'\. Did you mean 'cyclegan\+hovernet'"):
        callback.on_test_start(ALONE, SimpleNamespace(methods=METHODS))
