"""Parts of report sections: the template's macros, tables of a run, numbers, figures, images."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ihc2he.errors import DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.writing import as_jpeg
from ihc2he.internals.matplotlib import load
from ihc2he.tiling.resampling import resize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_WIDTH_PX = 1152  # the width of the page


@cache
def macros() -> Any:
    """Return the macros of the template, which escape their texts."""
    environment = Environment(
        loader=PackageLoader("ihc2he", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja").module


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table; none if the file is missing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


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


def data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def figure(title: str, draw: Callable[[Axes], object]) -> str:
    """Return a small figure as the data URI of an SVG."""
    load()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "text.parse_math": False, "font.size": 9}):
        canvas = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = canvas.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        buffer = BytesIO()
        canvas.savefig(buffer, format="svg")
    return data_uri("image/svg+xml", buffer.getvalue())


def shrunk(path: Path) -> str:
    """Return the data URI of an image, at most `MAX_WIDTH_PX` wide."""
    try:
        image = read_image(path)
    except DataError as error:
        msg = f"{path} is not a readable image. Delete it or write it again."
        raise DataError(msg) from error
    scale = MAX_WIDTH_PX / image.shape[1]
    if scale < 1:
        image = resize(image, max(1, round(image.shape[0] * scale)), MAX_WIDTH_PX)
    return data_uri("image/jpeg", as_jpeg(image, quality=80))
