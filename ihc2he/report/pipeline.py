"""Sections of the report of a pipeline's test: comparison of methods, effect of translation, and pages of tiles.

A method is a translator and a segmenter, written `translator+segmenter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from ihc2he.files import read_csv
from ihc2he.metrics.cards import badness
from ihc2he.nuclei.colours import colour_of, hex_of
from ihc2he.report.forest import Line, forest
from ihc2he.report.parts import Section, bracketed, brief, macros, parsed
from ihc2he.report.pictures import figure, within
from ihc2he.report.strip import strip
from ihc2he.report.training import test_table
from ihc2he.report.verdict import TITLE, Comparison, sentences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Metrics in the comparison; all others are in the table of the test.
MAIN = (
    "f1", "precision", "recall", "recall_pale", "f1_inside", "f1_macro", "type_accuracy", "ap", "map", "count_mae",
    "pq", "aji", "gap_closed",
)  # fmt: skip
SHOWN = 3  # methods in the strip of tiles
BUDGET = 600_000  # bytes of the pages of a folder
_LINES = (*(hex_of(colour_of(kind)) for kind in (1, 3, 2, 6, 5, 7)), "#000000")  # yellow is too pale for lines
_DASHES = ("-", "--", ":", "-.")


def is_comparison(run_dir: Path) -> bool:
    """Return whether a run has compared methods; then it has pages of tiles instead of panels."""
    return (run_dir / "comparison.csv").is_file()


def answer(run_dir: Path) -> list[str] | None:
    """Return which method is the best, by how much, and what this rests on."""
    found = Comparison(run_dir)
    if not found.methods:
        return None
    chosen = dict.fromkeys(row["setting"] for row in read_csv(run_dir / "chosen.csv"))
    extra = f" Chosen before, on validation tiles that are not among these: {', '.join(chosen)}." if chosen else ""
    *said, basis = sentences(found)
    return [*said, basis + extra]


def _forest(run_dir: Path) -> Markup | None:
    """Return the F1 of each method with its interval, and how much that is more than that of the reference."""
    found = Comparison(run_dir)
    if not found.methods:
        return None
    reference, best = found.reference, next(iter(found.candidates), None)
    lines = []
    for method in found.methods:
        own = found.estimate(method)
        lines.append(
            Line(
                method, own.value, own.low, own.high,
                cells=[(brief(own.value), bracketed(own.low, own.high)), _against(found, method)],
                note="true H&E: the upper limit" if method in found.ceilings else "",
                kind="aside" if method in found.ceilings else "best" if method == best else "",
            )
        )  # fmt: skip
    over = f"{found.n_tiles} tiles"
    if found.n_blocks > 1:
        over += f" or {found.n_blocks} blocks of them, whichever is wider"
    caption = f"{TITLE} of each method, with 95 % intervals over {over}. The dashed line is {reference}."
    head = ["method", TITLE, (f"minus {reference}", "paired")]
    return forest(caption, head, lines, found.estimate(reference).value)


def _against(found: Comparison, method: str) -> tuple[str, str] | str:
    """Return the difference of a method from the reference, and in words what can be told."""
    if method == found.reference:
        return "reference"
    difference = found.difference(method, found.reference)
    if difference is None:
        return "-"
    text = f"{brief(difference.value, '+')} {bracketed(difference.low, difference.high, '+')}"
    if isnan(difference.low):
        return text, "no interval"
    if difference.is_clear:
        return macros().strong(text), "more" if difference.value > 0 else "less"
    return text, "no difference can be told"


def _strip(run_dir: Path) -> Markup | None:
    """Return three tiles with what the best method, the reference and the next best found."""
    found = Comparison(run_dir)
    if not found.methods:
        return None
    shown = dict.fromkeys([*found.candidates[:1], found.reference, *found.candidates[1:]])
    return strip(run_dir / "images" / "strip", [*shown][:SHOWN])


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
        text = brief(parsed(row["value"]))
        is_best = _is_judged(row) and _badness(row) == best[metric]
        return macros().strong(text) if is_best else text, bracketed(parsed(row["low"]), parsed(row["high"]))

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
        text = bracketed(parsed(low), parsed(high), sign="+") or "-"
        return macros().strong(text) if parsed(low) > 0 or parsed(high) < 0 else text

    head = ["method", "metric", "difference", ("over tiles", "95 %"), ("over blocks", "95 %")]
    body = [
        [
            (row["method"], f"minus {row['against']}"),
            (row["metric"], _direction(better[row["metric"]]) if row["metric"] in better else ""),
            brief(parsed(row["difference"]), sign="+"),
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
    figures = [figure(title, draw_metric(metric), f"{title} by matching radius") for metric, title in titles.items()]
    return macros().figures(figures, "grid")


def _agreement(run_dir: Path) -> Markup | None:
    """Return the agreement between readers."""
    rows = read_csv(run_dir / "agreement.csv")
    if not rows:
        return None
    columns = ("mean", "min", "max")
    body = [[row["metric"], *(brief(parsed(row[column])) for column in columns), row["n"]] for row in rows]
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
            html += macros().heading(title) + within(BUDGET, paths)
    return html or None


def _direction(card: dict[str, str]) -> str:
    return f"{card['better']} is better" if card["better"] else ""


SECTIONS = (
    Section("Methods", _forest),
    Section("Tiles", _strip),
    Section("Over radius", _radius),
    Section("Comparison", _comparison, folded=True),
    Section("Differences", _differences, folded=True),
    Section("Agreement of readers", _agreement, folded=True),
    Section("Pages of tiles", _pages, folded=True),
    Section("Test", test_table, folded=True),
)
