"""The report of a training: what came out, pictures, and the tables of its test."""

from __future__ import annotations

import math
from pathlib import Path

from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf

from ihc2he.files import read_csv
from ihc2he.metrics.cards import badness
from ihc2he.report.curves import curves, logged
from ihc2he.report.parts import Section, facts_of, lasted, macros, parsed, shown
from ihc2he.report.pictures import figure, within

MAX_IMAGES = 12  # per stage
BUDGET = 700_000  # bytes of the pictures of a stage
WORST, BEST = 10, 5


def answer(run_dir: Path) -> list[str] | None:
    """Return what was trained and for how long, its best epoch, and the metric on validation and test."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return None
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    said = [_trained(run_dir, config), _diverged(run_dir), *_validated(run_dir, config)]
    return [sentence for sentence in said if sentence] or None


def _trained(run_dir: Path, config: DictConfig) -> str | None:
    """Return what was trained, how long, and how good it was in the test."""
    rows = [
        row for row in read_csv(run_dir / "metrics.csv") if any(row[key] for key in row if key.startswith("train/"))
    ]
    model, data = (
        str(OmegaConf.select(config, f"{key}._target_") or "").rpartition(".")[2] for key in ("model", "data")
    )
    name = f"A {model} on {data.removesuffix('DataModule')}" if data else f"A {model}"
    if OmegaConf.select(config, "data.simulate"):
        name += " (simulated)"
    tested = _tested_value(run_dir, _monitor(config)[0])
    if not rows:
        return f"{name}: {tested}." if tested else None
    epochs = 1 + max(int(parsed(row.get("epoch") or "0")) for row in rows)
    planned = OmegaConf.select(config, "trainer.max_epochs")
    length = f"{epochs} of {planned} epochs" if planned and planned > epochs else f"{epochs} epochs"
    facts = facts_of(run_dir)
    seconds = facts.get("seconds", {}).get("fit")
    part = ", the last part" if facts.get("earlier") else ""  # the time is that of the last command alone
    took = f"{part} in {lasted(seconds)} on {facts.get('device', 'this machine')}" if seconds else ""
    return f"{name} was trained for {length}{took}" + (f": {tested}." if tested else ".")


def _tested_value(run_dir: Path, monitor: str) -> str | None:
    """Return the value in the test of the metric that chooses checkpoints, or else of the first one."""
    rows = [row for row in read_csv(run_dir / "test.csv") if not row["group"] and math.isfinite(parsed(row["value"]))]
    if not rows:
        return None
    own = next((row for row in rows if row["metric"] == monitor.removeprefix("val/")), rows[0])
    direction = f", {own['better']} is better" if own["better"] else ""
    return f"{own['metric']} {shown(parsed(own['value']))} on {own['n']} test images{direction}"


def _monitor(config: DictConfig) -> tuple[str, str]:
    """Return the metric that chooses checkpoints, and whether its `max` or `min` is the best; empty without one."""
    found = OmegaConf.select(config, "callbacks.best") or {}
    return found.get("monitor") or "", found.get("mode") or "max"


def _validated(run_dir: Path, config: DictConfig) -> list[str]:
    """Return which epoch was the best in the validation, and which was tested."""
    monitor, mode = _monitor(config)
    values = {
        int(parsed(row.get("epoch") or "0")): parsed(row[monitor])
        for row in read_csv(run_dir / "metrics.csv")
        if row.get(monitor) and math.isfinite(parsed(row[monitor]))
    }
    if not values:
        return []
    best = (max if mode == "max" else min)(values, key=lambda epoch: values[epoch])
    last = max(values)
    said = f"The best epoch was {best} (from 0), with {monitor} {shown(values[best])} in the validation"
    if best == last:
        said += "; it was also the last one, so longer training may help" if len(values) > 2 else ""
    else:
        said += f"; the last one had {shown(values[last])}"
    tested = {row.get("epoch") for row in read_csv(run_dir / "test.csv")} - {None, ""}
    if tested == {str(best)}:
        return [f"{said}. Its weights were tested. As the validation chose them, trust the value of the test."]
    return [f"{said}." + (f" Tested were those of epoch {', '.join(sorted(map(str, tested)))}." if tested else "")]


def _diverged(run_dir: Path) -> str | None:
    """Return that training diverged, if a loss was not finite at the end."""
    for key, values in logged(run_dir).items():
        if key.startswith("train/loss") and not math.isfinite(values[-1][1]):
            return f"Training diverged: {key} was not finite at the end."
    return None


def panels(run_dir: Path) -> Markup | None:
    """Return the newest image panels of every stage, and the figures of the test as a whole."""
    html = Markup()
    if whole := sorted([*run_dir.glob("images/*.png"), *run_dir.glob("painted.png")]):
        html += within(BUDGET, whole)
    for stage in sorted(path for path in run_dir.glob("images/*") if path.is_dir()):
        paths = sorted(stage.glob("*.png"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        if not paths:
            continue
        html += macros().heading(stage.name)
        if len(paths) > MAX_IMAGES:
            html += macros().note(f"The newest {MAX_IMAGES} of {len(paths)}.")
        html += within(BUDGET, paths[:MAX_IMAGES])
    return html or None


def extremes(run_dir: Path) -> Markup | None:
    """Return the worst and the best images by the first metric, and a histogram of its values."""
    rows = read_csv(run_dir / "results.csv")
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
    histogram = figure(
        f"Images by {metric}", lambda axes: axes.hist(values, bins=30, color="0.35"), f"Histogram of {metric}"
    )
    html += macros().figures([histogram], "grid")
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


def test_table(run_dir: Path) -> Markup | None:
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


SECTIONS = (
    Section("Curves", curves),
    Section("Images", panels),
    Section("Worst and best images", extremes, folded=True),
)
