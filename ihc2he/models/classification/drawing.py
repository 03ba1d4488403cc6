"""Pictures of a test of a classifier: the confusion matrix, and the reliability curve.

Shape suffixes: t = true classes, p = predicted ones; k = bins; 3 = confidence, correct, count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ihc2he.internals.matplotlib import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_picture(confusion_tp: NDArray[np.integer], classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return a confusion matrix as a picture, HxWx3 uint8: counts, and colours by the share of the true class."""
    figure = _figure()
    axis = figure.subplots()
    share_tp = confusion_tp / np.maximum(confusion_tp.sum(1, keepdims=True), 1)
    axis.imshow(share_tp, cmap="Blues", vmin=0, vmax=1)
    for (true, found), number in np.ndenumerate(confusion_tp):
        colour = "white" if share_tp[true, found] > 0.5 else "black"
        text = f"{number}\n{share_tp[true, found]:.0%}"
        axis.text(found, true, text, ha="center", va="center", color=colour)
    axis.set_xticks(range(len(classes)), classes)
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("found")
    axis.set_ylabel("true")
    axis.set_title(f"{int(confusion_tp.sum())} tiles")
    return _drawn(figure)


def reliability_picture(bins_k3: NDArray[np.floating], ece: float) -> NDArray[np.uint8]:
    """Return the reliability curve as a picture, HxWx3 uint8.

    Args:
        bins_k3: for each bin of the confidence: its sum, the number of right tiles, the number of tiles.
        ece: expected calibration error, for the title.
    """
    figure = _figure()
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidence_k, right_k, count_k = bins_k3[bins_k3[:, 2] > 0].T
    curve.plot([0, 1], [0, 1], color="grey", linestyle="--")
    curve.plot(confidence_k / count_k, right_k / count_k, marker="o")
    curve.set_ylabel("share that is right")
    curve.set_xlim(0, 1)
    curve.set_ylim(0, 1)
    curve.set_title(f"calibration error {ece:.3f}")
    edges = np.linspace(0, 1, len(bins_k3) + 1)
    bars.bar(edges[:-1], bins_k3[:, 2], width=1 / len(bins_k3), align="edge", edgecolor="white")
    bars.set_ylabel("tiles")
    bars.set_xlabel("confidence")
    return _drawn(figure)


def _figure() -> Figure:
    load()
    from matplotlib.figure import Figure

    return Figure(figsize=(5, 5), dpi=100, layout="constrained")


def _drawn(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
