"""Sections of the report of a pipeline's test: comparison of methods, effect of translation, and pages of tiles.

A method is a translator and a segmenter, written `translator+segmenter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from ihc2he.metrics.cards import badness
from ihc2he.nuclei.colours import colour_of, hex_of
from ihc2he.report.parts import figure, macros, parsed, read_csv, shown, shrunk

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Metrics in the comparison; all others are in the table of the test.
MAIN = (
    "f1", "precision", "recall", "recall_pale", "f1_inside", "f1_macro", "type_accuracy", "ap", "map", "count_mae",
    "pq", "aji", "gap_closed",
)  # fmt: skip
_LINES = (*(hex_of(colour_of(kind)) for kind in (1, 3, 2, 6, 5, 7)), "#000000")  # yellow is too pale for lines
_DASHES = ("-", "--", ":", "-.")


def is_comparison(run_dir: Path) -> bool:
    """Return whether a run has compared methods; then it has pages of tiles instead of panels."""
    return (run_dir / "comparison.csv").is_file()


def _comparison(run_dir: Path) -> Markup | None:
    """Return a table with a row for each method and a column for each main metric, the best value of each in bold."""
    rows = read_csv(run_dir / "comparison.csv")
    if not rows:
        return None
    cells = {(row["metric"], row["method"]): row for row in rows}
    cards = {row["metric"]: row for row in rows}
    metrics = [metric for metric in MAIN if metric in cards] or list(cards)
    best = {
        metric: min((_badness(row) for row in rows if row["metric"] == metric and _is_judged(row)), default=math.nan)
        for metric in metrics
    }

    def cell(metric: str, method: str) -> tuple[str, str]:
        row = cells.get((metric, method))
        if row is None:
            return "-", ""
        text = _brief(parsed(row["value"]))
        is_best = _is_judged(row) and _badness(row) == best[metric]
        return macros().strong(text) if is_best else text, _interval(row["low"], row["high"])

    head = ["method", *((metric, _direction(cards[metric])) for metric in metrics)]
    body = [[method, *(cell(metric, method) for metric in metrics)] for method in dict.fromkeys(m for _, m in cells)]
    notes = [f"{metric}: {cards[metric]['protocol']} (n = {_sizes(rows, metric)})" for metric in metrics]
    what = "In brackets: 95 % intervals of a bootstrap over tiles. Bold: the best value, regardless of its interval."
    return macros().table(head, body) + macros().note(what) + macros().bullets(notes)


def _is_judged(row: dict[str, str]) -> bool:
    return bool(row["better"]) and math.isfinite(parsed(row["value"]))


def _badness(row: dict[str, str]) -> float:
    return badness(parsed(row["value"]), row["better"])


def _sizes(rows: Sequence[dict[str, str]], metric: str) -> str:
    sizes = sorted({int(row["n"]) for row in rows if row["metric"] == metric})
    return " to ".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))


def _differences(run_dir: Path) -> Markup | None:
    """Return the difference of each method to the one without translation; bold if the interval excludes 0."""
    rows = read_csv(run_dir / "differences.csv")
    if not rows:
        return None
    better = {row["metric"]: row for row in read_csv(run_dir / "comparison.csv")}

    def interval(low: str, high: str) -> str:
        text = _interval(low, high, sign="+") or "-"
        return macros().strong(text) if parsed(low) > 0 or parsed(high) < 0 else text

    head = ["method", "metric", "difference", ("over tiles", "95 %"), ("over blocks", "95 %")]
    body = [
        [
            (row["method"], f"minus {row['against']}"),
            (row["metric"], _direction(better[row["metric"]]) if row["metric"] in better else ""),
            _brief(parsed(row["difference"]), sign="+"),
            interval(row["low"], row["high"]),
            interval(row["blocks_low"], row["blocks_high"]),
        ]
        for row in rows
    ]
    what = (
        "Bootstrap over tiles and over blocks of tiles, paired. Bold: the interval excludes 0. "
        "Tiles of one block are alike, so the interval over blocks is more reliable, if there is one."
    )
    return macros().table(head, body) + macros().note(what)


def _radius(run_dir: Path) -> Markup | None:
    """Return F1, precision and recall as a function of the matching radius, one line for each method."""
    rows = read_csv(run_dir / "radius.csv")
    if not rows:
        return None

    def draw_metric(metric: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
                own = [row for row in rows if row["method"] == method]
                xy = [(parsed(row["radius_um"]), parsed(row[metric])) for row in own]
                colour, dash = _LINES[i % len(_LINES)], _DASHES[i // len(_LINES) % len(_DASHES)]
                axes.plot(*zip(*xy, strict=True), dash, color=colour, marker=".", label=method, linewidth=1.2)
            axes.set_xlabel("matching radius (um)")
            axes.figure.legend(loc="outside lower center", ncols=2, frameon=False)

        return draw

    titles = {"f1": "F1", "precision": "Precision", "recall": "Recall"}
    figures = [(figure(title, draw_metric(metric)), f"{title} by matching radius") for metric, title in titles.items()]
    return macros().figures(figures, grid=True)


def _agreement(run_dir: Path) -> Markup | None:
    """Return the agreement between readers."""
    rows = read_csv(run_dir / "agreement.csv")
    if not rows:
        return None
    columns = ("mean", "min", "max")
    body = [[row["metric"], *(_brief(parsed(row[column])) for column in columns), row["n"]] for row in rows]
    what = "Each reader is compared with each other reader, like a method. No method can be expected to be better."
    return macros().table(["metric", *columns, "n"], body) + macros().note(what)


def _pages(run_dir: Path) -> Markup | None:
    """Return the pages of tiles: first evenly spaced tiles of the test, then those with the lowest F1, worst first."""
    if not is_comparison(run_dir):
        return None
    html = Markup()
    for folder, title in (("test", "Evenly spaced over the test"), ("worst", "Lowest F1")):
        paths = sorted((run_dir / "images" / folder).glob("*.png"))
        if paths:
            html += macros().heading(title) + macros().figures([(shrunk(path), path.stem) for path in paths])
    return html or None


def _brief(value: float, sign: str = "") -> str:
    """Return a number with three decimals; large ones as in other tables.

    >>> _brief(0.8239), _brief(0.0119, "+"), _brief(-0.5, "+"), _brief(123.456)
    ('0.824', '+0.012', '-0.500', '123.46')
    """
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{'+' if sign and value > 0 else ''}{shown(value)}"


def _interval(low: str, high: str, sign: str = "") -> str:
    """Return an interval in brackets; nothing if its ends are not finite.

    >>> _interval("0.81", "0.8432"), _interval("nan", "nan")
    ('[0.810, 0.843]', '')
    """
    ends = parsed(low), parsed(high)
    return f"[{_brief(ends[0], sign)}, {_brief(ends[1], sign)}]" if all(map(math.isfinite, ends)) else ""


def _direction(card: dict[str, str]) -> str:
    return f"{card['better']} is better" if card["better"] else ""


SECTIONS: tuple[tuple[str, Callable[[Path], Markup | None]], ...] = (
    ("Comparison", _comparison),
    ("Differences", _differences),
    ("Over radius", _radius),
    ("Agreement of readers", _agreement),
    ("Tiles", _pages),
)
