"""How well nuclei are found and typed on whole tiles: scores, and pictures of them.

Shape suffixes: h, w = height, width; n = nuclei of a tile; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ihc2he.metrics.detection import CARDS as DETECTION_CARDS
from ihc2he.metrics.detection import Detection, confusion, detection_scores
from ihc2he.metrics.fidelity import Card, PerImageMean
from ihc2he.metrics.panoptic import (
    AGGREGATES,
    PanopticQuality,
    aji,
    aji_plus,
    dice,
    panoptic_cards,
    panoptic_quality,
    panoptic_stats,
)
from ihc2he.models.pixels import pixels
from ihc2he.nuclei.decoders.base import Found, Nuclei
from ihc2he.nuclei.drawing import overlay
from ihc2he.nuclei.instances import centroids, instance_types, overlaps

MISSED, WRONG, FOUND = (213, 94, 0), (0, 114, 178), (200, 200, 200)  # colours of the picture of errors
_UNTYPED = " "  # for the confusion matrix, nuclei that are background to the classifier; no class may be called so


class Truth(NamedTuple):
    """An annotated tile.

    Attributes:
        name: of the tile.
        group: its tissue, or "".
        image: HxWx3 uint8 RGB.
        nuclei: the annotated ones, of type 0 if the data has no types.
    """

    name: str
    group: str
    image: NDArray[np.uint8]
    nuclei: Nuclei


def truths(batch: Mapping[str, Any]) -> list[Truth]:
    """Return the tiles of an evaluation batch."""
    images = pixels(batch["image"])
    insts = batch["inst"].cpu().numpy()
    types = batch["type"].cpu().numpy() if "type" in batch else np.zeros_like(insts)
    nuclei = [Nuclei(inst, *instance_types(inst, kinds)) for inst, kinds in zip(insts, types, strict=True)]
    return [Truth(*tile) for tile in zip(batch["name"], batch["group"], images, nuclei, strict=True)]


class SegmentationEvaluation:
    """Collects the scores of tiles. It is not an `nn.Module`, so checkpoints contain nothing of it.

    `bpq` and `mpq` follow PanNuke's official protocol, the mean over tissues; `bpq_image`, `mpq_image`, `bpq_dataset`
    and `mpq_dataset` are the same with other averages that papers use.

    Args:
        classes: names of the types, from 1; empty: all nuclei are of one kind.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.panoptic = {aggregate: PanopticQuality(self.classes, aggregate) for aggregate in AGGREGATES}
        self.detection = Detection([*self.classes, _UNTYPED])
        self.per_image = PerImageMean()

    @property
    def cards(self) -> dict[str, Card]:
        """The name cards by logged key."""
        cards = panoptic_cards() | DETECTION_CARDS
        for name in self.classes:
            for key in ("pq", "f1"):
                cards[f"{key}/{name}"] = replace(cards[key], name=f"{key}/{name}", title=f"{cards[key].title}, {name}")
        for aggregate in ("image", "dataset"):
            for name in ("bpq", "mpq"):
                card = panoptic_cards(aggregate)[name]
                cards[f"{name}_{aggregate}"] = replace(card, name=f"{name}_{aggregate}")
        return cards

    def update(self, truth: Truth, found: Found, mpp: float) -> dict[str, Any]:
        """Add a tile and return its row: name, group, counts and values by key.

        Args:
            truth: the annotation.
            found: on the grid of the tile.
            mpp: pixel size, um/px.
        """
        n = len(self.classes)
        # If one side has no types, those of the other are not evaluated; several sources may differ in that.
        silent = bool(n) and len(truth.nuclei.types_n) > 0 and not truth.nuclei.types_n.any()
        true_types = truth.nuclei.types_n if n else np.zeros_like(truth.nuclei.types_n)
        found_types = found.nuclei.types_n if n and not silent else np.zeros_like(found.nuclei.types_n)
        pairs = overlaps(truth.nuclei.inst_hw, found.nuclei.inst_hw)
        stats_cs = panoptic_stats(pairs, true_types, found_types, n)
        for metric in self.panoptic.values():
            metric.update(stats_cs[None], [truth.group])
        other = 0 if silent else n + 1  # unknown, or background to the classifier
        matrix_cc = confusion(
            centroids(truth.nuclei.inst_hw),
            found.centres_n2,
            mpp,
            np.where(true_types > 0, true_types, other),
            np.where(found_types > 0, found_types, other),
            n + 1,
        )
        self.detection.update(matrix_cc)
        means = {"aji": aji(pairs), "aji_plus": aji_plus(pairs), "dice": dice(pairs)}
        self.per_image.update({key: torch.tensor([value]) for key, value in means.items()}, [truth.group])
        quality = panoptic_quality(stats_cs[None], [""], self.classes, "image")
        found_well = detection_scores(matrix_cc, self.detection.classes)
        counts = {"n_true": len(pairs.true_ids_t), "n_found": len(pairs.pred_ids_p)}
        return {"name": truth.name, "group": truth.group} | self._shown(quality | found_well) | means | counts

    def compute_and_reset(self, device: torch.device) -> dict[str, Tensor]:
        """Return all values over the tiles of all devices; then start again from nothing.

        Collective: every rank has to call it.

        Args:
            device: where ranks exchange tensors.
        """
        metrics: list[Any] = [*self.panoptic.values(), self.detection, self.per_image]
        official, *others, detection, per_image = (metric.to(device).compute() for metric in metrics)
        values = official | detection | per_image
        for aggregate, other in zip(AGGREGATES[1:], others, strict=True):
            values |= {f"{name}_{aggregate}": other[name] for name in ("bpq", "mpq") if name in other}
        for metric in metrics:
            metric.reset()
            metric.to("cpu")
        return self._shown(values)

    def _shown(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values without meaningless ones: of the helper class, and of types if there are none."""
        hidden = {f"f1/{_UNTYPED}"}
        if not self.classes:
            hidden |= {key for key in values if key.startswith("mpq")} | {"type_accuracy"}
        return {key: value for key, value in values.items() if key not in hidden}


def paper_row(values: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Return the results as a row of the tables in papers on PanNuke, under its header.

    Args:
        values: as `SegmentationEvaluation.compute_and_reset` returns them.
        classes: in the order of the columns.

    >>> print(paper_row({"mpq": 0.463, "bpq": 0.66, "pq/dead": 0.139, "f1": 0.8, "f1/dead": 0.31}, ["dead"]))
    | mPQ | bPQ | PQ dead | F1 | F1 dead |
    | --- | --- | --- | --- | --- |
    | 0.4630 | 0.6600 | 0.1390 | 0.8000 | 0.3100 |
    """
    columns = {"mPQ": "mpq", "bPQ": "bpq"} | {f"PQ {name}": f"pq/{name}" for name in classes}
    columns |= {"F1": "f1"} | {f"F1 {name}": f"f1/{name}" for name in classes}
    columns = {title: key for title, key in columns.items() if key in values}
    cells = [list(columns), ["---"] * len(columns), [f"{float(values[key]):.4f}" for key in columns.values()]]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def pictures(truth: Truth, found: Nuclei, classes: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Return by title the tile, the true and the found outlines, and the errors: HxWx3 uint8 RGB of one size."""
    kinds = truth.nuclei.types_n if classes else np.zeros_like(truth.nuclei.types_n)
    shown = {
        "image": truth.image,
        "truth": overlay(truth.image, truth.nuclei.inst_hw, kinds, classes),
        "prediction": overlay(truth.image, found.inst_hw, found.types_n, classes),
        "missed orange, wrong blue": error_picture(truth.nuclei.inst_hw, found.inst_hw),
    }
    height = max(len(picture) for picture in shown.values())
    below = {title: ((0, height - len(picture)), (0, 0), (0, 0)) for title, picture in shown.items()}
    return {title: np.pad(picture, below[title], constant_values=255) for title, picture in shown.items()}


def error_picture(true_hw: NDArray[np.integer], pred_hw: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the nuclei of both maps on white: grey where they match with an IoU above 0.5, else missed or wrong.

    Args:
        true_hw: instance map, 0 = background.
        pred_hw: instance map of the same shape.

    >>> error_picture(np.array([[1, 0, 2]]), np.array([[5, 6, 0]]))[0].tolist()
    [[200, 200, 200], [0, 114, 178], [213, 94, 0]]
    """
    pairs = overlaps(true_hw, pred_hw)
    matched = pairs.iou_e > 0.5
    picture = np.full((*true_hw.shape, 3), 255, np.uint8)
    found_hw = np.isin(true_hw, pairs.true_ids_t[pairs.true_e[matched]])
    right_hw = np.isin(pred_hw, pairs.pred_ids_p[pairs.pred_e[matched]])
    picture[found_hw | right_hw] = FOUND
    picture[(pred_hw > 0) & ~right_hw] = WRONG
    picture[(true_hw > 0) & ~found_hw] = MISSED
    return picture
