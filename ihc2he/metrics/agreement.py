"""Agreement between annotators of the same tiles: the best that can be expected of a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from ihc2he.metrics.keypoints import RADIUS_UM, score_tile, scores

ReaderCounts = dict[tuple[str, str], dict[str, NDArray[np.int64]]]
_OF_A_READER = ("f1", "precision", "recall")


def score_readers(
    readers: Mapping[str, NDArray[np.integer]], *, mpp: float, n_classes: int, radius_um: float = RADIUS_UM
) -> ReaderCounts:
    """Return the counts of a tile for each pair of annotators: the first is the truth, the second the method.

    Args:
        readers: by annotator (N, 3) points: x and y in px, class from 0.
        mpp: pixel size, um/px.
        n_classes: number of classes.
        radius_um: largest distance of a match.

    Returns:
        `TileScore.counts` by pair; empty with fewer than two annotators.

    >>> readers = {"a": np.array([[5, 5, 0]]), "b": np.array([[6, 5, 0], [50, 50, 0]])}
    >>> counts = score_readers(readers, mpp=1, n_classes=1)
    >>> [(pair, int(count["tp"]), int(count["pred"])) for pair, count in counts.items()]
    [(('a', 'b'), 1, 2), (('b', 'a'), 1, 1)]
    """
    judge = partial(score_tile, mpp=mpp, n_classes=n_classes, radius_um=radius_um, radii_um=())
    halves = {name: (points[:, :2], points[:, 2]) for name, points in readers.items()}
    return {(true, pred): judge(*halves[true], *halves[pred]).counts for true, pred in permutations(readers, 2)}


@dataclass(frozen=True)
class Agreement:
    """How well annotators agree.

    Attributes:
        n_tiles: number of tiles with at least two annotators.
        pairs: values of `scores` for each pair of annotators, over the tiles that both have labelled.
        readers: the same for each annotator, compared with all others, over all tiles that they share.
    """

    n_tiles: int
    pairs: dict[tuple[str, str], dict[str, float]]
    readers: dict[str, dict[str, float]]

    def summary(self) -> dict[str, float]:
        """Return by `human_<metric>/<mean, min or max>` the values over pairs, and `reader_<metric>/<annotator>`."""
        found: dict[str, float] = {}
        for key in filter(_is_shown, next(iter(self.pairs.values()), {})):
            values = [pair[key] for pair in self.pairs.values() if not np.isnan(pair[key])] or [float("nan")]
            ends = {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
            found |= {f"human_{key}/{end}": value for end, value in ends.items()}
        for name, judged in self.readers.items():
            found |= {f"reader_{key}/{name}": judged[key] for key in _OF_A_READER}
        return found


def agreement(tiles: Iterable[ReaderCounts], classes: Sequence[str]) -> Agreement:
    """Return how well annotators agree, with the same metrics as for methods.

    Counts are summed over tiles before dividing.

    Args:
        tiles: `score_readers` of each; those with fewer than two annotators do not count.
        classes: names of the classes.

    >>> readers = {"a": np.array([[5, 5, 0]]), "b": np.array([[6, 5, 0], [50, 50, 0]])}
    >>> found = agreement([score_readers(readers, mpp=1, n_classes=1), {}], ["stroma"])
    >>> found.n_tiles, round(found.pairs["a", "b"]["f1"], 3), found.readers["b"]["precision"]
    (1, 0.667, 0.5)
    """
    tiles = [tile for tile in tiles if tile]
    by_pair: dict[tuple[str, str], list[dict[str, NDArray[np.int64]]]] = {}
    for tile in tiles:
        for pair, counts in tile.items():
            by_pair.setdefault(pair, []).append(counts)
    names = sorted({name for pair in by_pair for name in pair})
    both = {pair: _pooled(by_pair[pair], classes) for pair in combinations(names, 2) if pair in by_pair}
    judged = {name: [counts for pair in by_pair if pair[1] == name for counts in by_pair[pair]] for name in names}
    return Agreement(len(tiles), both, {name: _pooled(counts, classes) for name, counts in judged.items()})


def _pooled(counts: Sequence[Mapping[str, NDArray]], classes: Sequence[str]) -> dict[str, float]:
    sums = {key: np.sum([each[key] for each in counts], 0) for key in counts[0]}
    return {key: float(value) for key, value in scores(sums, classes, ()).items()}


def _is_shown(key: str) -> bool:
    general = ("f1", "type_accuracy", "type_kappa", "f1_macro", "f1_own_macro")
    return key in general or key.startswith(("f1/", "f1_own/"))
