"""What version 0.1.0 has written still serves: bundles, checkpoints and tile stores, made by its own code.

`fixtures/version-0.1.0.tar.xz` is what its smoke runs left, with small networks and coarsely rounded weights.
"""

import shutil
import tarfile
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).parent / "fixtures" / "version-0.1.0.tar.xz"


@pytest.fixture
def former(tmp_path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "version-0.1.0"


def test_the_pipeline_reads_its_bundles(cli, former, tmp_path):
    done = cli(
        "experiment=smoke/pipeline_endonuke",
        "model.use.translators=[cyclegan]",
        "model.use.segmenters=[hovernet]",
        f"model.translators.cyclegan.weights={former}/bundles/g_ihc2he",
        f"model.segmenters.hovernet.weights={former}/bundles/segmenter",
        "hydra.run.dir=run",
    )
    assert done.status == 0, done.err
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 6  # a row per tile
    assert all("cyclegan+hovernet" in row for row in rows[1:])


def test_the_pipeline_reads_its_checkpoints(cli, former, tmp_path):
    done = cli(
        "experiment=smoke/pipeline_endonuke",
        "model.use.translators=[cyclegan]",
        "model.use.segmenters=[hovernet]",
        f"model.translators.cyclegan={{weights: {former}/checkpoints/cyclegan.ckpt, mpp: 0.46}}",
        f"model.segmenters.hovernet={{weights: {former}/checkpoints/hovernet.ckpt, mpp: 0.25}}",
        "hydra.run.dir=run",
    )
    assert done.status == 0, done.err
    assert (tmp_path / "run" / "results.csv").is_file()


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [
        (
            "cyclegan_bci",
            [
                "model.generator={width: 4, n_blocks: 1}",
                "model.discriminator={width: 4, n_layers: 1}",
                "model.pool_size=2",
            ],
        ),
        ("hovernet_pannuke", ["model.width=32"]),
    ],
)
def test_its_runs_are_tested_and_continued_from_their_checkpoints(cli, former, tmp_path, experiment, changes):
    checkpoint = former / "checkpoints" / f"{experiment.partition('_')[0]}.ckpt"
    common = [f"experiment=smoke/{experiment}", *changes, f"ckpt_path={checkpoint}"]
    done = cli(*common, "stages=[test]", "hydra.run.dir=tested")
    assert done.status == 0, done.err
    assert (tmp_path / "tested" / "test.csv").is_file()
    longer = "model.n_epochs=2" if experiment == "cyclegan_bci" else "trainer.max_epochs=3"
    done = cli(*common, longer, "hydra.run.dir=continued")
    assert done.status == 0, done.err
    steps = (tmp_path / "continued" / "metrics.csv").read_text().splitlines()
    assert len(steps) > 1
    assert (tmp_path / "continued" / "bundles").is_dir()


@pytest.mark.parametrize(("experiment", "store"), [("cyclegan_bci", "bci"), ("hovernet_pannuke", "pannuke")])
def test_its_stores_are_read_where_the_raw_data_is_gone(cli, former, tmp_path, experiment, store):
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(former / "stores" / f"{store}.h5", folder / "tiles.h5")
    done = cli(
        f"experiment=smoke/{experiment}",
        "data.simulate=null",
        f"data.root={tmp_path}/gone",
        f"data.store={folder}",
        "debug=limit",
        "hydra.run.dir=run",
    )
    assert done.status == 0, done.err
    assert (folder / "tiles.h5").read_bytes() == (former / "stores" / f"{store}.h5").read_bytes()
