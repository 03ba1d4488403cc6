"""Parts of report sections: the template's macros, facts of a run, numbers as text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MOST_ROWS = 500  # of a table or list; a page of thousands of slides or jobs would be too heavy


class Section(NamedTuple):
    """A section of a report.

    Attributes:
        title: its heading.
        build: takes the folder and returns HTML, or None if its files are missing.
        folded: whether the reader has to open it.
    """

    title: str
    build: Callable[[Path], Markup | None]
    folded: bool = False


@cache
def macros() -> Any:
    """Return the macros of the template, which escape their texts."""
    environment = Environment(
        loader=PackageLoader("ihc2he", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja").module


def rest_of(rows: Sequence[object], file: str) -> Markup:
    """Return that a table or list, of which `MOST_ROWS` are shown, goes on in a file; nothing if it does not."""
    more = len(rows) - MOST_ROWS
    return macros().note(f"{more:,} more are in {file}.") if more > 0 else Markup()


def facts_of(run_dir: Path) -> dict[str, Any]:
    """Return the content of `run.json`; if it cannot be read, a warning says so."""
    path = run_dir / "run.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        return {"warnings": [f"run.json cannot be read: {error}"]}


def lasted(seconds: float) -> str:
    """Return a duration in words.

    >>> [lasted(seconds) for seconds in (61.4, 600, 5412.25, 200000)]
    ['61 s', '10 min', '1.5 h', '56 h']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"


def parsed(text: str) -> float:
    """Return the number, or NaN for an empty cell and for an incomplete line of a killed run.

    >>> parsed("0.5"), parsed("1e-")
    (0.5, nan)
    """
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def shown(value: float) -> str:
    """Return a number as text for tables, a dash for NaN.

    >>> [shown(value) for value in (0.37, 23.39412, 5412.25, 2e-4, math.nan, math.inf)]
    ['0.3700', '23.39', '5412.25', '0.0002', '-', '∞']
    """
    if math.isnan(value):
        return "-"
    size = abs(value)
    if size == 0 or 1e-3 <= size < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if 10 <= size < 1e5 else f"{value:.3g}".replace("inf", "∞")


def brief(value: float, sign: str = "") -> str:
    """Return a number with three decimals; large ones as in other tables.

    >>> brief(0.8239), brief(0.0119, "+"), brief(-0.5, "+"), brief(123.456)
    ('0.824', '+0.012', '-0.500', '123.46')
    """
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{'+' if sign and value > 0 else ''}{shown(value)}"


def bracketed(low: float, high: float, sign: str = "") -> str:
    """Return an interval in brackets; nothing if its ends are not finite.

    >>> bracketed(0.81, 0.8432), bracketed(math.nan, math.nan)
    ('[0.810, 0.843]', '')
    """
    return f"[{brief(low, sign)}, {brief(high, sign)}]" if math.isfinite(low) and math.isfinite(high) else ""
