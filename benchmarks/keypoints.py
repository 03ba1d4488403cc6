"""Times the scoring of a set of given predictions as large as EndoNuke, step by step, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/keypoints.py [tiles=1780] [points=120]

Tiles of 100 um hold random keypoints of three classes; a method finds most of them, some twice, and invents others.
Two methods are scored, for their paired difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from timing import argument

from ihc2he.metrics.average_precision import average_precisions
from ihc2he.metrics.bootstrap import differences, draw, intervals
from ihc2he.metrics.keypoints import TileScore, score_tile, scores, tabulate

CLASSES = ("stroma", "epithelium", "other")
SIDE, MPP = 200, 0.5
LIMIT_S = 20


def score(rng: np.random.Generator, points: int) -> TileScore:
    """Return the score of a random tile, with an instance map of squares and all that can be asked for."""
    true_t2, types_t = rng.uniform(0, SIDE, (points, 2)), rng.integers(0, 3, points)
    found_t = rng.random(points) < 0.85
    pred_p2 = np.concatenate([true_t2[found_t] + rng.normal(0, 2, (found_t.sum(), 2)), rng.uniform(0, SIDE, (20, 2))])
    types_p = np.concatenate([types_t[found_t], rng.integers(-1, 3, 20)])
    inst_hw = np.arange(1, 401, dtype=np.int32).reshape(20, 20).repeat(10, 0).repeat(10, 1)
    options: dict[str, Any] = {"mpp": MPP, "n_classes": 3, "inst_hw": inst_hw, "ap_classes": (0, 1, 0)}
    return score_tile(true_t2, types_t, pred_p2, types_p, scores_p=rng.random(len(pred_p2)), **options)


def timed(what: str, call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns and its CPU seconds, and print them beside those on the wall."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:<44}{cpu:>8.2f}{wall:>8.2f}")
    return result, cpu


def measure(n_tiles: int, points: int) -> float:
    """Return the CPU seconds of one method's evaluation, and print those of its steps and of a comparison."""
    names = [f"{number:04}" for number in range(n_tiles)]
    rng = np.random.default_rng(0)
    function = partial(scores, classes=CLASSES)
    print(f"{f'{n_tiles} tiles of {points} keypoints':<44}{'CPU s':>8}{'wall s':>8}")
    tiles, scoring = timed("six radii, classes, inside, ranks", lambda: {name: score(rng, points) for name in names})
    counts, adding = timed("sums", lambda: tabulate(tiles))
    ranked = [tile.ranked for tile in tiles.values() if tile.ranked]
    _, ranking = timed("average precision", lambda: average_precisions(ranked, CLASSES[:2]))
    by_tile, drawing = timed("2,000 resamples of tiles", lambda: draw({name: name for name in names}))
    by_block, drawing_blocks = timed("2,000 resamples of blocks", lambda: draw({name: name[:2] for name in names}))
    found, over_tiles = timed("intervals over tiles", lambda: intervals(counts, function, by_tile))
    _, over_blocks = timed("intervals over blocks", lambda: intervals(counts, function, by_block))
    timed("a paired difference of two methods", lambda: differences(counts, counts, function, by_tile))
    print(f"F1 {found['f1'].value:.4f} ({found['f1'].low:.4f} to {found['f1'].high:.4f}), {len(found)} metrics")
    return scoring + adding + ranking + drawing + drawing_blocks + over_tiles + over_blocks


if __name__ == "__main__":
    spent = measure(argument("tiles", 1780), argument("points", 120))
    print(
        f"one method: {spent:.1f} s of CPU time, {'within' if spent < LIMIT_S else 'BEYOND'} the limit of {LIMIT_S} s"
    )
