"""A forest plot: a row for each method, job or slide, with its value and interval as a mark and as text.

It is a table with a small SVG in each row, so that it fits a phone, follows the colours of the page, and can be read
aloud.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from typing import Any, NamedTuple

from markupsafe import Markup

from ihc2he.internals.matplotlib import load
from ihc2he.report.parts import brief, macros


class Line(NamedTuple):
    """A row of a forest plot.

    Attributes:
        name: of what it shows.
        value: its value.
        low: lower end of its interval, NaN without one.
        high: upper end.
        cells: further columns, each a text or a pair (text, small text below).
        note: small text below the name.
        kind: `best`, `aside` or nothing.
        ones: values of the repetitions that the value is the mean of.
    """

    name: str
    value: float
    low: float = nan
    high: float = nan
    cells: Sequence[str | tuple[str, str]] = ()
    note: str = ""
    kind: str = ""
    ones: Sequence[float] = ()


def forest(caption: str, head: Sequence[Any], lines: Sequence[Line], reference: float = nan) -> Markup:
    """Return a forest plot.

    Args:
        caption: what is shown, and what the intervals are.
        head: names of the columns without the plot, first that of the names; texts or pairs, as cells are.
        lines: its rows; at least one has a finite value.
        reference: where a dashed line is drawn.
    """
    shown = [x for line in lines for x in (line.value, line.low, line.high, *line.ones) if isfinite(x)]
    ticks = _ticks(min(shown), max(shown))
    start, width = ticks[0], ticks[-1] - ticks[0]

    def at(value: float) -> float | None:
        return round(100 * (value - start) / width, 2) if isfinite(value) else None

    rows: list[dict[str, Any]] = [
        line._asdict()
        | {"at": at(line.value), "low": at(line.low), "high": at(line.high), "ones": [at(x) for x in line.ones]}
        | {"said": _said(line)}
        for line in lines
    ]
    return macros().forest(caption, head, [(at(tick), f"{tick:g}") for tick in ticks], at(reference), rows)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from below the lowest to above the highest value.

    >>> _ticks(0.823, 0.912)
    [0.8, 0.85, 0.9, 0.95]
    """
    load()
    from matplotlib.ticker import MaxNLocator

    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(f"{tick:.10g}") for tick in ticks]


def _said(line: Line) -> str:
    """Return the mark of a row in words."""
    if not isfinite(line.value):
        return "no value"
    text = brief(line.value)
    return f"{text}, {brief(line.low)} to {brief(line.high)}" if isfinite(line.low) else text
