"""Times our panoptic quality against PanNuke's and MONAI's.

    python benchmarks/panoptic.py [seconds=5] [side=1024]

`one map` is the PQ of a pair of instance maps; `classes` is all that PanNuke's evaluation gives for a tile, which it
takes from one map per class and we from one map and a type for each nucleus. PanNuke's is a transcription, the oracle
of `tests/metrics/test_panoptic.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from timing import Row, argument, finish, has_peer, names_of, ratios, take_turns

from ihc2he.metrics.panoptic import panoptic_stats, qualities
from ihc2he.nuclei.instances import overlaps

TILES = ((256, 40), (1024, 600))  # side in px, nuclei
CLASSES = 5


def one_map(side: int, count: int, seconds: int, peer: bool) -> list[Row]:
    """Return the rows of a tile without classes, timed for so many seconds or a little more."""
    true_hw, pred_hw = tile(side, count)
    oracle = names_of("metrics/test_panoptic.py")

    def ours() -> float:
        return float(qualities(panoptic_stats(overlaps(true_hw, pred_hw))[0])[2])

    def pannuke() -> float:
        return oracle["reference_pq"](*(oracle["reference_remap"](ids_hw) for ids_hw in (true_hw, pred_hw)))[2]

    calls = {"PanNuke": pannuke, "ours": ours}
    if peer:
        import torch
        from monai.metrics.panoptic_quality import compute_panoptic_quality

        torch.set_num_threads(1)
        maps = torch.from_numpy(pred_hw), torch.from_numpy(true_hw)
        calls["MONAI"] = lambda: compute_panoptic_quality(*maps).item()
    outputs = {name: f"difference {abs(call() - ours()):.0e}" for name, call in calls.items()}
    return ratios(f"PQ of a pair of maps, {side} px", take_turns(calls, seconds), outputs)


def classes(side: int, count: int, seconds: int) -> list[Row]:
    """Return the row of a tile with classes, timed for so many seconds or a little more."""
    true_hw, pred_hw = tile(side, count)
    oracle = names_of("metrics/test_panoptic.py")
    kinds = np.random.default_rng(0).integers(1, CLASSES + 1, count + 1)
    types_n = kinds[np.unique(true_hw)[1:]]
    channels = [oracle["channels"](ids_hw, kinds) for ids_hw in (true_hw, pred_hw)]

    def ours() -> NDArray:
        return qualities(panoptic_stats(overlaps(true_hw, pred_hw), types_n, types_n, CLASSES))[2]

    def pannuke() -> NDArray:
        binary, each = oracle["reference_image"](*channels)
        return np.array([binary, *each])

    difference = np.abs(ours() - pannuke()).max()
    spent = take_turns({"PanNuke": pannuke, "ours": ours}, seconds)
    return ratios(
        f"PQ of a tile and its {CLASSES} classes, {side} px", spent, {"PanNuke": f"difference {difference:.0e}"}
    )


def tile(side: int, count: int) -> tuple[NDArray, NDArray]:
    """Return a true map and a prediction, the same nuclei moved a little."""
    true_hw = names_of("nuclei/conftest.py")["draw_ellipses"](side, count)
    return true_hw, np.roll(true_hw, (1, 2), (0, 1))


if __name__ == "__main__":
    rows, seconds, peer = [], argument("seconds", 5), has_peer("monai")
    for side, count in [tile for tile in TILES if tile[0] <= argument("side", 1024)]:
        rows += one_map(side, count, seconds, peer) + classes(side, count, seconds)
    finish("panoptic", rows)
