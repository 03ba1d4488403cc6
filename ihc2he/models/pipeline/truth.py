"""Comparison with the complete truth of simulated tissue: outlines, types, and where the stains went.

Everything is counted per tile so that it adds up over tiles, for pooled values and their bootstrap.
Shape suffixes: h, w = height, width; t = true nuclei; c = types; s = statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ihc2he.metrics.content import CARDS as CONTENT_CARDS
from ihc2he.metrics.content import dab_leakage
from ihc2he.metrics.detection import confusion, detection_scores
from ihc2he.metrics.fidelity import Card
from ihc2he.metrics.panoptic import aji, panoptic_stats
from ihc2he.metrics.stain import CARDS as STAIN_CARDS
from ihc2he.metrics.stain import stain_change
from ihc2he.models.pipeline.assembly import TileNuclei
from ihc2he.nuclei.instances import centroids, instance_types, overlaps

_ALL = (
    Card("pq", "PQ", True, "0 to 1", 1, "IoU > 0.5 with the true outlines, all nuclei, counts pooled over tiles"),
    Card("aji", "AJI", True, "0 to 1", 1, "Kumar 2017 with the true outlines, mean over tiles"),
    Card("f1_outlines", "F1 of all true nuclei", True, "0 to 1", 1, "centres of true outlines, one-to-one within 3 um"),
    Card("lost", "Nuclei lost", False, "nuclei", 1, "true centres without a found one within 3 um, mean over tiles"),
    Card("invented", "Nuclei invented", False, "nuclei", 1, "found centres without a true one, mean over tiles"),
    CONTENT_CARDS["dab_leakage"],
    Card(
        "gap_closed", "Gap closed", True, "share", 1,
        "(F1 - F1 without translation) / (F1 on the true H&E - F1 without translation), "
        "where the 95 % interval of the latter is above 0",
    ),
)  # fmt: skip


def truth_cards(types: Sequence[str]) -> dict[str, Card]:
    """Return the name cards of `truth_scores` and of the gap between translation and none.

    Args:
        types: names of the types of the truth.
    """
    rule = "centres of true outlines, one-to-one within 3 um; a wrong type counts twice among matches (HoVer-Net)"
    own = [Card(f"f1_type/{name}", f"F1 of true {name} nuclei", True, "0 to 1", 1, rule) for name in types]
    return {card.name: card for card in (*_ALL, *own)} | STAIN_CARDS


def compare_with_truth(
    inst_hw: NDArray[np.integer], type_hw: NDArray[np.integer], nuclei: TileNuclei, mpp: float, n_types: int
) -> dict[str, NDArray]:
    """Return what adds up to PQ, AJI, the F1 of types, and the nuclei lost and invented.

    Args:
        inst_hw: true instance map.
        type_hw: true type per pixel, from 1.
        nuclei: that were found, of the segmenter's types.
        mpp: um/px.
        n_types: number of types; 0 if the segmenter's types are not those of the truth.
    """
    true_types_t = instance_types(inst_hw, type_hw)[0]
    pairs = overlaps(inst_hw, nuclei.inst_hw)
    n = max(n_types, 1)
    matrix_cc = confusion(
        centroids(inst_hw),
        nuclei.centres_n2,
        mpp,
        true_types_t if n_types else np.ones_like(true_types_t),
        nuclei.types_n if n_types else np.ones_like(nuclei.types_n),
        n,
    )
    alone = _mean("lost", float(matrix_cc[:, 0].sum())) | _mean("invented", float(matrix_cc[0].sum()))
    return {"pq_s": panoptic_stats(pairs)[0], "truth_cc": matrix_cc} | _mean("aji", aji(pairs)) | alone


def stain_counts(
    ihc: NDArray[np.uint8], he: NDArray[np.uint8], inst_hw: NDArray[np.integer] | None
) -> dict[str, NDArray]:
    """Return what adds up to the means over tiles of what a translation did to the stains.

    Args:
        ihc: HxWx3 uint8, what was translated.
        he: HxWx3 uint8, its translation.
        inst_hw: true instance map; None: no leakage is measured.
    """
    source, made = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1 for image in (ihc, he))
    counts: dict[str, NDArray] = {}
    for name, value in stain_change(source, made, "he").items():
        counts |= _mean(name, float(value))
    if inst_hw is not None:
        counts |= _mean("dab_leakage", dab_leakage(ihc, he, inst_hw))
    return counts


def _mean(name: str, value: float) -> dict[str, NDArray]:
    """Return a value and whether it exists, which add up to a mean over the tiles that have it."""
    known = not np.isnan(value)
    return {f"mean_{name}": np.array(value if known else 0.0), f"mean_{name}_n": np.array(float(known))}


def truth_scores(sums: Mapping[str, NDArray], types: Sequence[str]) -> dict[str, NDArray]:
    """Return the metrics of summed counts; NaN if a ratio is 0/0. What was not counted is left out.

    Args:
        sums: of `compare_with_truth` and `stain_counts`, with any leading axes.
        types: names of the types, for `f1_type/<type>`.
    """
    found: dict[str, NDArray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        if "pq_s" in sums:
            tp, fp, fn, iou = np.moveaxis(sums["pq_s"], -1, 0)
            found["pq"] = iou / (tp + fp / 2 + fn / 2)
        for key in sums:
            if key.startswith("mean_") and not key.endswith("_n"):
                found[key.removeprefix("mean_")] = sums[key] / sums[f"{key}_n"]
    if "truth_cc" in sums:
        matrices_cc = sums["truth_cc"]
        n = matrices_cc.shape[-1] - 2
        names = [*types][:n] if len(types) == n else [str(i) for i in range(n)]
        values = [detection_scores(matrix_cc, names) for matrix_cc in matrices_cc.reshape(-1, n + 2, n + 2)]
        shape = matrices_cc.shape[:-2]
        found["f1_outlines"] = np.reshape([entry["f1"] for entry in values], shape)
        if len(types) == n > 1:
            for name in types:
                found[f"f1_type/{name}"] = np.reshape([entry[f"f1/{name}"] for entry in values], shape)
    return found
