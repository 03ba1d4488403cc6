"""Your own keypoints: images, each with a CSV file of points; and the shared code of all readers of keypoints.

Shape suffixes: n = points, 3 = (x, y, class). Coordinates are whole px; (0, 0) is the centre of the top-left pixel.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from math import floor, inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.evaluation import TileLoader, WholeTilesDataModule
from ihc2he.data.stored import require
from ihc2he.data.tables import by_name, pixel_size, read_rows, read_table
from ihc2he.datainfo import DataInfo
from ihc2he.errors import DataError, did_you_mean
from ihc2he.images.decoding import image_size, read_image
from ihc2he.images.finding import find_images, regular_files, walk
from ihc2he.images.labels import read_labels
from ihc2he.images.pixelsize import compare_with_files
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

POLICIES = ("error", "repeated", "skip")
REPEATED = "repeated points"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float() also takes 1_000 and other scripts

HOW_TO_GET = """\
{root}: {problem}. Expected this tree, in which the files of a tile have the same name apart from the extension:
  {root}/images/*.png (or JPEG, TIFF), in sub-folders too
  {root}/points/*.csv: a header with x, y and perhaps class, then a row for each nucleus
  {root}/tiles.csv (optional): columns name, um_per_px, case
An image without nuclei has a file with the header alone. If it lies elsewhere, pass data.root=FOLDER."""


class PointTile(NamedTuple):
    """A tile after reading its keypoints and before reading its images.

    Attributes:
        name: of the tile.
        group: shared by tiles that are not independent; "" if unknown.
        image: the file.
        mpp: um/px.
        points_n3: the reference.
        readers: the points of all annotators, the reference among them.
        truth: further files with the truth, by key of the batch: "inst", "type" and "he"; empty for real tissue.
        second_readings: which of `readers` are the second ones of an annotator.
    """

    name: str
    group: str
    image: Path
    mpp: float
    points_n3: NDArray[np.int64]
    readers: dict[str, NDArray[np.int64]]
    truth: dict[str, Path]
    second_readings: tuple[str, ...] = ()


def read_point_tile(tile: PointTile) -> dict[str, Any]:
    """Return the entries of a batch for a tile; `PointsDataModule` documents the keys."""
    return {
        "name": tile.name,
        "group": tile.group,
        "image": read_image(tile.image),
        "mpp": tile.mpp,
        "points": tile.points_n3,
        "readers": tile.readers,
        "second_readings": tile.second_readings,
    } | {key: read_image(path) if key == "he" else read_labels(path) for key, path in tile.truth.items()}


class Point(NamedTuple):
    """A keypoint and the line of its file, from 1."""

    line: int
    x: int
    y: int
    kind: int


class Faults:
    """What is wrong with a dataset: raised at once, or left out, counted and reported in one warning.

    Args:
        policy: "error": everything is raised; "repeated": points that come twice are left out and the rest is raised;
            "skip": everything is left out.
        remedy: what to do about an error, as a sentence.
    """

    def __init__(self, policy: str, remedy: str) -> None:
        self.policy = policy
        self.remedy = remedy
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        """Record a fault, or raise a DataError; the caller leaves out the item.

        Args:
            kind: in the plural, such as "points outside of their tile".
            what: the place and what was found, as a sentence.
        """
        if self.policy == "error" or (self.policy == "repeated" and kind != REPEATED):
            msg = f"{what} {self.remedy}"
            raise DataError(msg)
        self.found.setdefault(kind, []).append(what)

    def report(self, where: Path) -> None:
        """Log what was left out, if anything was."""
        if self.found:
            counts = "; ".join(f"{len(all_)} {kind}, such as {all_[0]}" for kind, all_ in self.found.items())
            log.warning("%s: left out %s", where, counts)


def keep_good(points: Iterable[Point], size: tuple[int, int], path: Path, faults: Faults) -> NDArray[np.int64]:
    """Return the points inside their tile, each once, in their order.

    Points of two classes at the same place are both kept: they may be two nuclei, one above the other.

    Args:
        points: of one file.
        size: height and width of the tile in px.
        path: of the file.
        faults: collects the others.

    >>> keep_good([Point(1, 7, 3, 0), Point(2, 7, 3, 0)], (10, 10), Path("a.txt"), Faults("skip", "")).tolist()
    [[7, 3, 0]]
    """
    height, width = size
    lines: dict[tuple[int, int, int], int] = {}
    for line, x, y, kind in points:
        where = f"{path}, line {line}: point ({x}, {y})"
        if not (0 <= x < width and 0 <= y < height):
            faults.add("points outside of their tile", f"{where} lies outside of its tile of {width}x{height} px.")
        elif (x, y, kind) in lines:
            faults.add(REPEATED, f"{where} repeats line {lines[x, y, kind]}.")
        else:
            lines[x, y, kind] = line
    return np.array(list(lines), np.int64).reshape(-1, 3)


class PointsDataModule(WholeTilesDataModule):
    """Your own images with keypoints, for evaluation.

    A batch of the test is a dict of lists with an entry per tile: ``name``, ``group``, ``image`` (HxWx3 uint8 RGB),
    ``mpp``, ``points`` (the reference, (N, 3) int64: x, y in px and the class from 0), ``readers`` (the points by
    annotator) and ``second_readings`` (the second ones of an annotator among them). Repeated
    points are left out, with one warning; everything else that is wrong is an error.

    Args:
        root: folder with ``images``, ``points`` and perhaps ``tiles.csv``, whose column ``case`` is the group.
        classes: names of the classes from 0; None: the column ``class`` is not read, and all points have class 0.
        mpp: um/px of the images that are not in ``tiles.csv``.
        batch_size: tiles per batch and process.
        num_workers: processes that load tiles.

    Attributes:
        classes: names of the points' classes; empty if there are none.
        truth_classes: empty, because only points are known.
    """

    def __init__(
        self,
        *,
        root: str,
        classes: Sequence[str] | None = None,
        mpp: float | None = None,
        batch_size: int = 4,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        require("mpp", mpp, mpp is None or is_pixel_size(mpp), PIXEL_SIZE)
        self.root = Path(root).expanduser()
        self.classes = list(classes or [])
        self.truth_classes: list[str] = []
        self.mpp = mpp

    @property
    def info(self) -> DataInfo:
        """What models, callbacks and the runner can know about the images."""
        return DataInfo(mpp=None, classes=self.classes)

    def setup(self, stage: str | None = None) -> None:
        """Read and check all points; does not read the pixels of PNG files."""
        images, points = (
            by_name(folder, files)
            for folder, files in (
                (self.root / "images", (self.root / "images" / name for name in find_images(self.root / "images"))),
                (
                    self.root / "points",
                    regular_files(path for path in walk(self.root / "points") if path.suffix == ".csv"),
                ),
            )
        )
        self._require_partners(images, points)
        table = read_table(self.root / "tiles.csv", ("um_per_px", "case"), images)
        faults = Faults("repeated", "Mend the file.")
        self.tiles = []
        for name, image in images.items():
            said = table.get(name, {})
            mpp = pixel_size(said.get("um_per_px"), self.mpp, image, self.root / "tiles.csv")
            path = points[name]
            points_n3 = keep_good(read_points(path, self.classes), image_size(image), path, faults)
            readers = {"points": points_n3}
            self.tiles.append(PointTile(name, said.get("case") or "", image, mpp, points_n3, readers, {}))
        faults.report(self.root)
        compare_with_files({tile.image: tile.mpp for tile in self.tiles})

    def test_dataloader(self) -> TileLoader:
        return self._loader(self.tiles, read_point_tile)

    def _require_partners(self, images: dict[str, Path], points: dict[str, Path]) -> None:
        without = [file for name, file in images.items() if name not in points]
        lonely = [file for name, file in points.items() if name not in images]
        if not images:
            problem = f"found no image in {self.root / 'images'}"
        elif without:
            problem = f"{without[0]} has no CSV file in {self.root / 'points'} ({len(without)} such)"
        elif lonely:
            problem = f"{lonely[0]} has no image in {self.root / 'images'} ({len(lonely)} such)"
        else:
            return
        raise DataError(HOW_TO_GET.format(root=self.root, problem=problem))


def read_points(path: Path, classes: Sequence[str]) -> list[Point]:
    """Return the points of a CSV file with the columns x, y and, if there are classes, class; others are not read.

    Coordinates with decimals are rounded to the pixel that they lie in. A class is a name, or a number from 0.

    Raises:
        DataError: for a missing column, a coordinate that is not a number, and an unknown class.
    """
    wanted = ["x", "y", *(["class"] if classes else [])]
    points = []
    for line, row in read_rows(path, wanted, wanted):
        where = f"{path}, line {line}"
        kind = _class(row["class"], classes, where) if classes else 0
        points.append(Point(line, _whole(row, "x", where), _whole(row, "y", where), kind))
    return points


def _whole(row: dict[str, str], column: str, where: str) -> int:
    text = row[column]
    value = float(text) if _NUMBER.fullmatch(text) else inf
    if not isfinite(value):
        comma = " Write 5.5, not 5,5." if "," in text else ""
        msg = f"{where}: {column} is {text!r}, expected a number of px.{comma}"
        raise DataError(msg)
    return floor(value + 0.5)


def _class(text: str, classes: Sequence[str], where: str) -> int:
    if text in classes:
        return classes.index(text)
    if text.isascii() and text.isdecimal() and int(text) < len(classes):
        return int(text)
    hint = did_you_mean(text, classes)
    msg = f"{where}: class {text!r}, expected a name of data.classes or a number from 0.{hint}"
    raise DataError(msg)
