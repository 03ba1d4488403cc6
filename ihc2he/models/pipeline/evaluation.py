"""How well a method finds nuclei: compared with keypoints and, if it is known, with the complete truth.

Methods are called `translator+segmenter`, in batches, tables and logged keys.
Shape suffixes: n = nuclei; k = types of a segmenter; c = classes of keypoints; s = statistics; 3 = (x, y, class).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.metrics.agreement import ReaderCounts, agreement, score_readers
from ihc2he.metrics.average_precision import average_precisions
from ihc2he.metrics.bootstrap import Counts, Interval, Resampling, differences, draw, intervals, units_of
from ihc2he.metrics.fidelity import Card
from ihc2he.metrics.keypoints import TileScore, cards, score_tile, scores, tabulate
from ihc2he.metrics.pale import dab_around, pale_card, pale_counts, pale_limit, pale_scores
from ihc2he.models.pipeline.assembly import TileNuclei
from ihc2he.models.pipeline.method import Method, Role
from ihc2he.models.pipeline.truth import compare_with_truth, stain_counts, truth_cards, truth_scores
from ihc2he.models.pipeline.types import type_map
from ihc2he.ranks import from_all_ranks
from ihc2he.stain.white import FULL, White

_NO_INTERVAL = Interval(np.nan, np.nan, np.nan)
COMPARED = (  # with the baseline
    "f1", "precision", "recall", "recall_pale", "f1_inside", "f1_macro", "count_mae", "pq", "aji",
)  # fmt: skip


@dataclass(frozen=True)
class MethodResult:
    """What a method found on a tile, with types from 1 as the classes of the keypoints, and how that compares."""

    he: NDArray[np.uint8]
    nuclei: TileNuclei
    score: TileScore
    extra: dict[str, NDArray] = field(default_factory=dict)  # what was counted against the truth


@dataclass(frozen=True)
class ScoredTile:
    """An annotated tile and what each method found on it."""

    name: str
    group: str
    mpp: float
    image: NDArray[np.uint8]
    points_n3: NDArray[np.int64]
    classes: list[str]
    results: dict[str, MethodResult]


class _Scores(NamedTuple):
    """What is kept of a tile: the DAB at its keypoints, how its readers agree, and what was counted of each method.

    That is its score and what was counted against the truth.
    """

    name: str
    block: str
    dab_n: NDArray[np.float64]
    methods: dict[str, tuple[TileScore, dict[str, NDArray]]]
    readers: ReaderCounts


class MethodComparison:
    """Collects what methods found on annotated tiles, and compares the methods. It is no `nn.Module`.

    Args:
        types: names of the types of each method's segmenter, by method.
        roles: what each translator is in the comparison, by its name.
        classes: of the keypoints; empty: neither they nor the nuclei have any.
        class_map: see `type_map`.
        truth_classes: names of the types of the truth, where it is known; class F1 against it needs the same types.
        radius_um: largest distance of a keypoint and its nucleus.
        radii_um: further ones, for the curve.
        ap_map: classes that average precision counts as another.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        against: further methods that every other is compared with.

    Raises:
        ConfigError: if `class_map` or `ap_map` does not fit the types or classes.
    """

    def __init__(
        self,
        types: Mapping[Method, Sequence[str]],
        roles: Mapping[str, Role],
        classes: Sequence[str],
        class_map: Mapping[str, str | None] | None,
        truth_classes: Sequence[str],
        radius_um: float,
        radii_um: Sequence[float],
        ap_map: Mapping[str, str],
        resamples: int,
        seed: int,
        against: Sequence[str] = (),
    ) -> None:
        self.classes = list(classes)
        class_map = class_map if classes else None
        self.methods = {str(method): method for method in types}
        self.roles = dict(roles)
        self.maps = {str(m): type_map(m.segmenter, names, class_map, classes) for m, names in types.items()}
        self.typed = {str(m): list(names) == list(truth_classes) for m, names in types.items()}
        self.truth_classes = list(truth_classes)
        self.radius_um, self.radii_um = radius_um, list(radii_um)
        self.ap_classes = [name for name in classes if name not in ap_map]
        for name in classes:
            if ap_map.get(name, name) not in self.ap_classes:
                msg = (
                    f"model.ap_map.{name}={ap_map[name]}: average precision has no such class."
                    f"{did_you_mean(ap_map[name], self.ap_classes)} ~model.ap_map.{name} counts {name} as itself."
                )
                raise ConfigError(msg)
        self.ap_of = [self.ap_classes.index(ap_map.get(name, name)) for name in classes] or [0]
        self.resamples, self.seed = resamples, seed
        self.against = [method for method in against if method in self.methods]
        self._tiles: list[_Scores] = []

    @property
    def cards(self) -> dict[str, Card]:
        """The name cards of the metrics."""
        ours = cards(self.classes, self.ap_classes, self.radius_um, self.radii_um)
        pale = pale_card(self.radius_um)
        return ours | {pale.name: pale} | truth_cards(self.truth_classes)

    def update(
        self, tile: Mapping[str, Any], found: Mapping[str, tuple[NDArray[np.uint8], TileNuclei]], white: White = FULL
    ) -> ScoredTile:
        """Return a tile with the scores of each method, and keep them.

        Args:
            tile: an entry of an evaluation batch.
            found: the H&E and the nuclei of each method, of its segmenter's types.
            white: white point of the tile.
        """
        results = {method: self._score(tile, method, *entry) for method, entry in found.items()}
        mpp = float(tile["mpp"])
        again = tile.get("second_readings", ())  # of an annotator who is among the readers already
        readers = {name: points for name, points in tile["readers"].items() if name not in again}
        agreed = score_readers(readers, mpp=mpp, n_classes=len(self.ap_of), radius_um=self.radius_um)
        kept = {method: (result.score, result.extra) for method, result in results.items()}
        dab_n = dab_around(tile["image"], tile["points"][:, :2], mpp, white)
        self._tiles.append(_Scores(tile["name"], tile["group"], dab_n, kept, agreed))
        return ScoredTile(tile["name"], tile["group"], mpp, tile["image"], tile["points"], self.classes, results)

    def _score(self, tile: Mapping[str, Any], method: str, he: NDArray[np.uint8], nuclei: TileNuclei) -> MethodResult:
        mapped = self.maps[method].apply(nuclei)
        points_n3 = tile["points"]
        score = score_tile(
            points_n3[:, :2], points_n3[:, 2], nuclei.centres_n2, mapped.types_n - 1,
            mpp=float(tile["mpp"]), n_classes=len(self.ap_of), radius_um=self.radius_um, radii_um=self.radii_um,
            inst_hw=nuclei.inst_hw, scores_p=nuclei.scores_n, ap_classes=self.ap_of,
        )  # fmt: skip
        extra = {} if self._role(method) == "none" else stain_counts(tile["image"], he, tile.get("inst"))
        if tile.get("inst") is not None:
            types = len(self.truth_classes) if self.typed[method] else 0
            extra |= compare_with_truth(tile["inst"], tile["type"], nuclei, float(tile["mpp"]), types)
        return MethodResult(he, mapped, score, extra)

    def _role(self, method: str) -> Role:
        return self.roles[self.methods[method].translator]

    def _with_role(self, role: Role, method: str) -> str | None:
        """Return the method that has the same segmenter and a translator of this role; None where there is none."""
        segmenter = self.methods[method].segmenter
        found = (name for name, own in self.methods.items() if own.segmenter == segmenter)
        return next((name for name in found if self._role(name) == role), None)

    def rows(self, tile: ScoredTile) -> list[dict[str, Any]]:
        """Return a row per method for the table of tiles."""
        rows = []
        for method, result in tile.results.items():
            typed = (self.maps[method].class_k >= 0).any()
            sums = {key: count for key, count in result.score.counts.items() if typed or "_c" not in key}
            against_truth = truth_scores(result.extra, self.truth_classes)
            values = scores(sums, self.classes, self.radii_um) | against_truth
            untyped = (key for key in against_truth if not key.startswith("f1_type/"))
            shown = ("f1", "precision", "recall", "f1_inside", "type_accuracy", *untyped)
            numbers = {key: float(values[key]) for key in shown if key in values}
            counts = {"n_true": int(sums["true"]), "n_found": int(sums["pred"])}
            rows.append({"name": tile.name, "group": method} | numbers | counts | {"block": tile.group})
        return rows

    # ------------------------------------------------------------------ all tiles

    def compute_and_reset(self) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
        """Return the metrics as `<metric>/<method>` and the tables by file name; then start again from nothing.

        Collective: every rank has to call it.
        """
        tiles, self._tiles = [tile for part in from_all_ranks(self._tiles) for tile in part], []
        if not tiles:
            return {}, {}
        tiles = sorted(tiles, key=lambda tile: tile.name)
        limit = pale_limit([tile.dab_n for tile in tiles])
        counts = {method: self._counts(tiles, method, limit) for method in self.maps}
        over_tiles = draw({tile.name: tile.name for tile in tiles}, self.resamples, self.seed)
        blocks = units_of({tile.name: tile.block for tile in tiles})
        over_blocks = draw(blocks, self.resamples, self.seed) if len(set(blocks.values())) < len(blocks) else None
        found = self._intervals(counts, over_tiles)
        for method in found:
            ranked = [tile.methods[method][0].ranked for tile in tiles]
            exact = average_precisions([entry for entry in ranked if entry is not None], self.ap_classes)
            found[method] |= {name: Interval(value, np.nan, np.nan) for name, value in exact.items()}
        found_by_blocks = {} if over_blocks is None else self._intervals(counts, over_blocks)
        values = {f"{name}/{m}": entry.value for m, own in found.items() for name, entry in own.items()}
        tables = {
            "comparison.csv": self._comparison(found, found_by_blocks, len(tiles)),
            "differences.csv": self._differences(counts, over_tiles, over_blocks),
            "radius.csv": self._radius(found),
            "agreement.csv": self._agreement(tiles),
        }
        return values, tables

    def _counts(self, tiles: Sequence[_Scores], method: str, limit: float) -> Counts:
        own = tabulate({tile.name: tile.methods[method][0] for tile in tiles})
        extras = [
            extra | pale_counts(tile.dab_n, score.true_m, limit)
            for tile in tiles
            for score, extra in [tile.methods[method]]
        ]
        more = {key: np.stack([extra[key] for extra in extras]) for key in extras[0]}
        return Counts(own.names, {**own.columns, **more})

    def _values(self, sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
        found = scores(sums, self.classes, self.radii_um)
        return found | pale_scores(sums) | truth_scores(sums, self.truth_classes)

    def _intervals(self, counts: Mapping[str, Counts], drawn: Resampling) -> dict[str, dict[str, Interval]]:
        """Return the metrics of each method, and the share of the gap between none and the true H&E that it closes."""
        found = {method: intervals(own, self._values, drawn) for method, own in counts.items()}
        for method in counts:
            floor, ceiling = self._with_role("none", method), self._with_role("ceiling", method)
            if self._role(method) != "translation" or floor is None or ceiling is None:
                continue
            three = {"floor": counts[floor], "ceiling": counts[ceiling], "own": counts[method]}
            joint = {f"{role}/{key}": own.columns[key] for role, own in three.items() for key in ("tp", "true", "pred")}
            gap = intervals(Counts(counts[method].names, joint), _gap_closed, drawn)
            clear = gap["gap"].low > 0 or (np.isnan(gap["gap"].low) and gap["gap"].value > 0)
            found[method]["gap_closed"] = gap["gap_closed"] if clear else _NO_INTERVAL
        return found

    def _comparison(
        self,
        found: Mapping[str, Mapping[str, Interval]],
        by_blocks: Mapping[str, Mapping[str, Interval]],
        n_tiles: int,
    ) -> list[dict[str, Any]]:
        """Return each metric of each method, with intervals over tiles and over blocks of them."""
        known = self.cards
        rows = []
        for method, own in found.items():
            for metric, entry in own.items():
                _, blocks_low, blocks_high = by_blocks.get(method, {}).get(metric, _NO_INTERVAL)
                rows.append(
                    {
                        "metric": metric, "method": method, "role": self._role(method), "value": entry.value,
                        "low": entry.low, "high": entry.high, "blocks_low": blocks_low, "blocks_high": blocks_high,
                        "n": n_tiles, "better": known[metric].better, "protocol": known[metric].protocol,
                    }
                )  # fmt: skip
        return rows

    def _differences(
        self, counts: Mapping[str, Counts], over_tiles: Resampling, over_blocks: Resampling | None
    ) -> list[dict[str, Any]]:
        """Return the difference of each method from the one without translation, and from those of `against`."""
        rows = []
        for method, against in self._pairs():
            own = counts[method]
            by_tiles = differences(own, counts[against], self._values, over_tiles)
            by_blocks = {} if over_blocks is None else differences(own, counts[against], self._values, over_blocks)
            for metric in COMPARED:
                if metric in by_tiles:
                    value, low, high = by_tiles[metric]
                    _, blocks_low, blocks_high = by_blocks.get(metric, _NO_INTERVAL)
                    rows.append(
                        {
                            "metric": metric, "method": method, "against": against, "difference": value,
                            "low": low, "high": high, "blocks_low": blocks_low, "blocks_high": blocks_high,
                        }
                    )  # fmt: skip
        return rows

    def _pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of methods whose difference is of interest."""
        others = {method: dict.fromkeys([self._with_role("none", method), *self.against]) for method in self.methods}
        return [(method, other) for method, own in others.items() for other in own if other and other != method]

    def _agreement(self, tiles: Sequence[_Scores]) -> list[dict[str, Any]]:
        """Return how well annotators agree, which is the human limit."""
        found = agreement([tile.readers for tile in tiles], self.classes)
        summary = found.summary()
        names = [key.removesuffix("/mean") for key in summary if key.endswith("/mean")]
        ends = ("mean", "min", "max")
        return [
            {"metric": key} | {end: summary[f"{key}/{end}"] for end in ends} | {"n": found.n_tiles} for key in names
        ]

    def _radius(self, found: Mapping[str, Mapping[str, Interval]]) -> list[dict[str, Any]]:
        names = ("precision", "recall", "f1")
        return [
            {"method": method, "radius_um": radius} | {name: own[f"{name}_{radius:g}um"].value for name in names}
            for method, own in found.items()
            for radius in self.radii_um
        ]


def _gap_closed(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return how much F1 gains on the true H&E, and the share of it that a method reaches."""
    with np.errstate(invalid="ignore", divide="ignore"):
        floor, ceiling, own = (
            2 * sums[f"{role}/tp"] / (sums[f"{role}/true"] + sums[f"{role}/pred"])
            for role in ("floor", "ceiling", "own")
        )
        gap = ceiling - floor
        return {"gap": gap, "gap_closed": np.where(gap > 0, (own - floor) / gap, np.nan)}


def summary(comparison: Sequence[Mapping[str, Any]]) -> str:
    """Return the main metrics of each method as a table, with intervals where there are any.

    Args:
        comparison: the rows of `comparison.csv`.

    >>> row = {"method": "none+classical", "metric": "f1", "value": 0.8244, "low": 0.81, "high": 0.84}
    >>> print(summary([row]))
    | method | F1 |
    | --- | --- |
    | none+classical | 0.824 [0.810, 0.840] |
    """
    cells: dict[tuple[str, str], str] = {}
    for row in comparison:
        interval = "" if np.isnan(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
        cells[row["method"], row["metric"]] = "" if np.isnan(row["value"]) else f"{row['value']:.3f}{interval}"
    titles = {"f1": "F1", "precision": "precision", "recall": "recall", "ap": "AP", "gap_closed": "gap closed"}
    titles = {key: title for key, title in titles.items() if any(metric == key for _, metric in cells)}
    lines = [["method", *titles.values()], ["---"] * (len(titles) + 1)]
    for method in dict.fromkeys(method for method, _ in cells):
        lines.append([method, *(cells.get((method, key), "") for key in titles)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
