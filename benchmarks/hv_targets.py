"""Times our HoVer targets against a transcription of the published ones, side by side in one run, and prints ratios.

    python benchmarks/hv_targets.py [repeats=11]

The transcription is the oracle of `tests/nuclei/test_targets.py`. Both separate the pieces of cut nuclei first; the
difference is that of the values with `reference_quirks`, which ought to be 0. Runs alternate, so that other load on the
machine falls on both.
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


def measure(side: int, count: int, repeats: int) -> str:
    """Return a line of the table: median milliseconds, their ratio, and the largest difference of the values."""
    inst_hw = runpy.run_path(str(TESTS / "nuclei" / "conftest.py"))["draw_ellipses"](side, count)
    reference = runpy.run_path(str(TESTS / "nuclei" / "test_targets.py"))["reference_hv"]
    difference = np.abs(hv_maps(relabel_pieces(inst_hw), reference_quirks=True) - reference(inst_hw)).max()
    calls = {"reference": lambda: reference(inst_hw), "ours": lambda: hv_maps(relabel_pieces(inst_hw))}
    ms = medians_ms(calls, repeats)
    ratio = ms["reference"] / ms["ours"]
    return f"{side:>6}{count:>8}{ms['reference']:>14.2f}{ms['ours']:>10.2f}{ratio:>8.1f}x{difference:>20}"


if __name__ == "__main__":
    arguments = dict(argument.split("=") for argument in sys.argv[1:])
    repeats = int(arguments.get("repeats", 11))
    print(f"{'px':>6}{'nuclei':>8}{'reference ms':>14}{'ours ms':>10}{'faster':>9}{'difference':>20}")
    for side, count in TILES:
        print(measure(side, count, repeats if side < 1024 else max(repeats // 3, 1)))
