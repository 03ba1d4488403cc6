"""Whole runs through the command line: comparisons on simulated tissue, keypoints and images of a user."""

import csv
import json

import cv2
import numpy as np
import pytest

SMOKE = "experiment=smoke/pipeline_endonuke"
SMALL = ["data.simulate.tiles=3", "data.simulate.size=64"]
ALL = ["none", "recolour", "reinhard", "macenko", "cyclegan", "rendered"]


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tissue(height, width, step=24, radius=7):
    """Return a light tile with dark discs on a lattice."""
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), (225, 215, 235), np.uint8)
    for y in range(step // 2, height, step):
        for x in range(step // 2, width, step):
            image[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = (90, 70, 140)
    return image


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


# ------------------------------------------------------------------ comparisons


def test_the_smoke_run_leaves_everything_a_user_expects(cli, tmp_path):
    done = cli(SMOKE, "hydra.run.dir=run")
    assert done.status == 0, done.err
    run = tmp_path / "run"
    for name in (
        "report.html",
        "metrics.csv",
        "radius.csv",
        "agreement.csv",
        "images/test",
        "images/worst",
        "images/strip/strip.csv",
    ):
        assert (run / name).exists(), name
    methods = {f"{translator}+classical" for translator in ("none", "recolour", "rendered")}
    assert {row["group"] for row in read(run / "results.csv")} == methods
    assert {row["method"] for row in read(run / "comparison.csv")} == methods
    assert {row["against"] for row in read(run / "differences.csv")} == {"none+classical"}
    table = read(run / "test.csv")
    assert {row["group"] for row in table} == methods
    assert {"f1", "precision", "recall", "ap", "pq", "aji", "gap_closed", "lost"} <= {row["metric"] for row in table}
    assert all(row["protocol"] and row["better"] for row in table)
    assert not any("type" in row["metric"] for row in table)  # the classical segmenter has none
    assert "| method | F1 | precision | recall | AP | gap closed |" in (run / "train.log").read_text()


def test_all_translators_and_segmenters_in_one_run(cli, tmp_path, segmenter_bundle, generator_bundle):
    pytest.importorskip("torchstain")
    generators = [generator_bundle(f"g{seed}", seed) for seed in (0, 1)]
    done = cli(
        SMOKE, *SMALL, "hydra.run.dir=run", f"model.use.translators=[{','.join(ALL)}]",
        "model.use.segmenters=[hovernet,classical]", f"model.translators.cyclegan.weights=[{','.join(generators)}]",
        f"model.segmenters.hovernet.weights={segmenter_bundle()}",
    )  # fmt: skip
    assert done.status == 0, done.err
    rows = read(tmp_path / "run" / "results.csv")
    assert {row["group"] for row in rows} == {f"{t}+{s}" for t in ALL for s in ("hovernet", "classical")}
    assert len(rows) == 3 * 2 * len(ALL)
    table = read(tmp_path / "run" / "test.csv")
    assert all(row["protocol"] for row in table)
    typed = {row["group"] for row in table if row["metric"] == "f1_type/neoplastic"}
    assert typed == {f"{translator}+hovernet" for translator in ALL}


def test_the_default_experiment_says_which_weights_it_lacks(cli):
    done = cli("experiment=pipeline_endonuke", "logger=csv")
    assert done.status == 2
    assert "model.translators.cyclegan.weights is not given" in done.err
    done = cli(SMOKE, "model.use.translators=[cyclgan]")
    assert done.err == "ihc2he: model.use.translators: there is no 'cyclgan'. Did you mean 'cyclegan'?\n"


def test_settings_may_be_chosen_on_other_tiles(cli, tmp_path):
    split = ["stages=[validate,test]", "data.val_ids=[0]", "model.use.translators=[none]", "model.radii_um=[3]"]
    done = cli(SMOKE, *SMALL, *split, "hydra.run.dir=run")
    assert done.status == 0, done.err
    logged = {key for row in read(tmp_path / "run" / "metrics.csv") for key in row}
    assert {"val/f1/none+classical", "test/f1/none+classical"} <= logged
    assert {row["name"] for row in read(tmp_path / "run" / "results.csv")} == {"1", "2"}


@pytest.mark.slow
def test_two_processes_judge_as_one_does(command, tmp_path):
    for trainer in ("cpu", "ddp_cpu"):
        done = command(SMOKE, *SMALL, f"trainer={trainer}", f"hydra.run.dir={trainer}")
        assert done.status == 0, done.err
    for table in ("test.csv", "results.csv", "comparison.csv", "differences.csv"):
        assert (tmp_path / "cpu" / table).read_text() == (tmp_path / "ddp_cpu" / table).read_text()


# ------------------------------------------------------------------ a user's own keypoints


@pytest.fixture
def keypoints(tmp_path):
    """Write two tiles whose discs are annotated: `tumour` on the right, `rest` on the left."""
    for name, side in (("a", 96), ("slide/b", 72)):
        write(tmp_path / "mine" / "images" / f"{name}.png", tissue(side, side))
        lattice = [(x, y) for x in range(12, side, 24) for y in range(12, side, 24)]
        lines = [f"{x},{y},{'tumour' if x > 40 else 'rest'}" for x, y in lattice]
        path = tmp_path / "mine" / "points" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["x,y,class", *lines]))
    return ["data.root=mine", "data.mpp=0.5", "data.num_workers=0", "trainer=cpu", "model.workers=0"]


def f1(run):
    return {row["group"]: float(row["value"]) for row in read(run / "test.csv") if row["metric"] == "f1"}


def test_own_keypoints_without_classes(cli, tmp_path, keypoints):
    use = ["model.use.translators=[none,recolour]", "model.use.segmenters=[classical]"]
    done = cli("experiment=pipeline_points", *keypoints, *use, "hydra.run.dir=run")
    assert done.status == 0, done.err
    assert f1(tmp_path / "run") == {"none+classical": 1, "recolour+classical": 1}


@pytest.mark.parametrize(
    "experiment",
    [
        ["experiment=pipeline_points", "model.class_map={round: tumour, long: null}"],
        ["experiment=pipeline_endonuke", "data=points", "logger=csv", "+model.class_map={round: tumour, long: null}"],
    ],
)
def test_own_keypoints_with_own_classes_and_types(cli, tmp_path, keypoints, segmenter_bundle, experiment):
    weights = f"model.segmenters.hovernet.weights={segmenter_bundle(classes=['round', 'long'])}"
    own = [*keypoints, "data.classes=[rest,tumour]", "model.use.translators=[none]", weights]
    done = cli(*experiment, *own, "hydra.run.dir=run")
    assert done.status == 0, done.err
    assert set(f1(tmp_path / "run")) == {"none+hovernet"}
    missing = cli("experiment=pipeline_points", *own, "model.class_map={round: tumour}", "hydra.run.dir=again")
    assert missing.status == 2
    assert "no class for 'long'" in missing.err
    assert "one of rest, tumour, or null" in missing.err


# ------------------------------------------------------------------ a user's own images


@pytest.fixture
def predict(cli, tmp_path):
    """Return `predict(*arguments)`, which finds nuclei on three images and a broken one, and gives how it ended."""
    for name, size in (("a", (80, 80)), ("sub/odd", (37, 51)), ("large", (500, 600))):
        write(tmp_path / "images" / f"{name}.png", tissue(*size))
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG cut off")
    runs = iter(range(9))

    def go(*arguments):
        own = ["data.path=images", "data.mpp=0.5", "data.num_workers=0", "out=out", "trainer=cpu", "model.workers=0"]
        use = ["model.use.translators=[recolour]", "model.use.segmenters=[classical]", "model.block=128"]
        return cli("experiment=predict_tiles", *own, *use, f"hydra.run.dir=run{next(runs)}", *arguments)

    return go


KINDS = {"he": "png", "instances": "png", "geojson": "geojson", "nuclei": "csv", "overlay": "png", "done": "json"}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_image_gets_its_files_and_the_broken_one_its_name(predict, tmp_path):
    done = predict()
    assert done.status == 1
    assert "1 of 4 images could not be read: images/broken.png" in done.err
    out = tmp_path / "out"
    for kind, suffix in KINDS.items():
        files = {str(path.relative_to(out / kind)) for path in (out / kind).rglob(f"*.{suffix}")}
        assert files == {f"{name}.{suffix}" for name in ("a", "large", "sub/odd")}
    # Discs around every 24th pixel: each once, although the large image was divided.
    found = {name: len(read(out / "nuclei" / f"{name}.csv")) for name in ("a", "large", "sub/odd")}
    assert found == {"a": 9, "large": 21 * 25, "sub/odd": 4}
    instances = cv2.imread(str(out / "instances" / "large.png"), cv2.IMREAD_UNCHANGED)
    assert instances.shape == (500, 600)
    assert len(np.unique(instances)) - 1 == found["large"]
    total = [row for row in read(out / "summary.csv") if row["image"] == "all images"]
    assert sum(int(row["nuclei"]) for row in total) == sum(found.values())
    assert [row["name"] for row in read(out / "failed.csv")] == ["broken"]


def test_a_second_run_goes_on_where_the_first_ended(predict, tmp_path):
    predict()
    out = tmp_path / "out"
    before = contents(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.geojson")}
    assert predict().status == 1  # the broken one is tried again
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.geojson")} == stamps
    (tmp_path / "images" / "broken.png").unlink()
    assert predict().status == 0  # nothing is left to do
    assert contents(out) == {path: content for path, content in before.items() if path.name != "failed.csv"}


def test_an_image_that_changed_is_done_again(predict, tmp_path):
    predict()
    write(tmp_path / "images" / "a.png", tissue(120, 80))
    (tmp_path / "images" / "broken.png").unlink()
    assert predict().status == 0
    assert len(read(tmp_path / "out" / "nuclei" / "a.csv")) == 5 * 3


def test_other_settings_or_weights_do_not_mix_in_one_folder(predict, segmenter_bundle):
    def with_seed(seed):
        weights = segmenter_bundle(seed=seed)
        return predict("model.use.segmenters=[hovernet]", f"model.segmenters.hovernet.weights={weights}", "data.path=images/a.png")  # fmt: skip  # noqa: E501

    assert with_seed(0).status == 0
    retrained = with_seed(1)
    assert retrained.status == 2
    assert "out=out was begun with other settings: weights:" in retrained.err
    assert "segmenters:" not in retrained.err  # the same folder, with other content
    assert "block: 128 before, 256 now" in predict("model.block=256").err


def test_ensembles_note_how_much_they_agree(predict, tmp_path, segmenter_bundle):
    both = ",".join(segmenter_bundle(f"s{seed}", seed=seed) for seed in (0, 1))
    done = predict("model.use.segmenters=[hovernet]", f"model.segmenters.hovernet.weights=[{both}]", "data.path=images/a.png")  # fmt: skip  # noqa: E501
    assert done.status == 0, done.err
    rows = read(tmp_path / "out" / "nuclei" / "a.csv")
    assert rows
    assert all(0 <= float(row["agreement"]) <= 1 for row in rows)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["methods"] == ["recolour+hovernet"]
