"""The pictures of a sweep: all jobs at once, and how much each setting matters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any

from ihc2he.internals.matplotlib import load
from ihc2he.metrics.cards import badness
from ihc2he.sweep.settings import arm_of, numbers_of


def parallel_coordinates(
    file: Path, settings: Mapping[str, Sequence[str]], jobs: Sequence[Mapping[str, Any]], title: str
) -> None:
    """Draw one line per job and one axis per setting; the last axis and the colour are the job's value."""
    load()
    from matplotlib import colormaps

    values = [job["value"] for job in jobs]
    axes = [_axis(texts) for texts in settings.values()] + [_axis([repr(float(value)) for value in values])]
    names = [*settings, jobs[0]["metric"]]
    figure, ax = _canvas(2 + 1.9 * len(axes), 4.2)
    top = min(values, key=lambda value: badness(value, jobs[0]["better"]))
    apart = [0.06 * (len(set(heights)) <= 4) for heights, _ in axes[:-1]]  # otherwise they would hide each other
    order = sorted(range(len(jobs)), key=lambda i: (values[i] == top, values[i]))  # the best in front
    for rank, i in enumerate(order):
        shift = (rank + 0.5) / len(jobs) - 0.5
        line = [heights[i] + part * shift for (heights, _), part in zip(axes, [*apart, 0], strict=True)]
        style = {"alpha": 1, "linewidth": 3} if values[i] == top else {"alpha": 0.7, "linewidth": 1.2}
        ax.plot(line, color=colormaps["viridis"](line[-1]), **style)
    ax.vlines(range(len(axes)), 0, 1, color="black", linewidth=0.8)
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    for x, (_, labels) in enumerate(axes):
        for height, label in labels.items():
            ax.text(x + 0.04, height, _short(label, 16), ha="left", va="center", fontsize=8, bbox=box)
    ax.set(xticks=range(len(axes)), xlim=(-0.3, len(axes) - 0.4), ylim=(-0.06, 1.06), yticks=[])
    ax.set_xticklabels([_folded(name) for name in names], fontsize=8)
    ax.set_title(f"{title}, the best one is thick", fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.savefig(file, dpi=120)


def _axis(texts: Sequence[str]) -> tuple[list[float], dict[float, str]]:
    """Return the heights of values on an axis from 0 to 1, and its labels by height.

    Numbers are at their values, or at their logarithms if they span a factor of 20; other values are evenly spaced.
    """
    numbers = numbers_of(texts)
    if not numbers:
        levels = sorted(set(texts))
        heights = [levels.index(text) / max(len(levels) - 1, 1) for text in texts]
        labels = dict(zip(heights, texts, strict=True))
        return heights, labels if len(labels) <= 12 else {h: labels[h] for h in (0.0, 1.0)}
    scaled = [log10(n) for n in numbers] if min(numbers) > 0 and max(numbers) / min(numbers) >= 20 else numbers
    low, high = min(scaled), max(scaled)
    heights = [(value - low) / (high - low) if high > low else 0.5 for value in scaled]
    labels = {height: f"{number:.4g}" for height, number in zip(heights, numbers, strict=True)}
    return heights, labels if len(labels) <= 4 else {h: labels[h] for h in (0.0, 1.0)}


def bars(file: Path, shares: Mapping[str, tuple[float, float]], title: str) -> None:
    """Draw a bar per setting, the longest on top, with a line at the length expected by chance."""
    ordered = sorted(shares, key=lambda key: shares[key])
    width = max(len(line) for key in ordered for line in _folded(key).splitlines())
    figure, ax = _canvas(5 + 0.08 * width, 1.4 + 0.45 * len(ordered))
    ax.barh(range(len(ordered)), [shares[key][0] for key in ordered], color="#3b6ea5", height=0.6)
    chance = [shares[key][1] for key in ordered]
    ends = ([y + d for y in range(len(ordered))] for d in (-0.4, 0.4))
    ax.vlines(chance, *ends, color="black", linewidth=2, label="expected by chance")
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the variance between a setting's levels (eta squared)", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_yticks(range(len(ordered)), [_folded(key) for key in ordered])
    ax.set_title(title, fontsize=9)
    ax.legend(fontsize=8, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def differences(file: Path, rows: Sequence[Mapping[str, Any]], reference: str) -> None:
    """Draw each arm less the reference, with its interval; the arms that have none are left out.

    Args:
        file: to write.
        rows: of one metric, as `sweep.arms.compare` returns them.
        reference: its name.
    """
    shown = [row for row in rows if row["difference"] is not None][::-1]
    figure, ax = _canvas(8, 1.4 + 0.28 * len(shown))
    ax.axvline(0, color="black", linewidth=0.8)
    for y, row in enumerate(shown):
        if row["difference_low"] is not None:
            ax.plot([row["difference_low"], row["difference_high"]], [y, y], color="#3b6ea5", linewidth=2)
        ax.plot(row["difference"], y, "o", color="#3b6ea5")
    ax.set_yticks(range(len(shown)), [arm_of(row) for row in shown])
    ax.tick_params(labelsize=8)
    ax.set_xlabel(f"{rows[0]['metric'].replace('_', ' ')}, less that of {reference}; 95 % intervals", fontsize=9)
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(file, dpi=120)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure with a size in inches, without a display, and its axes."""
    load()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _folded(name: str) -> str:
    r"""Return a dotted name on several lines if it is long, broken after dots, and after underscores in long parts.

    >>> _folded("model.discriminator.spectral_norm")
    'model.discriminator.\nspectral_norm'
    """
    parts = [piece for part in re.split(r"(?<=\.)", name)
             for piece in (re.split(r"(?<=_)", part) if len(part) > 24 else [part])]  # fmt: skip
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1] + part) > 24:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _short(text: str, most: int) -> str:
    """Return a text, without its middle if it is longer than a number of characters.

    >>> _short("a/long/path/to/some.ckpt", 12)
    'a/long...ckpt'
    """
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 3) :]}"
