"""Whole slides through the command line: files, continuation, damage, several processes."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile

from ihc2he.images.decoding import read_image
from ihc2he.images.pyramid import write_pyramid
from ihc2he.nuclei.geojson import read_geojson
from ihc2he.simulate.slide import write_slide

STEP, SIDES = 24, (400, 560)  # px at 0.5 um/px
OWN = ["experiment=predict_slides", "data.num_workers=0", "model.workers=0", "callbacks.writer.workers=0", "out=out"]
CLASSICAL = ["model.use={translators: [recolour], segmenters: [classical]}", "model.block=160", "trainer=cpu"]


def stained():
    """Return a slide: glass, and on it tissue with dark discs on a lattice, a third of them brown."""
    rows, columns = np.mgrid[: SIDES[0], : SIDES[1]]
    image = np.full((*SIDES, 3), 244, np.uint8)
    image[40:-40, 40:-40] = (215, 200, 230)
    for number, (y, x) in enumerate(lattice()):
        image[(rows - y) ** 2 + (columns - x) ** 2 <= 49] = (70, 60, 130) if number % 3 else (90, 64, 86)
    return image


def lattice():
    return [(y, x) for y in range(60, SIDES[0] - 50, STEP) for x in range(60, SIDES[1] - 50, STEP)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "a.ome.tif"
    image = stained().repeat(2, 0).repeat(2, 1)
    write_pyramid(path, image.shape[:2], 0.25, [image], tile=128, quality=None)
    return path


@pytest.fixture
def predict(cli, tmp_path):
    runs = iter(range(9))

    def go(path, *arguments):
        return cli(*OWN, *CLASSICAL, f"data.path={path}", f"hydra.run.dir=run{next(runs)}", *arguments)

    return go


def contents(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(("report.html", ".lock"))}


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_slide_leaves_files_for_qupath_and_spreadsheets(predict, slide, tmp_path):
    shapely = pytest.importorskip("shapely")
    parquet = pytest.importorskip("pyarrow.parquet")
    done = predict(slide)
    assert done.status == 0, done.err
    folder, n = tmp_path / "out" / "a.ome", len(lattice())
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "a.ome.geojson.gz", "density.png", "he.ome.tif", "hot_spot_1.png", "maps.ome.tif", "nuclei.parquet",
        "overlay.png", "plan.json", "positivity.png", "slide.json", "tissue.geojson", "tissue.png",
    ]  # fmt: skip
    table = parquet.read_table(folder / "nuclei.parquet").to_pydict()
    assert table["id"] == list(range(1, n + 1))
    assert set(table["type"]) == {"unknown"}
    found = sorted(zip(np.round(table["y_px"], 0), np.round(table["x_px"], 0), strict=True))
    assert np.abs(np.array(found) - (2 * np.array(lattice()) + 0.5)).max() <= 1  # at full resolution, each once
    assert sum(table["positive"]) == len(range(0, n, 3))
    assert min(np.array(table["dab_od"]) - table["ring_dab_od"]) > -0.2
    features = json.loads(gzip.decompress((folder / "a.ome.geojson.gz").read_bytes()))["features"]
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert all(shapely.is_valid(shapes))
    assert [round(shape.area) for shape in shapes] == table["area_px2"]
    assert len(read_geojson(folder / "a.ome.geojson.gz", (800, 1120), []).types_n) == n
    tissue = json.loads((folder / "tissue.geojson").read_text())["features"][0]
    assert shapely.geometry.shape(tissue["geometry"]).contains(shapely.union_all(shapes))
    result = json.loads((folder / "slide.json").read_text())
    assert result["hot_spots"][0]["positive"] == len(range(0, n, 3))
    assert 320 * 480 * 0.25e-6 < result["area_mm2"]["all tissue"] < 380 * 550 * 0.25e-6  # with a margin
    (row,) = [row for row in read(tmp_path / "out" / "summary.csv") if row["slide"] == "a.ome"]
    assert (row["region"], row["nuclei"], row["positive"]) == ("all tissue", str(n), str(len(range(0, n, 3))))
    with tifffile.TiffFile(folder / "he.ome.tif") as he:
        assert he.series[0].levels[0].shape == (*SIDES, 3)
    assert read_image(folder / "overlay.png").shape[1] == SIDES[1]
    assert "hot_spot_1.png" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_that_was_stopped_goes_on_at_its_window_and_leaves_equal_files(predict, slide, tmp_path):
    table = "callbacks.writer.table=csv"
    assert predict(slide, table, "out=whole").status == 0
    stopped = predict(slide, table, "+trainer.limit_predict_batches=3")
    assert stopped.status == 0, stopped.err
    windows = sorted((tmp_path / "out" / "a.ome" / "windows").glob("*.npz"))
    assert len(windows) == 3
    assert not (tmp_path / "out" / "a.ome" / "slide.json").exists()
    assert predict(slide, table).status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    again = predict(slide, table)
    assert again.status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_damaged_slides_and_windows_do_not_stop_the_others(predict, slide, tmp_path):
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "good.ome.tif").write_bytes(slide.read_bytes())
    (folder / "text.svs").write_text("no slide")
    with tifffile.TiffFile(slide) as file:
        at = file.pages[0].pages[0].dataoffsets[0]  # of the level that is read
    hurt = bytearray(slide.read_bytes())
    hurt[at : at + 30] = bytes(30)
    (folder / "hurt.ome.tif").write_bytes(hurt)
    done = predict(folder)
    assert done.status == 1
    assert "1 slides could not be read: text; 4 windows of 1 slides do not decode" in done.err
    out = tmp_path / "out"
    failed = [(row["slide"], row["window"]) for row in read(out / "failed.csv")]
    assert failed == [*(("hurt.ome", number) for number in ("0", "1", "5", "6")), ("text", "")]
    counts = {row["slide"]: (int(row["nuclei"]), row["windows_failed"]) for row in read(out / "summary.csv")}
    assert counts["good.ome"] == (len(lattice()), "0")
    assert 0 < counts["hurt.ome"][0] < len(lattice())
    assert counts["hurt.ome"][1] == "4"
    (folder / "hurt.ome.tif").write_bytes(slide.read_bytes())  # repaired
    (folder / "text.svs").unlink()
    assert predict(folder).status == 0
    assert not (out / "failed.csv").exists()
    assert {row["nuclei"] for row in read(out / "summary.csv")} == {str(len(lattice())), str(2 * len(lattice()))}


def test_a_csv_lists_slides_with_pixel_size_stain_and_case(predict, slide, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,name,um_per_px,stain,case\n{slide},one,0.5,ER,17\n{slide},two,,,\n")
    done = predict("list.csv", "callbacks.writer.write=[]")
    assert done.status == 0, done.err
    rows = read(tmp_path / "out" / "summary.csv")
    assert [(row["slide"], row["stain"], row["case"]) for row in rows[:2]] == [("one", "ER", "17"), ("two", "", "")]
    area = [float(row["area_mm2"]) for row in rows[:2]]
    assert area[0] == pytest.approx(4 * area[1], rel=0.2)


def test_only_regions_of_qupath_are_computed_and_each_is_counted(predict, slide, tmp_path):
    pytest.importorskip("shapely")
    corners = [[80, 80], [500, 80], [500, 720], [80, 720], [80, 80]]
    shape = {"type": "Polygon", "coordinates": [corners]}
    tumour = {"type": "Feature", "geometry": shape, "properties": {"classification": {"name": "Tumor"}}}
    (tmp_path / "regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [tumour]}))
    done = predict(slide, "data.regions=regions.geojson", "callbacks.writer.write=[]")
    assert done.status == 0, done.err
    rows = {row["region"]: row for row in read(tmp_path / "out" / "summary.csv") if row["slide"] == "a.ome"}
    n = sum(40 < x < 250 and 40 < y < 360 for y, x in lattice())
    assert {region: row["nuclei"] for region, row in rows.items()} == {"all tissue": str(n), "1 Tumor": str(n)}
    assert float(rows["1 Tumor"]["area_mm2"]) == pytest.approx(420 * 640 * 0.0625e-6)


def test_mistakes_are_named(predict, cli, tmp_path):
    done = cli("experiment=predict_slides")
    assert done.status == 2
    assert "data.path=None: expected a slide, a folder of slides, a glob" in done.err
    (tmp_path / "empty").mkdir()
    assert "found no slide there" in predict("empty").err
    write_pyramid(tmp_path / "b.ome.tif", (64, 64), 0.5, [np.zeros((64, 64, 3), np.uint8)])
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((64, 64, 3), np.uint8), tile=(64, 64))
    done = predict(tmp_path / "c.tif")
    assert done.status == 1
    assert "does not state its pixel size. Pass data.mpp" in (tmp_path / "out" / "failed.csv").read_text()
    done = predict(tmp_path / "b.ome.tif", "out=none")
    assert done.status == 0, done.err  # a slide without tissue
    assert {row["nuclei"] for row in read(tmp_path / "none" / "summary.csv")} == {"0"}
    assert "has to be from 0.001" in predict(tmp_path / "b.ome.tif", "callbacks.writer.hot_spot_mm2=0").err


@pytest.mark.slow
def test_nuclei_in_windows_are_those_of_one_large_tile(cli, tmp_path):
    """With the weights in the box, which see other surroundings in small windows: F1 above .9 within 1 um."""
    write_slide(tmp_path / "s.ome.tif", size=1000, stain="ihc", mpp=0.5, seed=1)
    use = ["data.path=s.ome.tif", "trainer=cpu", "callbacks.writer.table=csv", "trainer.precision=32-true"]
    points = []
    for block in (1024, 320):
        done = cli(*OWN, *use, f"model.block={block}", f"out=out{block}", f"hydra.run.dir=run{block}")
        assert done.status == 0, done.err
        rows = read(tmp_path / f"out{block}" / "s.ome" / "nuclei.csv")
        points.append(np.array([[float(row["x_um"]), float(row["y_um"])] for row in rows]))
    whole, parts = points
    near = np.hypot(*(whole[:, None] - parts).transpose(2, 0, 1)) <= 1
    assert len(whole) > 100
    assert 2 * near.any(1).sum() / (len(whole) + len(parts)) > 0.9


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one(command, slide, tmp_path):
    for trainer in ("cpu", "ddp_cpu"):
        done = command(*OWN, *CLASSICAL, f"data.path={slide}", f"trainer={trainer}", f"out={trainer}", f"hydra.run.dir=run_{trainer}")  # fmt: skip  # noqa: E501
        assert done.status == 0, done.err
    assert contents(tmp_path / "cpu") == contents(tmp_path / "ddp_cpu")


def begin(words, folder, wanted):
    """Start the command line in processes of their own, and return the first when so many windows are written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ihc2he.train", *words], cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and len([*(folder / "out" / "a.ome" / "windows").glob("*.npz")]) < wanted:
        time.sleep(0.01)
    return process


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="groups of processes are of POSIX")
def test_told_to_end_it_ends_at_once_and_goes_on_later(command, slide, tmp_path):
    words = [*OWN, *CLASSICAL, f"data.path={slide}", "model.block=64", "hydra.run.dir=run", "ckpt_path=auto"]
    process = begin(words, tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "out" / "a.ome" / "slide.json").exists()
    done = command(*words)
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "out" / "a.ome" / "slide.json").read_text())["windows_failed"] == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="groups of processes are of POSIX")
def test_killed_three_times_at_random_moments_it_leaves_the_same_files(command, slide, tmp_path):
    words = [*OWN, *CLASSICAL, f"data.path={slide}", "model.block=128", "model.workers=1", "data.num_workers=1"]
    assert command(*words, "out=whole", "hydra.run.dir=run_whole").status == 0
    windows = len(json.loads((tmp_path / "whole" / "a.ome" / "plan.json").read_text())["windows"])
    rng = np.random.default_rng()
    for wanted in sorted(rng.integers(1, windows, 3).tolist()):
        process = begin([*words, "hydra.run.dir=run", "ckpt_path=auto"], tmp_path, wanted)
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert command(*words, "hydra.run.dir=run_last").status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
