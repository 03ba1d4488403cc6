"""The simulated EndoNuke is neither easier nor harder than the real one.

The real figures are those of the classical detector on 181 real tiles, and of the published keypoints.
"""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from ihc2he.nuclei.classical import detect_nuclei
from ihc2he.simulate import write_endonuke, write_nuclei
from ihc2he.simulate.measure import describe

TILES = 120
UM = 3.0  # largest distance of a match


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_endonuke(tmp_path_factory.mktemp("endonuke") / "data", TILES, workers=2)


@pytest.fixture(scope="module")
def figures(tree):
    hits = found = real = 0
    nearest, classes = [], []
    for i in range(TILES):
        labels = sorted((tree / "dataset" / "labels").glob(f"*/*/{i}.txt"))[0]
        image = cv2.imread(str(tree / "dataset" / "images" / f"{i}.png"))[..., ::-1]
        mpp = 100 / image.shape[1]
        points = np.loadtxt(labels, ndmin=2).reshape(-1, 3)
        at, detected = points[:, :2] * mpp, detect_nuclei(image, mpp) * mpp
        distance = cdist(at, detected)
        rows, columns = linear_sum_assignment(np.where(distance <= UM, distance, 1e6))
        hits += (distance[rows, columns] <= UM).sum()
        found, real = found + len(detected), real + len(points)
        classes += points[:, 2].astype(int).tolist()
        if len(at) > 1:
            nearest += cKDTree(at).query(at, 2)[0][:, 1].tolist()
    shares = np.bincount(classes, minlength=3) / real
    return {
        "precision": hits / found,
        "recall": hits / real,
        "f1": 2 * hits / (found + real),
        "nuclei per tile": real / TILES,
        "nearest, median": np.median(nearest),
        "nearest, 5th percentile": np.percentile(nearest, 5),
        "stroma": shares[0],
        "epithelium": shares[1],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "real", "tolerance"), [("f1", 0.824, 0.05), ("precision", 0.851, 0.06), ("recall", 0.798, 0.06)]
)
def test_the_classical_detector_scores_as_on_real_tiles(figures, name, real, tolerance):
    assert figures[name] == pytest.approx(real, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("nuclei per tile", 92),
        ("nearest, median", 5.7),
        ("nearest, 5th percentile", 3.54),
        ("stroma", 0.71),
        ("epithelium", 0.28),
    ],
)
def test_nuclei_lie_as_in_real_tiles(figures, name, real):
    assert figures[name] == pytest.approx(real, rel=0.15)


REAL = pytest.mark.skipif("IHC2HE_REALDATA" not in os.environ, reason="IHC2HE_REALDATA names no folder of real tiles")


def table(paths, mpp, stain):
    """Mean over tiles and spread from tile to tile of each figure; instance maps lie beside H&E images."""
    rows = []
    for path in paths:
        image = cv2.imread(str(path))[..., ::-1]
        instances = None if stain == "ihc" else cv2.imread(str(path).replace("images", "instances"), -1)
        rows.append(describe(image, mpp * (200 / image.shape[1] if stain == "ihc" else 1), stain, instances))
    return {name: (np.nanmean(v := [row[name] for row in rows]), np.nanstd(v)) for name in rows[0]}


@REAL
@pytest.mark.slow
def test_ihc_figures_lie_within_the_spread_of_real_tiles(tree):
    real = table((Path(os.environ["IHC2HE_REALDATA"]) / "endonuke/dataset/images").glob("*.png"), 0.5, "ihc")
    simulated = table((tree / "dataset/images").glob("*.png"), 0.5, "ihc")
    off = {name: abs(simulated[name][0] - mean) / spread for name, (mean, spread) in real.items()}
    assert max(off.values()) < 1.2, off


@REAL
@pytest.mark.slow
def test_he_figures_lie_within_the_spread_of_real_tiles(tmp_path):
    root = Path(os.environ["IHC2HE_REALDATA"])
    real = table(
        [p for name in ("he_nuclei", "he_nuclei_typed") for p in root.glob(f"{name}/images/*.png")], 0.25, "he"
    )
    write_nuclei(tmp_path / "nuclei", 57, size=256, workers=2)
    simulated = table((tmp_path / "nuclei/images").glob("*.png"), 0.25, "he")
    off = {name: abs(simulated[name][0] - mean) / spread for name, (mean, spread) in real.items()}
    assert max(off.values()) < 1.2, off
