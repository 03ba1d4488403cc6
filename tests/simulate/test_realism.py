"""The simulated EndoNuke is neither easier nor harder than the real one.

The real figures are those of the classical detector on 181 real tiles, and of the published keypoints.
"""

import cv2
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from ihc2he.nuclei.classical import detect_nuclei
from ihc2he.simulate import write_endonuke

TILES = 120
UM = 3.0  # largest distance of a match


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    root = write_endonuke(tmp_path_factory.mktemp("endonuke") / "data", TILES, workers=2)
    hits = found = real = 0
    nearest, classes = [], []
    for i in range(TILES):
        labels = sorted((root / "dataset" / "labels").glob(f"*/*/{i}.txt"))[0]
        image = cv2.imread(str(root / "dataset" / "images" / f"{i}.png"))[..., ::-1]
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
