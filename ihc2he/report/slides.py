"""Section of the report of slides: their counts, and for each its overlay, maps and hot spots."""

from __future__ import annotations

import json
from pathlib import Path

from markupsafe import Markup

from ihc2he.report.parts import macros, read_csv, shrunk

MOST = 40  # slides whose pictures are in the page; it would be too heavy with more
_PICTURES = ("overlay.png", "density.png", "positivity.png")


def slides(run_dir: Path) -> Markup | None:
    """Return the table of all slides, and the pictures of the first ones.

    Args:
        run_dir: folder of the results, or of a run that has them in `predictions`.
    """
    folder = next((at for at in (run_dir, run_dir / "predictions") if _has_slides(at)), None)
    if folder is None:
        return None
    rows = read_csv(folder / "summary.csv")
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    html = macros().table(columns, [[row[column] for column in columns] for row in rows], text=(0,))
    names = list(dict.fromkeys(row["slide"] for row in rows if row["slide"] != "all slides"))
    for name in names[:MOST]:
        html += macros().heading(name) + _pictures(folder / name)
    if len(names) > MOST:
        html += macros().note(
            f"Pictures of the first {MOST} of {len(names)} slides; those of all are in their folders."
        )
    failed = [f"{row['slide']} {row['window']}: {row['error']}" for row in read_csv(folder / "failed.csv")]
    if failed:
        html += macros().heading("Not read") + macros().bullets(failed)
    return html


def _has_slides(folder: Path) -> bool:
    return bool(rows := read_csv(folder / "summary.csv")) and "slide" in rows[0]


def _pictures(folder: Path) -> Markup:
    """Return the pictures of a slide, and a table of its hot spots."""
    result = json.loads((folder / "slide.json").read_text(encoding="utf-8"))
    spots = [
        [
            str(number), f"{spot['x_um']:.0f}, {spot['y_um']:.0f}", str(spot["nuclei"]), str(spot["positive"]),
            f"{100 * spot['positive'] / spot['nuclei']:.1f}",
        ]
        for number, spot in enumerate(result["hot_spots"], 1)
    ]  # fmt: skip
    html = Markup()
    if spots:
        html += macros().table(["hot spot", "centre (um)", "nuclei", "positive", "% positive"], spots)
    names = [*_PICTURES, *sorted(name for name in result["files"] if name.startswith("hot_spot_"))]
    images = [(shrunk(folder / name), name) for name in names if name in result["files"]]
    return html + (macros().figures(images, grid=True) if images else Markup())
