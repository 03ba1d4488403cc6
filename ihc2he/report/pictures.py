"""Pictures of a report: figures as SVG, images as WebP, within a budget of bytes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from ihc2he.errors import DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.writing import as_webp
from ihc2he.internals.matplotlib import load
from ihc2he.report.parts import macros
from ihc2he.tiling.resampling import resize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_WIDTH_PX = 1152  # the width of the page
LEAST_PX = 240  # of a picture that is too heavy in its size
MAX_HEIGHT_PX = 16383  # of a WebP
QUALITY = 72
NAMED = 10  # pictures that are named where they are left out
FIGURE = (5.4, 3.2)  # inches


class Picture(NamedTuple):
    """A picture for the macro `figures`.

    Attributes:
        uri: its content, as a data URI.
        text: what it shows.
        width: px.
        height: px.
        drawn: whether it is a figure on white, which shows its title itself and is inverted on a dark page.
    """

    uri: str
    text: str
    width: int
    height: int
    drawn: bool = False


def figure(title: str, draw: Callable[[Axes], object], text: str) -> Picture:
    """Return a small figure.

    Args:
        title: on it.
        draw: draws into the axes.
        text: what it shows, for those who do not see it.
    """
    load()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "text.parse_math": False, "font.size": 9}):
        canvas = Figure(figsize=FIGURE, layout="constrained")
        axes = canvas.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        buffer = BytesIO()
        canvas.savefig(buffer, format="svg")
    width, height = (round(72 * side) for side in FIGURE)
    return Picture(_uri("image/svg+xml", buffer.getvalue()), text, width, height, drawn=True)


def shrunk(path: Path, text: str | None = None, width: int = MAX_WIDTH_PX) -> Picture:
    """Return an image from a file.

    Args:
        path: of the file.
        text: what it shows; None: the name of the file.
        width: px, at most.

    Raises:
        DataError: if it is no readable image.
    """
    try:
        image = read_image(path)
    except DataError as error:
        msg = f"{path} is not a readable image. Delete it or write it again."
        raise DataError(msg) from error
    scale = min(width / image.shape[1], MAX_HEIGHT_PX / image.shape[0])
    if scale < 1:
        image = resize(image, *(max(1, round(side * scale)) for side in image.shape[:2]))
    content = as_webp(image, QUALITY)
    return Picture(_uri("image/webp", content), text or path.stem, image.shape[1], image.shape[0])


def within(
    budget: int, paths: Iterable[Path], kind: str = "", width: int = MAX_WIDTH_PX, most: int | None = None
) -> Markup:
    """Return the first pictures that fit into a number of bytes, at least a small one, and a note about the others.

    Args:
        budget: bytes of the page.
        paths: of the files, the most important ones first.
        kind: how they are placed, see the macro `figures`.
        width: px of a picture, at most.
        most: pictures, at most; None: as many as fit.
    """
    images: list[Picture] = []
    paths = list(paths)
    for path in paths[:most]:
        image = shrunk(path, width=width)
        while not images and len(image.uri) > budget and width > LEAST_PX:
            width //= 2
            image = shrunk(path, width=width)
        budget -= len(image.uri)
        if images and budget < 0:
            break
        images.append(image)
    html = macros().figures(images, kind)
    if rest := paths[len(images) :]:
        folder = "/".join(rest[0].parent.parts[-2:])
        names = ", ".join(path.name for path in rest[:NAMED]) + (", ..." if len(rest) > NAMED else ".")
        html += macros().note(f"{len(rest)} more are in {folder}: {names}")
    return html


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
