"""Times the matching of keypoints, and the scoring of a set of predictions as large as EndoNuke, step by step.

    OMP_NUM_THREADS=1 python benchmarks/keypoints.py [tiles=1780] [points=120] [seconds=3]

The published matching (HoVer-Net's, written here from its description) assigns all points to one another by their
distances and drops pairs beyond the radius afterwards; ours looks at pairs within it only, and may match more. For the
set, tiles of 100 um hold random keypoints of three classes; a method finds most of them, some twice, and invents
others. Two methods are scored, for their paired difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from timing import Row, argument, finish, ratios, take_turns

from ihc2he.metrics.average_precision import average_precisions
from ihc2he.metrics.bootstrap import differences, draw, intervals
from ihc2he.metrics.keypoints import TileScore, score_tile, scores, tabulate
from ihc2he.nuclei.matching import match_points

CLASSES = ("stroma", "epithelium", "other")
SIDE, MPP = 200, 0.5
RADIUS = 6  # px: 3 um
LIMIT_S = 20
CROWDED = 3000  # points


def points(rng: np.random.Generator, number: int) -> tuple[NDArray, NDArray]:
    """Return true points of EndoNuke's density, and those that a method finds: most of them, and some others."""
    side = SIDE * (number / 120) ** 0.5
    true_t2 = rng.uniform(0, side, (number, 2))
    kept_t2 = true_t2[rng.random(number) < 0.85]
    return true_t2, np.concatenate([kept_t2 + rng.normal(0, 2, kept_t2.shape), rng.uniform(0, side, (number // 6, 2))])


def published_matching(true_t2: NDArray, pred_p2: NDArray, radius: float) -> NDArray[np.intp]:
    """Return the true points that are matched."""
    distance_tp = cdist(true_t2, pred_p2)
    true_m, pred_m = linear_sum_assignment(distance_tp)
    return true_m[distance_tp[true_m, pred_m] <= radius]


def matching(number: int, seconds: int) -> list[Row]:
    """Return the row of so many keypoints."""
    both = points(np.random.default_rng(0), number)
    calls = {"published": lambda: published_matching(*both, RADIUS), "ours": lambda: match_points(*both, RADIUS)}
    counts = len(published_matching(*both, RADIUS)), len(match_points(*both, RADIUS)[0])
    outputs = {"published": f"{counts[0]} and {counts[1]} matched"}
    return ratios(f"matching {number} keypoints", take_turns(calls, seconds), outputs)


def score(rng: np.random.Generator, number: int) -> TileScore:
    """Return the score of a random tile, with an instance map of squares and all that can be asked for."""
    true_t2, types_t = rng.uniform(0, SIDE, (number, 2)), rng.integers(0, 3, number)
    found_t = rng.random(number) < 0.85
    pred_p2 = np.concatenate([true_t2[found_t] + rng.normal(0, 2, (found_t.sum(), 2)), rng.uniform(0, SIDE, (20, 2))])
    types_p = np.concatenate([types_t[found_t], rng.integers(-1, 3, 20)])
    inst_hw = np.arange(1, 401, dtype=np.int32).reshape(20, 20).repeat(10, 0).repeat(10, 1)
    options: dict[str, Any] = {"mpp": MPP, "n_classes": 3, "inst_hw": inst_hw, "ap_classes": (0, 1, 0)}
    return score_tile(true_t2, types_t, pred_p2, types_p, scores_p=rng.random(len(pred_p2)), **options)


def evaluation(n_tiles: int, number: int) -> dict[str, float]:
    """Return the CPU seconds of each step of an evaluation, and print them."""
    spent: dict[str, float] = {}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = call()
        spent[what] = time.process_time() - started
        print(f"{what:<44}{spent[what]:>8.2f} s")
        return result

    names = [f"{i:04}" for i in range(n_tiles)]
    rng = np.random.default_rng(0)
    function = partial(scores, classes=CLASSES)
    print(f"{n_tiles} tiles of {number} keypoints, CPU time")
    tiles = timed("six radii, classes, inside, ranks", lambda: {name: score(rng, number) for name in names})
    counts = timed("sums", lambda: tabulate(tiles))
    ranked = [tile.ranked for tile in tiles.values() if tile.ranked]
    timed("average precision", lambda: average_precisions(ranked, CLASSES[:2]))
    by_tile = timed("2,000 resamples of tiles", lambda: draw({name: name for name in names}))
    by_block = timed("2,000 resamples of blocks", lambda: draw({name: name[:2] for name in names}))
    timed("intervals over tiles", lambda: intervals(counts, function, by_tile))
    timed("intervals over blocks", lambda: intervals(counts, function, by_block))
    total = sum(spent.values())
    timed("a paired difference of two methods", lambda: differences(counts, counts, function, by_tile))
    print(f"one method: {total:.1f} s, {'within' if total < LIMIT_S else 'BEYOND'} the limit of {LIMIT_S} s")
    return spent


if __name__ == "__main__":
    found = [row for number in (120, CROWDED) for row in matching(number, argument("seconds", 3))]
    finish("keypoints", found, evaluation_s=evaluation(argument("tiles", 1780), argument("points", 120)))
