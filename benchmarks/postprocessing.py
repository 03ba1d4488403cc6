"""Times our post-processing against a transcription of the published one, side by side in one run, and prints ratios.

    python benchmarks/postprocessing.py [repeats=7]

Both start from the maps of a network and end with instances, centroids, boxes, outlines and types, on one thread. The
transcription is the oracle of `tests/nuclei/test_postprocess.py`.
"""

from __future__ import annotations

import runpy
import sys

import cv2
import numpy as np
from hv_targets import TESTS, medians_ms

from ihc2he.nuclei.postprocess import postprocess, segment
from ihc2he.nuclei.table import nuclei_table

TILES = ((256, 40), (1024, 600), (2048, 2400))  # side in px, nuclei
TYPES = 6


def measure(side: int, count: int, repeats: int) -> list[str]:
    """Return lines of the table: median milliseconds, their ratio, and whether the instances are the same."""
    fixtures = runpy.run_path(str(TESTS / "nuclei" / "conftest.py"))
    oracle = runpy.run_path(str(TESTS / "nuclei" / "test_postprocess.py"))
    prob_hw, hv_2hw = fixtures["soften"](fixtures["draw_ellipses"](side, count))
    types_khw = np.random.default_rng(0).random((TYPES, side, side), np.float32)
    same = oracle["same_partition"](segment(prob_hw, hv_2hw), oracle["reference_segment"](prob_hw, hv_2hw))
    calls = {
        "instances": {
            "reference": lambda: oracle["reference_segment"](prob_hw, hv_2hw),
            "ours": lambda: segment(prob_hw, hv_2hw),
        },
        "everything": {
            "reference": lambda: oracle["reference_process"](prob_hw, hv_2hw, types_khw.argmax(0)),
            "ours": lambda: nuclei_table(*postprocess(prob_hw, hv_2hw, types_khw), mpp=0.25),
        },
    }
    lines = []
    for what, both in calls.items():
        ms = medians_ms(both, repeats)
        ratio = ms["reference"] / ms["ours"]
        lines.append(
            f"{side:>6}{count:>8}  {what:<12}{ms['reference']:>14.1f}{ms['ours']:>10.1f}{ratio:>8.1f}x"
            f"  {'same' if same else 'DIFFERENT'}"
        )
    return lines


if __name__ == "__main__":
    arguments = dict(argument.split("=") for argument in sys.argv[1:])
    repeats = int(arguments.get("repeats", 7))
    cv2.setNumThreads(1)
    print(f"{'px':>6}{'nuclei':>8}  {'what':<12}{'reference ms':>14}{'ours ms':>10}{'faster':>9}  instances")
    for side, count in TILES:
        print(*measure(side, count, repeats if side < 1024 else max(repeats // 3, 1)), sep="\n")
