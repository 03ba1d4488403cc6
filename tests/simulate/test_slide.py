"""Simulated slides: windows that fit together, the same cells in both stains, and the truth beside them."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from ihc2he.errors import ConfigError, DataError
from ihc2he.metrics.seams import Seams
from ihc2he.simulate import slide as slides
from ihc2he.simulate import specimen
from ihc2he.simulate.__main__ import main, parse
from ihc2he.simulate.lattice import Frame, noise_at
from ihc2he.simulate.specimen import draw_specimen
from ihc2he.simulate.tissue import TYPES

SIZE, SIDE = 600, 324  # px; blocks of JPEG, 8 px wide, end elsewhere


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Slides of one seed in both stains, of four blocks; pixels and tables."""
    root = tmp_path_factory.mktemp("slides")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specimen, "_SIDE", SIDE)
        for stain in slides.STAINS:
            slides.write_slide(root / f"{stain}.ome.tif", SIZE, stain, 0.5, seed=3)
    return {
        stain: (tifffile.imread(root / f"{stain}.ome.tif"), (root / f"{stain}.nuclei.csv").read_text())
        for stain in slides.STAINS
    }


def test_both_stains_show_the_same_nuclei(written):
    (ihc, table), (he, other) = written["ihc"], written["he"]
    assert table == other
    assert (ihc != he).mean() > 0.3
    rows = list(csv.DictReader(table.splitlines()))
    assert [int(row["id"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row["type"] for row in rows} <= set(TYPES)
    assert {row["positive"] for row in rows} == {"0", "1"}
    xy = np.array([[row["x"], row["y"]] for row in rows], float)
    assert ((xy >= -0.5) & (xy < SIZE - 0.5)).all()
    area = np.array([row["area_um2"] for row in rows], float)
    assert area.min() > 0
    assert 15 < np.median(area) < 60
    tissue = (he.min(-1) < 200).sum() * 0.25  # um2
    assert 1.5e-3 < len(rows) / tissue < 2e-2


def test_nuclei_are_where_the_table_says(written):
    he, table = written["he"]
    rows = list(csv.DictReader(table.splitlines()))
    large = [(round(float(r["y"])), round(float(r["x"]))) for r in rows if float(r["area_um2"]) > 20]
    red = he[..., 0].astype(float)
    at = np.array([red[y, x] for y, x in large])
    tissue = red[he.min(-1) < 215]
    assert np.median(at) < np.quantile(tissue, 0.25)


def test_a_marker_is_brown_in_ihc_where_the_table_says(written):
    ihc, table = written["ihc"]
    rows = [row for row in csv.DictReader(table.splitlines()) if float(row["area_um2"]) > 20]
    blue = {
        state: np.median([ihc[round(float(r["y"])), round(float(r["x"])), 2] for r in rows if r["positive"] == state])
        for state in "01"
    }
    assert blue["1"] < blue["0"] - 30


def test_there_is_tissue_and_glass_around_it(written):
    image = written["he"][0]
    glass = image.min(-1) > 215
    assert 0.3 < glass.mean() < 0.9
    border = np.concatenate([glass[0], glass[-1], glass[:, 0], glass[:, -1]])
    assert border.mean() > 0.9  # but for the ink


@pytest.fixture(scope="module")
def light_of():
    """Return `light_of(stain, frame)`, the light through a part of the slide of `written`, drawn at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specimen, "_SIDE", SIDE)
        slide = draw_specimen(SIZE, "ihc", 0.5, 3)
    rows = [slides._sow_row(slide, 0, [slides._nothing()] * slide.blocks)]
    rows.append(slides._sow_row(slide, 1, rows[0]))
    seen = slides.Cells(*(np.concatenate(each) for each in zip(*(cells for row in rows for cells in row), strict=True)))
    return lambda stain, frame: slides.light_of(replace(slide, stain=stain), frame, seen)[0]


@pytest.mark.parametrize("stain", slides.STAINS)
def test_blocks_are_what_one_window_shows(written, light_of, stain):
    difference = written[stain][0] - light_of(stain, Frame(0, 0, (SIZE, SIZE)))
    inner = difference[100:-100, 100:-100]
    assert np.abs(inner).mean() < 4  # of the noise of the scanner, and of JPEG
    found = Seams([SIDE - 100], [SIDE - 100])
    found.add(inner)
    assert 0.9 < found.ratio < 1.05


def test_windows_show_the_same_where_they_overlap(light_of):
    margin = round(slides._MARGIN / 0.5)
    one, two = (light_of("ihc", Frame(y, x, (300, 300))) for y, x in ((60, 90), (140, 200)))
    one, two = one[80 + margin : -margin, 110 + margin : -margin], two[margin : -80 - margin, margin : -110 - margin]
    assert one.std() > 10
    assert np.abs(one - two).max() < 1


@pytest.mark.parametrize("scale", [0.8, 2.0, 7.3, 400.0])
def test_fields_are_functions_of_the_position(scale):
    whole = noise_at(Frame(-20, -30, (90, 80)), "field", scale, 1)
    part = noise_at(Frame(5, 11, (20, 30)), "field", scale, 1)
    np.testing.assert_allclose(part, whole[25:45, 41:71], atol=1e-5)
    sparse = noise_at(Frame(-20, -30, (30, 20), 3), "field", scale, 1)
    np.testing.assert_allclose(sparse, whole[::3, : 20 * 3 : 3], atol=1e-5)
    other = noise_at(Frame(-20, -30, (90, 80)), "other", scale, 1)
    assert np.abs(other - whole).mean() > 0.1


def test_fields_have_unit_variance():
    for scale in (0.8, 2.0, 6.0):
        field = noise_at(Frame(0, 0, (400, 400)), "field", scale, 0)
        assert abs(field.mean()) < 0.1
        assert 0.8 < field.std() < 1.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stain": "hee"}, "expected ihc or he. Did you mean 'he'?"),
        ({"size": 10}, "size=10: expected 64 to"),
        ({"mpp": 0.01}, "mpp=0.01: expected 0.1 to 2"),
        ({"seed": -1}, "seed=-1: expected 0"),
        ({"out": "slide.svs"}, "slide.svs: a slide is an OME-TIFF"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        slides.write_slide(tmp_path / values.pop("out", "slide.ome.tif"), **values)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_left_alone(tmp_path):
    (tmp_path / "slide.ome.tif").write_text("a real one")
    with pytest.raises(DataError, match="exists; it may be a real slide"):
        slides.write_slide(tmp_path / "slide.ome.tif")


def test_the_command_line_knows_slides(tmp_path, capsys):
    out = tmp_path / "slide.ome.tif"
    _, values = parse(["slide", f"out={out}", "mpp=0.5", "stain=he", "workers=1"])
    assert values == {"workers": 1, "out": str(out), "mpp": 0.5, "stain": "he"}
    assert main(["slide", f"out={out}", "mpp=much"]) == 2
    assert "mpp=much is not a number." in capsys.readouterr().err


@pytest.mark.slow
def test_a_slide_of_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(specimen, "_SIDE", 1020)  # no multiple of the blocks of JPEG
    lines = [1020, 2040, 3060]
    images, tables = [], []
    for workers in (1, 2):
        path = slides.write_slide(tmp_path / str(workers) / "slide.ome.tif", 4000, "ihc", 0.25, workers=workers)
        images.append(path.read_bytes())
        tables.append((path.parent / "slide.nuclei.csv").read_text())
    assert images[0] == images[1]
    assert tables[0] == tables[1]
    with tifffile.TiffFile(path) as tiff:
        found = Seams(lines, lines)
        found.add(tiff.series[0].levels[0].asarray())
        assert 0.9 < found.ratio < 1.05
        assert len(tiff.series[0].levels) == 4
    assert len(tables[0].splitlines()) > 1000
