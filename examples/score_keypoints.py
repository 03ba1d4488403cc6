"""Compare nuclei with keypoints: python examples/score_keypoints.py IMAGE UM_PER_PX POINTS.csv.

The table has a header, and x and y in px in its first columns.
"""

import sys
from pathlib import Path

import numpy as np
from find_nuclei import find_nuclei

from ihc2he.images.decoding import read_image
from ihc2he.metrics.keypoints import score_tile, scores
from ihc2he.models.pipeline.segmenters import Learned


def main(path: str, mpp: str, points: str) -> None:
    """Print F1, precision and recall within 3 um."""
    found = find_nuclei(read_image(Path(path)), float(mpp), Learned("builtin", name="centres"))
    true_t2 = np.loadtxt(points, delimiter=",", skiprows=1, usecols=(0, 1), ndmin=2)
    one_class = np.zeros(len(true_t2), int), np.zeros(len(found.centres_n2), int)
    tile = score_tile(true_t2, one_class[0], found.centres_n2, one_class[1], mpp=float(mpp), n_classes=1, radius_um=3)
    values = scores(tile.counts, ["nucleus"])
    print(", ".join(f"{name} {values[name]:.3f}" for name in ("f1", "precision", "recall")))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 4 else __doc__)
