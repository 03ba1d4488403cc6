"""The published layout of EndoNuke: images, label files by split and annotator, and lists of label files."""

import re
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from ihc2he.data.points import Faults, Point
from ihc2he.data.tables import by_name
from ihc2he.errors import DataError
from ihc2he.images.finding import find_images, regular_files

CLASSES = ("stroma", "epithelium", "other")

_POINT = re.compile(r"\s*(-?\d{1,18})\s+(-?\d{1,18})\s+(-?\d{1,18})\s*", re.ASCII)  # int() also takes 1_000


class Label(NamedTuple):
    """The annotation and the tile of a label file; lists use the same names."""

    split: str
    annotator: str
    number: int


def find_home(root: Path) -> Path | None:
    """Return the folder that has ``dataset/images`` and ``dataset/labels``: the root or its folder data; else None."""
    for home in (root, root / "data"):
        if all((home / "dataset" / name).is_dir() for name in ("images", "labels")):
            return home
    return None


def find_files(home: Path, faults: Faults) -> tuple[dict[int, Path], dict[Label, Path]]:
    """Return the images by number, and the label files, after reporting those without a partner."""
    folder = home / "dataset" / "images"
    images = {_number(path): path for path in by_name(folder, (folder / name for name in find_images(folder))).values()}
    files = regular_files(sorted((home / "dataset" / "labels").glob("*/*/[!.]*.txt")))
    labels = {Label(path.parts[-3], path.parts[-2], _number(path)): path for path in files}
    for label, path in labels.items():
        if label.number not in images:
            faults.add("labels without an image", f"{path}: there is no image of tile {label.number}.")
    for number in sorted(images.keys() - {label.number for label in labels}):
        faults.add("images without a label", f"{images[number]}: there is no label file of tile {number}.")
    return images, labels


def _number(path: Path) -> int:
    if not path.stem.isdecimal():
        msg = f"{path}: expected the number of a tile as its name, such as 321{path.suffix}. Rename or remove it."
        raise DataError(msg)
    return int(path.stem)


def master_files(home: Path) -> list[Path]:
    """Return the files that name the lists of a subset."""
    return sorted((home / "master_ymls").glob("[!.]*.y*ml"))


def listed_labels(home: Path, subset: str) -> set[Label] | None:
    """Return the labels in a master file; None if there is no such file."""
    master = next((path for path in master_files(home) if path.stem == subset), None)
    if master is None:
        return None
    try:
        lists = OmegaConf.to_object(OmegaConf.load(master))["labels_lists"]  # type: ignore[index, call-overload]
    except Exception as error:  # of several libraries
        msg = f"{master}: no list labels_lists can be read ({error}). Download it again."
        raise DataError(msg) from error
    if not isinstance(lists, list) or not all(isinstance(name, str) for name in lists):
        msg = f"{master}: labels_lists is {lists!r}, expected a list of files. Download it again."
        raise DataError(msg)
    return {label for name in lists for label in _read_list(master, home, name)}


def _read_list(master: Path, home: Path, name: str) -> list[Label]:
    """Return the labels in a list; its path may start at any folder above it."""
    parts = Path(name).parts
    places = (base / Path(*parts[k:]) for k in range(len(parts)) for base in (home, home / "dataset"))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        msg = f"{master}: its list {name} is not below {home}. Complete the download, or choose a split as data.subset."
        raise DataError(msg)
    labels = []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").split():
        file = Path(line)
        if len(file.parts) < 3 or not file.stem.isdecimal():
            msg = f"{path}: found {line!r}, expected label files such as dataset/labels/bulk/ptg1/321.txt."
            raise DataError(msg)
        labels.append(Label(file.parts[-3], file.parts[-2], int(file.stem)))
    return labels


def read_label(path: Path, faults: Faults) -> list[Point]:
    """Return the points of a label file; lines that are no point are faults."""
    points = []
    for i, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        if match := _POINT.fullmatch(line):
            x, y, kind = map(int, match.groups())
        else:
            faults.add("lines that are no point", f"{path}, line {i}: {line[:40]!r}, expected whole numbers x y class.")
            continue
        if 0 <= kind < len(CLASSES):
            points.append(Point(i, x, y, kind))
        else:
            known = ", ".join(f"{k} {name}" for k, name in enumerate(CLASSES))
            faults.add("points of an unknown class", f"{path}, line {i}: class {kind}, expected {known}.")
    return points
