"""Section of the report of a training: the curves of what was logged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ihc2he.files import read_csv
from ihc2he.report.parts import macros, parsed
from ihc2he.report.pictures import Picture, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 200  # of a curve; a longer one is drawn as means of this many bins, with a band from minimum to maximum
MOST = 6  # figures of a heading that are not folded
HEADINGS = ("Losses", "Validation", "Learning rates", "Other")


def curves(run_dir: Path) -> Markup | None:
    """Return the curves of the logged scalars, one figure per kind of quantity; test results are in a table."""
    series = logged(run_dir)
    if not series:
        return None
    panels: dict[str, dict[str, list[str]]] = {name: {} for name in HEADINGS}
    for key in sorted(series):
        heading, panel = _panel(key, series)
        panels[heading].setdefault(panel, []).append(key)
    html = Markup()
    for heading, figures in panels.items():
        images = [_line_figure(panel, {key: np.array(series[key]) for key in keys}) for panel, keys in figures.items()]
        if images:
            html += macros().heading(heading) + macros().figures(images[:MOST], "grid")
        if rest := images[MOST:]:
            html += macros().more(f"{len(rest)} more", macros().figures(rest, "grid"))
    return html


def logged(run_dir: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) of each scalar that a training has logged; test results are in a table."""
    series: dict[str, list[tuple[float, float]]] = {}
    for i, row in enumerate(read_csv(run_dir / "metrics.csv")):
        step = parsed(row.get("step") or str(i))
        for key, value in row.items():
            if key and value and key not in ("epoch", "step") and not key.startswith("test/"):
                series.setdefault(key, []).append((step, parsed(value)))
    return series


def _panel(key: str, keys: Any) -> tuple[str, str]:
    """Return the heading and the figure in which a logged key is drawn.

    >>> _panel("train/loss_d_he", ["train/loss_d_he"])
    ('Losses', 'train/loss_d')
    >>> _panel("val/he/ssim/3+", ["val/he/ssim", "val/he/ssim/3+"])
    ('Validation', 'val/he/ssim')
    >>> _panel("lr-Adam", ["lr-Adam"])
    ('Learning rates', 'learning rate')
    """
    parent, _, last = key.rpartition("/")
    if key.startswith("lr-"):
        return "Learning rates", "learning rate"
    if "loss" in last:
        family = "_".join(last.split("_")[:2])
        return "Losses", f"{parent}/{family}" if parent else family
    return "Validation" if key.startswith("val/") else "Other", parent if parent in keys else key


def _line_figure(title: str, lines: dict[str, np.ndarray]) -> Picture:
    """Return a figure with a line for each array of (step, value)."""

    def draw(axes: Axes) -> None:
        for key, xy in lines.items():
            finite = xy[np.isfinite(xy).all(1)]
            label = "all" if key == title and len(lines) > 1 else key.rpartition("/")[2]
            if len(finite) < len(xy):
                label += f" ({len(xy) - len(finite)} of {len(xy)} not finite)"
            style = {"color": "black", "linewidth": 1.8} if key == title and len(lines) > 1 else {"linewidth": 1.2}
            _draw_line(axes, finite, label=label, **style)
        axes.set_xlabel("step")
        axes.ticklabel_format(scilimits=(-3, 5))
        labels = axes.get_legend_handles_labels()[1]
        if len(lines) > 1 or any("not finite" in label for label in labels):
            columns = max(1, 60 // (6 + max(map(len, labels))))
            axes.figure.legend(loc="outside lower center", ncols=columns, frameon=False)

    return figure(title, draw, f"Curves of {title}")


def _draw_line(axes: Axes, xy: np.ndarray, **style: Any) -> None:
    """Draw a line with few points as it is, otherwise means of bins with a band from minimum to maximum."""
    if len(xy) <= MAX_POINTS:
        axes.plot(*xy.T, marker="." if len(xy) < 30 else "", **style)
        return
    bins = np.array_split(xy, MAX_POINTS)
    x, mean = np.array([part.mean(0) for part in bins]).T
    (line,) = axes.plot(x, mean, **style)
    low, high = np.array([(part[:, 1].min(), part[:, 1].max()) for part in bins]).T
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
