"""Times our HoVer targets against a transcription of the published ones, side by side in one run, and prints ratios.

    python benchmarks/hv_targets.py [repeats=11]

The transcription is the oracle of `tests/nuclei/test_targets.py`. Both separate the pieces of cut nuclei first.
Runs alternate, so that other load on the machine falls on both.
"""

from __future__ import annotations

import runpy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ihc2he.nuclei.targets import hv_maps, relabel_pieces

TESTS = Path(__file__).parents[1] / "tests"
TILES = ((256, 40), (1024, 600))  # side in px, nuclei


def medians_ms(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each call after one to warm up; calls alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(values[1:]) for name, values in seconds.items()}


if __name__ == "__main__":
    arguments = dict(argument.split("=") for argument in sys.argv[1:])
    repeats = int(arguments.get("repeats", 11))
    draw = runpy.run_path(str(TESTS / "nuclei" / "conftest.py"))["draw_ellipses"]
    reference = runpy.run_path(str(TESTS / "nuclei" / "test_targets.py"))["reference_hv"]
    print(
        f"{'px':>6}{'nuclei':>8}{'reference ms':>14}{'ours ms':>10}{'faster':>9}{'largest difference with quirks':>33}"
    )
    for side, count in TILES:
        inst_hw = draw(side, count)
        difference = np.abs(hv_maps(relabel_pieces(inst_hw), True) - reference(inst_hw)).max()
        calls = {"reference": lambda: reference(inst_hw), "ours": lambda: hv_maps(relabel_pieces(inst_hw))}
        ms = medians_ms(calls, repeats if side < 1024 else max(repeats // 4, 1))
        ratio = ms["reference"] / ms["ours"]
        print(f"{side:>6}{count:>8}{ms['reference']:>14.2f}{ms['ours']:>10.2f}{ratio:>8.1f}x{difference:>33}")
