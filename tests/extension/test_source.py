"""An image source from outside the package, by the command line and `--config-dir` alone."""

import csv
import shutil
from pathlib import Path

import numpy as np


def test_files_of_another_kind_are_predicted(command, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(Path(__file__).parent / "source", mine, ignore=shutil.ignore_patterns("__pycache__"))
    rows, columns = np.mgrid[:80, :96]
    image = np.full((80, 96, 3), (0.9, 0.85, 0.92), np.float16)
    image[((rows % 24 - 12) ** 2 + (columns % 24 - 12) ** 2) <= 49] = (0.35, 0.27, 0.55)
    np.save(mine / "a.npy", image)
    (mine / "b.npy").write_bytes(b"nothing")
    use = ["model.use.translators=[none]", "model.use.segmenters=[classical]", "model.workers=0", "trainer=cpu"]
    own = ["data.mpp=0.5", "data.num_workers=0", "out=found"]
    start = ["--config-dir", "conf", "experiment=predict_tiles", "data=halves"]
    done = command(*start, *own, *use, "data.path=a.npy", "hydra.run.dir=run", cwd=mine)
    assert done.status == 0, done.err
    with (mine / "found" / "nuclei" / "a.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) >= 12
    done = command(*start, *own, *use, "data.path=b.npy", "hydra.run.dir=run2", cwd=mine)
    assert done.status == 1
    assert "1 of 1 images could not be read: b.npy" in done.err
