"""The strip of tiles of a comparison: the worst, the middle and the best one, with what the main methods found."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from ihc2he.files import read_csv
from ihc2he.nuclei.colours import INVENTED, MATCHED, MISSED, hex_of
from ihc2he.report.parts import brief, macros, parsed
from ihc2he.report.pictures import shrunk

WIDTH_PX = 480
IMAGE = "IHC"  # instead of a method, of the tile itself
RULE = (
    "By the mean F1 of all methods on a tile: the lowest, the one closest to the median, and the highest of all tiles."
)


def strip(folder: Path, methods: Iterable[str]) -> Markup | None:
    """Return the tiles that `TilePages` has left.

    Args:
        folder: with `strip.csv` and its pictures.
        methods: whose results are shown.
    """
    wanted = [IMAGE, *methods]
    rows = [row for row in read_csv(folder / "strip.csv") if row["method"] in wanted]
    if not rows:
        return None
    html = macros().note(RULE) + macros().marks(*map(hex_of, (MATCHED, MISSED, INVENTED)))
    for (place, name, mean), own in groupby(rows, lambda row: (row["place"], row["name"], row["mean_f1"])):
        ordered = sorted(own, key=lambda row: wanted.index(row["method"]))
        html += macros().heading(f"{place.capitalize()} tile: {name}, mean F1 {brief(parsed(mean))}")
        html += macros().figures([shrunk(folder / row["file"], _caption(row), WIDTH_PX) for row in ordered], "row")
    return html


def _caption(row: dict[str, str]) -> str:
    if row["method"] == IMAGE:
        return IMAGE
    counts = f"{row['matched']} found, {row['missed']} missed, {row['invented']} invented"
    return f"{row['method']}: F1 {brief(parsed(row['f1']))}, {counts}"
