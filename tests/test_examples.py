"""The examples do what they say, on simulated tissue."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from ihc2he.images.decoding import read_image
from ihc2he.images.pyramid import write_pyramid
from ihc2he.images.regions import read_regions
from ihc2he.images.writing import write_png
from ihc2he.models.pipeline.outside import Detections
from ihc2he.nuclei.geojson import read_geojson, write_geojson
from ihc2he.nuclei.table import nuclei_table, write_table

EXAMPLES = Path(__file__).parents[1] / "examples"
MPP = "0.5"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are in the repository, not in the package")


@pytest.fixture(scope="module")
def tile(tmp_path_factory):
    """Write a tile of simulated IHC and return its path."""
    from ihc2he.export.packages import sample_tile

    path = tmp_path_factory.mktemp("examples") / "tile.png"
    write_png(path, sample_tile(0.5)[:160, :192])
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Return `run(name, ...)`, which runs an example and returns what it prints."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def go(name, *arguments):
        import_module(name).main(*map(str, arguments))
        return capsys.readouterr().out

    return go


def test_nuclei_are_found_counted_and_compared(run, tile, tmp_path):
    said = run("find_nuclei", tile, MPP, tmp_path)
    found = read_geojson(
        tmp_path / "tile.geojson", (160, 192), ["epithelial", "inflammatory", "spindle", "miscellaneous"]
    )
    rows = (tmp_path / "tile.csv").read_text().splitlines()
    n = len(found.types_n)
    assert said.startswith(f"{n} nuclei")
    assert len(rows) == n + 1 > 20
    assert f"all: {n} nuclei, " in run("measure_stain", tile, MPP)
    places = rows[0].split(",")
    points = [[row.split(",")[places.index(name)] for name in ("x_px", "y_px")] for row in rows[1:]]
    (tmp_path / "points.csv").write_text("\n".join(["x,y", *map(",".join, points)]))
    assert run("score_keypoints", tile, MPP, tmp_path / "points.csv") == "f1 1.000, precision 1.000, recall 1.000\n"


def test_an_image_is_translated(run, tile, tmp_path):
    run("translate_image", tile, MPP, tmp_path / "he.png")
    made, ihc = read_image(tmp_path / "he.png"), read_image(tile)
    assert made.shape == ihc.shape
    assert (made.astype(int) - ihc)[..., 1].mean() < -5  # eosin takes green away


def test_a_region_of_a_slide_is_read(run, tile, tmp_path):
    image = np.tile(read_image(tile), (2, 2, 1))
    slide = tmp_path / "slide.ome.tif"
    write_pyramid(slide, image.shape[:2], 0.5, [image], quality=None)
    assert "384 x 320 px of 0.5 um" in run("read_slide_region", slide, 0.5, 20, 10, 50, tmp_path / "region.png")
    assert np.array_equal(read_image(tmp_path / "region.png"), image[20:120, 40:140])


def test_a_package_is_run(run, tile, tmp_path):
    pytest.importorskip("bioimageio.spec")
    from ihc2he.export.packages import export

    (package,) = export("builtin", tmp_path, ["qupath"])
    lines = dict(line.split(": ") for line in run("run_package", package, tile, MPP).splitlines())
    assert list(lines) == ["unknown", "epithelial", "inflammatory", "spindle", "miscellaneous"]
    assert sum(map(int, lines.values())) > 20


def test_without_arguments_an_example_says_what_it_takes():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "read_slide_region.py"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "read_slide_region.py SLIDE UM_PER_PX" in done.stderr


# ------------------------------------------------------------------ scripts for QuPath


@pytest.fixture
def qupath(tmp_path):
    """Return `qupath(script, folder, objects)`, which runs a script with stand-ins for QuPath's functions."""
    groovy = shutil.which("groovy")
    if groovy is None:
        pytest.skip("there is no Groovy interpreter")
    java = Path(shutil.which("java") or "/").resolve().parents[1]
    standin = Path(__file__).parent / "fixtures" / "qupath.groovy"

    def go(script, folder, objects):
        before, after = tmp_path / "before.json", tmp_path / "after.json"
        before.write_text(json.dumps({"features": objects}))
        done = subprocess.run(
            [groovy, standin, EXAMPLES / "qupath" / script, folder, "a.svs", before, after],
            capture_output=True, text=True, check=False, env={**os.environ, "JAVA_HOME": str(java)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), json.loads(after.read_text())

    return go


def feature(kind, side, geometry="Polygon"):
    ring = [[1, 1], [1 + side, 1], [1 + side, 1 + side], [1, 1]]
    coordinates = [ring] if geometry == "Polygon" else ring
    return {
        "type": "Feature", "geometry": {"type": geometry, "coordinates": coordinates},
        "properties": {"objectType": kind, "classification": {"names": ["Tumor"]}},
    }  # fmt: skip


def test_qupath_loads_what_this_package_writes(qupath, tmp_path):
    inst_hw = np.zeros((40, 30), np.int32)
    inst_hw[2:6, 3:9], inst_hw[20:31, 10:15] = 1, 2
    table = nuclei_table(inst_hw, np.array([2, 1]), mpp=0.5)
    classes = ["tumour, high grade", "stroma"]
    write_geojson(tmp_path / "a" / "a.geojson.gz", table, classes)
    write_table(tmp_path / "a" / "nuclei.csv", table, classes)
    said, after = qupath("load_nuclei.groovy", tmp_path, [feature("detection", 9)])
    assert said == "2 nuclei on a, 2 with the columns of their table"
    assert [one["name"] for one in after] == ["1", "2"]  # the old detection is gone
    assert after[1]["measurements"]["area_um2"] == 13.75
    assert after[1]["measurements"]["x_px"] == 12


def test_what_qupath_exports_is_read_here(qupath, tmp_path):
    objects = [
        feature("annotation", 9), feature("annotation", 5, "LineString"), feature("detection", 3), feature("cell", 4),
        feature("tile", 8),
    ]  # fmt: skip
    assert qupath("export_regions.groovy", tmp_path / "regions", objects)[0] == "1 regions of a"
    assert [region.kind for region in read_regions(tmp_path / "regions" / "a.geojson")] == ["Tumor"]
    assert qupath("export_nuclei.groovy", tmp_path / "nuclei", objects)[0] == "2 nuclei of a"
    assert Detections(str(tmp_path / "nuclei"), ["Tumor"]).prepare("a", None).types_n.tolist() == [1, 1]
