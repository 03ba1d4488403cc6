"""The report of a run: one self-contained HTML page with everything in the run's folder.

To add a section, write a function that takes the folder and returns HTML, or None if its files are missing, and
add it to `SECTIONS`. Sections for the test of a pipeline are in pipeline.py. All text goes through the macros of
report.html.jinja, which escape it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf

import ihc2he
from ihc2he.errors import DataError
from ihc2he.files import write_text
from ihc2he.metrics.cards import badness
from ihc2he.report import pipeline
from ihc2he.report.parts import figure, macros, parsed, read_csv, shown, shrunk
from ihc2he.report.slides import slides

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

MAX_IMAGES = 12  # per stage
MAX_POINTS = 200  # of a curve; a longer one is drawn as means of this many bins, with a band from minimum to maximum
WORST, BEST = 10, 5


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from the files in the folder of a run, and return its path.

    If a file is missing, its section is omitted. If a file cannot be read, its section says so.

    Args:
        run_dir: folder with any of `config.yaml`, `run.json`, `metrics.csv`, `test.csv`, `results.csv`,
            `images/STAGE/*.png`, and for a pipeline `comparison.csv`, `differences.csv`, `radius.csv`, `agreement.csv`.

    Raises:
        DataError: if the folder does not exist.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        msg = f"{run_dir} is not a folder: a report is written from the folder of a run."
        raise DataError(msg)
    facts = _facts(run_dir)
    html = macros().page(
        title=_title(run_dir),
        subtitle=" · ".join(filter(None, [run_dir.resolve().name, str(facts.get("status", ""))])),
        warnings=facts.get("warnings"),
        sections=[(title, body) for title, build in SECTIONS if (body := _guarded(build, run_dir)) is not None],
        footer=f"Written by ihc2he {ihc2he.__version__} on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
    )
    path = run_dir / "report.html"
    write_text(path, html.strip() + "\n")
    return path


def _guarded(build: Callable[[Path], Markup | None], run_dir: Path) -> Markup | None:
    """Return the section, or why it could not be built, so that one broken file does not affect the other sections."""
    try:
        return build(run_dir)
    except Exception as error:
        log.exception("A section of the report of %s could not be built.", run_dir)
        return macros().note(f"This section could not be built: {type(error).__name__}: {error}")


def _facts(run_dir: Path) -> dict[str, Any]:
    """Return the content of `run.json`; if it cannot be read, a warning says so."""
    path = run_dir / "run.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        return {"warnings": [f"run.json cannot be read: {error}"]}


def _title(run_dir: Path) -> str:
    """Return the name of the experiment, or of the folder if there is no configuration."""
    try:
        name = OmegaConf.select(OmegaConf.load(run_dir / "config.yaml"), "experiment_name")
    except Exception:  # broken YAML of any kind; the section with the configuration shows it as it is
        name = None
    return str(name or run_dir.resolve().name)


def _test_table(run_dir: Path) -> Markup | None:
    """Return the final table: a row for each metric, a column for each group."""
    rows = read_csv(run_dir / "test.csv")
    if not rows:
        return None
    cells = {(row["metric"], row["group"]): row for row in rows}
    cards = {row["metric"]: row for row in rows}
    groups = sorted({row["group"] for row in rows})
    sizes = {group: max(parsed(row["n"]) for row in rows if row["group"] == group) for group in groups}

    def cell(metric: str, group: str) -> tuple[str, str]:
        row = cells.get((metric, group))
        if row is None:
            return "-", ""
        return shown(parsed(row["value"])), "" if parsed(row["n"]) == sizes[group] else f"n = {row['n']}"

    head = ["metric", *((group or "all", f"n = {sizes[group]:.0f}") for group in groups), "protocol"]
    body = [
        [(metric, f"{card['better']} is better"), *(cell(metric, group) for group in groups), card["protocol"]]
        for metric, card in cards.items()
    ]
    return _tested(run_dir, rows[0]) + macros().table(head, body, text=(len(head) - 1,), wide=True)


def _tested(run_dir: Path, row: dict[str, str]) -> Markup:
    """Return which weights the final table is of, and where those of former tests are."""
    notes = []
    if row.get("checkpoint"):
        notes.append(f"Of {row['checkpoint']}: epoch {row['epoch']} (from 0), step {row['step']}.")
    if former := sorted(path.name for path in run_dir.glob("test_*.csv")):
        notes.append(f"Tests of other weights: {', '.join(former)}.")
    return macros().note(" ".join(notes)) if notes else Markup()


def _curves(run_dir: Path) -> Markup | None:
    """Return the curves of the logged scalars, one figure per kind of quantity; test results are in a table."""
    if pipeline.is_comparison(run_dir):  # nothing was trained
        return None
    series: dict[str, list[tuple[float, float]]] = {}
    for i, row in enumerate(read_csv(run_dir / "metrics.csv")):
        step = parsed(row.get("step") or str(i))
        for key, value in row.items():
            if key and value and key not in ("epoch", "step") and not key.startswith("test/"):
                series.setdefault(key, []).append((step, parsed(value)))
    if not series:
        return None
    panels: dict[str, dict[str, list[str]]] = {name: {} for name in ("Losses", "Validation", "Learning rates", "Other")}
    for key in sorted(series):
        heading, panel = _panel(key, series)
        panels[heading].setdefault(panel, []).append(key)
    html = Markup()
    for heading, figures in panels.items():
        images = [
            (_line_figure(panel, {key: np.array(series[key]) for key in keys}), f"Curves of {panel}")
            for panel, keys in figures.items()
        ]
        if images:
            html += macros().heading(heading) + macros().figures(images, grid=True)
    return html


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


def _line_figure(title: str, lines: dict[str, np.ndarray]) -> str:
    """Return the data URI of a figure with a line for each array of (step, value)."""

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
        if len(lines) > 1 or any("not finite" in text for text in axes.get_legend_handles_labels()[1]):
            axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)

    return figure(title, draw)


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


def _extremes(run_dir: Path) -> Markup | None:
    """Return the worst and the best images by the first metric, and a histogram of its values.

    A comparison has several rows per image; it has pages of tiles instead.
    """
    rows = [] if pipeline.is_comparison(run_dir) else read_csv(run_dir / "results.csv")
    columns = [
        key
        for key in (rows[0] if rows else {})
        if key not in ("name", "group") and any(math.isfinite(parsed(row[key])) for row in rows)
    ]
    if not columns:
        return None
    metric = "he/ssim" if "he/ssim" in columns else columns[0]
    better = _better(run_dir, metric)
    known = [row for row in rows if math.isfinite(parsed(row[metric]))]
    known.sort(key=lambda row: badness(parsed(row[metric]), better or "higher"), reverse=True)
    head = ["name", "group", *columns]

    def table(title: str, chosen: list[dict[str, str]]) -> Markup:
        body = [[row["name"], row.get("group", ""), *(shown(parsed(row[c])) for c in columns)] for row in chosen]
        return macros().heading(title) + macros().table(head, body, text=(1,))

    direction = f"{better} is better" if better else "assuming that higher is better"
    html = macros().note(f"By {metric} ({direction}); {len(known)} of {len(rows)} images have a finite value.")
    values = [parsed(row[metric]) for row in known]
    histogram = figure(f"Images by {metric}", lambda axes: axes.hist(values, bins=30, color="0.35"))
    html += macros().figures([(histogram, f"Histogram of {metric}")], grid=True)
    if len(known) <= WORST + BEST:
        return html + table("From worst to best", known)
    return html + table(f"The {WORST} worst", known[:WORST]) + table(f"The {BEST} best", known[: -BEST - 1 : -1])


def _better(run_dir: Path, metric: str) -> str | None:
    """Return the direction of a metric, from the table of the test or from its name; None = not known."""
    from ihc2he.metrics.fidelity import CARDS

    for row in read_csv(run_dir / "test.csv"):
        if row["metric"] == metric and row["better"]:
            return row["better"]
    card = CARDS.get(metric.rpartition("/")[2])
    return card.better if card else None


def _panels(run_dir: Path) -> Markup | None:
    """Return the newest image panels of every stage, without the pages of a comparison."""
    html = Markup()
    if pipeline.is_comparison(run_dir):
        return None
    for stage in sorted(path for path in run_dir.glob("images/*") if path.is_dir()):
        paths = sorted(stage.glob("*.png"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        if not paths:
            continue
        html += macros().heading(stage.name)
        if len(paths) > MAX_IMAGES:
            html += macros().note(f"The newest {MAX_IMAGES} of {len(paths)}.")
        html += macros().figures([(shrunk(path), path.stem) for path in paths[:MAX_IMAGES]])
    return html or None


def _run_table(run_dir: Path) -> Markup | None:
    """Return the facts of `run.json`, with dotted names for nested ones."""
    facts = {key: value for key, value in _facts(run_dir).items() if key != "warnings"}
    return macros().table(["fact", "value"], list(_flatten(facts)), text=(1,)) if facts else None


def _flatten(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a dotted name and a text for every value of nested dictionaries.

    >>> list(_flatten({"time": {"fit": 1.5}, "device": "cpu", "stages": ["fit", "test"]}))
    [('time.fit', '1.5'), ('device', 'cpu'), ('stages', 'fit, test')]
    """
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)


def _config(run_dir: Path) -> Markup | None:
    path = run_dir / "config.yaml"
    return macros().collapsed("config.yaml", path.read_text(encoding="utf-8")) if path.is_file() else None


SECTIONS: tuple[tuple[str, Callable[[Path], Markup | None]], ...] = (
    ("Slides", slides),
    *pipeline.SECTIONS,
    ("Test", _test_table),
    ("Curves", _curves),
    ("Worst and best images", _extremes),
    ("Images", _panels),
    ("Run", _run_table),
    ("Configuration", _config),
)
