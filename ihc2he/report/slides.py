"""The report of slides and images: what was counted, overlays, and for slides maps and hot spots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ihc2he.files import read_csv
from ihc2he.report.forest import Line, forest
from ihc2he.report.parts import MOST_ROWS, Section, macros, rest_of
from ihc2he.report.pictures import Picture, shrunk, within

MOST = 40  # slides or images that are shown one by one; the page would be too heavy with more
BUDGET = 3_000_000  # bytes of all pictures
WIDTH_PX, LEAST_PX = 900, 320  # of a picture of a single slide, and of one of many
_TITLES = {
    "overlay.png": "Nuclei and hot spots",
    "density.png": "Nuclei per mm² of tissue, from few (violet) to many (yellow)",
    "positivity.png": "Percent positive, from 0 (violet) to 100 (yellow)",
}
ALL = "all"  # class of a summary with all nuclei
TISSUE = "all tissue"


def answer(run_dir: Path) -> list[str] | None:
    """Return how many nuclei there are, which share is positive, and what could not be read."""
    for unit, one in (("slide", "slides"), ("image", "images")):
        folder = _folder(run_dir, unit)
        if folder is not None:
            return _counted(folder, unit, one)
    return None


def _counted(folder: Path, unit: str, units: str) -> list[str]:
    rows = [row for row in read_csv(folder / "summary.csv") if row.get("region", TISSUE) == TISSUE]
    total = [row for row in rows if row[unit] == f"all {units}"]
    whole = next((row for row in total if row["class"] == ALL), None)
    if whole is None or not whole["nuclei"]:
        return [f"No nuclei were counted on {units}."]
    names = list(dict.fromkeys(row[unit] for row in rows if row[unit] != f"all {units}"))
    where = f"on {names[0]}" if len(names) == 1 else f"on {len(names)} {units}"
    area = f"{float(whole['area_mm2']):.3g} mm²" + (" of tissue" if unit == "slide" else "")
    said = [f"{int(whole['nuclei']):,} nuclei {where}, {area}"]
    if whole["percent_positive"] and _is_stained(rows):
        said[0] += (
            f": {float(whole['percent_positive']):.1f} % are positive, H\u2011score {float(whole['h_score']):.0f}"
        )
    said[0] += "."
    kinds = [row for row in total if row["class"] != ALL and int(row["nuclei"])]
    if len(kinds) > 1:
        kinds.sort(key=lambda row: -int(row["nuclei"]))
        said.append("By class: " + ", ".join(f"{int(row['nuclei']):,} {row['class']}" for row in kinds) + ".")
    failed = read_csv(folder / "failed.csv")
    if failed:
        what = f"1 {unit} or part of one" if len(failed) == 1 else f"{len(failed)} {units} or parts of them"
        said.append(f"Left out, because it could not be read: {what}, see below.")
    return said


def _is_stained(rows: Sequence[dict[str, str]]) -> bool:
    """Return whether no slide is H&E, where DAB means nothing."""
    return not any(row.get("stain", "").lower() in ("he", "h&e") for row in rows)


def _folder(run_dir: Path, unit: str) -> Path | None:
    """Return the folder of results: that of the run, or its `predictions`."""
    for folder in (run_dir, run_dir / "predictions"):
        rows = read_csv(folder / "summary.csv")
        if rows and unit in rows[0]:
            return folder
    return None


def _names(folder: Path, unit: str = "slide") -> list[str]:
    """Return the names of the slides or images."""
    names = dict.fromkeys(row[unit] for row in read_csv(folder / "summary.csv"))
    return [name for name in names if name != f"all {unit}s"]


def _positivity(run_dir: Path) -> Markup | None:
    """Return the share of positive nuclei of each slide or image beside the others, unless there are many."""
    unit = "slide" if _folder(run_dir, "slide") else "image"
    folder = _folder(run_dir, unit)
    if folder is None or not 2 <= len(_names(folder, unit)) <= MOST:
        return None
    rows = [row for row in read_csv(folder / "summary.csv") if row.get("region", TISSUE) == TISSUE]
    rows = [row for row in rows if row["class"] == ALL and row["percent_positive"]]
    if not rows or not _is_stained(rows):
        return None
    *own, total = rows
    lines = [
        Line(
            row[unit], float(row["percent_positive"]), cells=[f"{row['percent_positive']} %", f"{int(row['nuclei']):,}"]
        )
        for row in own
    ]
    caption = f"Percent positive of each {unit}. The dashed line is that of all nuclei together."
    return forest(caption, [unit, "positive", "nuclei"], lines, float(total["percent_positive"]))


def _overlays(run_dir: Path) -> Markup | None:
    """Return the nuclei that were found on the first images."""
    folder = _folder(run_dir, "image")
    files = sorted((folder / "overlay").rglob("*.png")) if folder else []
    width = max(LEAST_PX, round(WIDTH_PX / max(len(files), 1) ** 0.5))
    return within(BUDGET, files, "row", width, MOST) if files else None


def _pictures(run_dir: Path) -> Markup | None:
    """Return the pictures and hot spots of the first slides, in as many bytes as there are."""
    folder = _folder(run_dir, "slide")
    if folder is None:
        return None
    names, html, used = _names(folder), Markup(), 0
    for number, name in enumerate(names):
        if number == MOST or used > BUDGET:
            html += macros().note(
                f"Pictures of the first {number} of {len(names)} slides; those of all are in their folders."
            )
            break
        images = _pictures_of(folder / name, min(len(names), MOST))
        used += sum(len(image.uri) for image in images)
        html += macros().heading(name)
        html += macros().figures(images, "grid pair" if len(names) == 1 else "row") + _hot_spots(folder / name)
    return html or None


def _result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "slide.json").read_text(encoding="utf-8")))


def _pictures_of(folder: Path, slides: int) -> list[Picture]:
    """Return the overlay, the maps and the hot spots of a slide; smaller ones if there are many slides."""
    files = _result(folder)["files"]
    spots = sorted(name for name in files if name.startswith("hot_spot_"))
    titles = _TITLES | {name: f"Hot spot {number}" for number, name in enumerate(spots, 1)}
    width = max(LEAST_PX, round(WIDTH_PX / slides**0.5))
    return [shrunk(folder / name, f"{title} ({name})", width) for name, title in titles.items() if name in files]


def _hot_spots(folder: Path) -> Markup:
    """Return the table of the hot spots of a slide."""
    spots = [
        [
            str(number), f"{spot['x_um']:.0f}, {spot['y_um']:.0f}", str(spot["nuclei"]), str(spot["positive"]),
            f"{100 * spot['positive'] / spot['nuclei']:.1f}",
        ]
        for number, spot in enumerate(_result(folder)["hot_spots"], 1)
    ]  # fmt: skip
    head = ["hot spot", "centre (um)", "nuclei", "positive", "% positive"]
    return macros().table(head, spots) if spots else Markup()


def _failed(run_dir: Path) -> Markup | None:
    """Return what could not be read."""
    folder = _folder(run_dir, "slide") or _folder(run_dir, "image")
    rows = read_csv(folder / "failed.csv") if folder else []
    names = [" ".join(row[key] for key in ("name", "slide", "window") if row.get(key)) for row in rows]
    lines = [f"{name}: {row['error']}" for name, row in zip(names, rows, strict=True)]
    return macros().bullets(lines[:MOST_ROWS]) + rest_of(lines, "failed.csv") if lines else None


def _counts(run_dir: Path) -> Markup | None:
    """Return the table of all slides, regions and classes."""
    folder = _folder(run_dir, "slide") or _folder(run_dir, "image")
    if folder is None:
        return None
    rows = read_csv(folder / "summary.csv")
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    body = [[row[column] for column in columns] for row in rows[:MOST_ROWS]]
    return macros().table(columns, body, text=(0,)) + rest_of(rows, "summary.csv")


SECTIONS = (
    Section("Not read", _failed),
    Section("Positivity", _positivity),
    Section("Slides", _pictures),
    Section("Nuclei", _overlays),
    Section("Counts", _counts, folded=True),
)
