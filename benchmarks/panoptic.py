"""Times our panoptic quality against a transcription of PanNuke's, side by side in one run, and prints ratios.

    python benchmarks/panoptic.py [repeats=7]

Both give bPQ and the PQ of five classes of one tile. The transcription is the oracle of
`tests/metrics/test_panoptic.py`; at 1024 px it is timed once.
"""

from __future__ import annotations

import runpy
import sys

import numpy as np
from hv_targets import TESTS, medians_ms
from numpy.typing import NDArray

from ihc2he.metrics.panoptic import panoptic_stats, qualities
from ihc2he.nuclei.instances import overlaps

TILES = ((256, 40), (1024, 600))  # side in px, nuclei
CLASSES = 5


def measure(side: int, count: int, repeats: int) -> str:
    """Return a line of the table: median milliseconds, their ratio, and the largest difference of the six values."""
    oracle = runpy.run_path(str(TESTS / "metrics" / "test_panoptic.py"))
    true_hw = runpy.run_path(str(TESTS / "nuclei" / "conftest.py"))["draw_ellipses"](side, count)
    pred_hw = np.roll(true_hw, (1, 2), (0, 1))
    kinds = np.random.default_rng(0).integers(1, CLASSES + 1, count + 1)
    types_n = kinds[np.unique(true_hw)[1:]]
    true_hwc, pred_hwc = (oracle["channels"](ids_hw, kinds) for ids_hw in (true_hw, pred_hw))

    def reference() -> NDArray:
        binary, classes = oracle["reference_image"](true_hwc, pred_hwc)
        return np.array([binary, *classes])

    def ours() -> NDArray:
        return qualities(panoptic_stats(overlaps(true_hw, pred_hw), types_n, types_n, CLASSES))[2]

    difference = np.abs(ours() - reference()).max()
    ms = medians_ms({"reference": reference, "ours": ours}, repeats)
    ratio = ms["reference"] / ms["ours"]
    return f"{side:>6}{count:>8}{ms['reference']:>14.1f}{ms['ours']:>10.2f}{ratio:>8.0f}x{difference:>14.1e}"


if __name__ == "__main__":
    arguments = dict(argument.split("=") for argument in sys.argv[1:])
    repeats = int(arguments.get("repeats", 7))
    print(f"{'px':>6}{'nuclei':>8}{'reference ms':>14}{'ours ms':>10}{'faster':>9}{'difference':>14}")
    for side, count in TILES:
        print(measure(side, count, repeats if side < 1024 else 1))
