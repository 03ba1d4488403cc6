"""Malformed label files: keypoints, their lists, tables of tiles, and instance maps."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from . import damage
from .damage import Damage, on
from .harness import Case, Change

POINTS, TABLES, MAPS = "keypoint files", "tables and lists", "instance and type maps"
Lines = Callable[[list[str]], list[str]]


def cases() -> list[Case]:
    """Return the cases."""
    return [*_keypoints(), *_tables(), *_maps()]


def _line(change: Callable[[str], str], which: int = 2) -> Lines:
    """Return an edit of one line."""
    return lambda lines: [change(line) if i == which else line for i, line in enumerate(lines)]


def _lines(found: Callable[[], Path], edit: Lines, names: Sequence[str] = (), same: bool = False) -> Callable:
    """Return a mutation of a text file by lines."""

    def mutate(rng: np.random.Generator) -> Change:
        path = found()
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(edit(lines)) + "\n", encoding="utf-8")
        return Change(names=names or (path.name,))

    return mutate


def _bytes(found: Callable[[], Path], edit: Callable[[bytes], bytes], names: Sequence[str] = ()) -> Callable:
    def mutate(rng: np.random.Generator) -> Change:
        path = found()
        path.write_bytes(edit(path.read_bytes()))
        return Change(names=names or (path.name,))

    return mutate


def _damaged(found: Callable[[], Path], spoil: Damage, names: Sequence[str] = ()) -> Callable:
    def mutate(rng: np.random.Generator) -> Change:
        path = found()
        spoil(path, rng)
        no_nuclei = path.name == "0.txt" and spoil is damage.empty
        return Change(names=names or (path.name,), valid="documented: a tile without nuclei" if no_nuclei else "")

    return mutate


# ------------------------------------------------------------------ keypoints


def _endonuke() -> Path:
    return sorted(Path("endonuke/dataset/labels").glob("bulk/*/0.txt"))[0]


def _csv() -> Path:
    return Path("points/points/p0.csv")


POINT_LINES: Sequence[tuple[str, Lines]] = (
    ("bad line", _line(lambda s: "three words here")), ("bad line", _line(lambda s: s + " 7")),
    ("bad line", _line(lambda s: s[: s.rfind(" ")])), ("wrong delimiter", _line(lambda s: s.replace(" ", ","))),
    ("wrong delimiter", _line(lambda s: s.replace(" ", ";"))), ("NaN", _line(lambda s: "nan 3 0")),
    ("infinite", _line(lambda s: "inf 3 0")), ("negative", _line(lambda s: "-3 5 0")),
    ("outside of the tile", _line(lambda s: "5 99999 0")), ("outside of the tile", _line(lambda s: f"{10**30} 5 0")),
    ("unknown class", _line(lambda s: "5 5 9")), ("unknown class", _line(lambda s: "5 5 -1")),
    ("fraction", _line(lambda s: "5.5 5 0")), ("fraction", _line(lambda s: "5 5 1.0")),
    ("repeated", lambda lines: [*lines, lines[2]]), ("empty line", lambda lines: [*lines[:2], "", "  ", *lines[2:]]),
    ("comment", lambda lines: ["# x y class", *lines]), ("control characters", _line(lambda s: "\0" + s)),
    ("other digits", _line(lambda s: "\u0663 \u0665 \u0660")), ("long line", _line(lambda s: "1 " * 100_000)),
)  # fmt: skip
POINT_BYTES: Sequence[tuple[str, Callable[[bytes], bytes]]] = (
    ("byte order mark", lambda data: b"\xef\xbb\xbf" + data), ("CRLF", lambda data: data.replace(b"\n", b"\r\n")),
    ("old Mac line ends", lambda data: data.replace(b"\n", b"\r")),
    ("UTF-16", lambda data: data.decode().encode("utf-16")), ("not UTF-8", lambda data: data + b"\xff\xfe \xe9 0\n"),
    ("no line end", lambda data: data.rstrip(b"\n")), ("tabs", lambda data: data.replace(b" ", b"\t")),
)  # fmt: skip
CSV_LINES: Sequence[tuple[str, Lines]] = (
    ("no header", lambda lines: lines[1:]), ("wrong columns", _line(lambda s: "row,col,class", 0)),
    ("wrong columns", _line(lambda s: "x,y,kind", 0)), ("wrong columns", _line(lambda s: "x,x,class", 0)),
    ("wrong columns", _line(lambda s: "X,Y,Class", 0)), ("column twice", _line(lambda s: "x,y,class,x", 0)),
    ("wrong delimiter", lambda lines: [line.replace(",", ";") for line in lines]),
    ("wrong delimiter", lambda lines: [line.replace(",", "\t") for line in lines]),
    ("bad line", _line(lambda s: "a,b,stroma")), ("bad line", _line(lambda s: "5")), ("bad line", _line(lambda s: "5,5")),
    ("surplus field", _line(lambda s: s + ",7,8")), ("NaN", _line(lambda s: "nan,3,stroma")),
    ("infinite", _line(lambda s: "3,-inf,stroma")), ("negative", _line(lambda s: "-3,5,stroma")),
    ("outside of the tile", _line(lambda s: "64,5,stroma")), ("outside of the tile", _line(lambda s: "1e300,5,stroma")),
    ("unknown class", _line(lambda s: "5,5,epithelum")), ("unknown class", _line(lambda s: "5,5,3")),
    ("unknown class", _line(lambda s: "5,5,")), ("unknown class", _line(lambda s: "5,5,-1")),
    ("fraction in a class", _line(lambda s: "5,5,0.5")), ("repeated", lambda lines: [*lines, lines[2]]),
    ("decimal comma", _line(lambda s: '"5,5","3,2",stroma')), ("open quote", _line(lambda s: '"5,5,stroma')),
    ("empty line", lambda lines: [*lines[:2], "", *lines[2:]]), ("control characters", _line(lambda s: "\0,5,stroma")),
    ("long field", _line(lambda s: "1" * 200_000 + ",5,stroma")),
)  # fmt: skip


def _keypoints() -> list[Case]:
    found = []
    for scenario in ("EndoNuke", "EndoNuke, skip"):
        for number, (family, edit) in enumerate(POINT_LINES):
            found.append(Case(POINTS, family, scenario, _lines(_endonuke, edit), number))
        for number, (family, change) in enumerate(POINT_BYTES):
            found.append(Case(POINTS, family, scenario, _bytes(_endonuke, change), number, "bytes "))
        for number, (family, spoil) in enumerate(
            (("empty", damage.empty), ("other content", damage.noise), ("other content", damage.text),
             ("missing", damage.gone), ("a folder of that name", damage.folder), ("a link to nothing", damage.dangling),
             ("a named pipe", damage.pipe))
        ):  # fmt: skip
            found.append(
                Case(POINTS, family, scenario, _damaged(_endonuke, spoil, ("0.txt", "0.png")), number, "file ")
            )
    for number, (family, edit) in enumerate(CSV_LINES):
        found.append(Case(POINTS, family, "points", _lines(_csv, edit), number))
    for number, (family, change) in enumerate(POINT_BYTES):
        found.append(Case(POINTS, family, "points", _bytes(_csv, change), number, "bytes "))
    for number, (family, spoil) in enumerate(
        (("empty", damage.empty), ("other content", damage.noise), ("other content", damage.text),
         ("missing", damage.gone), ("a folder of that name", damage.folder), ("a link to nothing", damage.dangling),
         ("a named pipe", damage.pipe))
    ):  # fmt: skip
        found.append(Case(POINTS, family, "points", _damaged(_csv, spoil, ("p0.csv", "p0.png")), number, "file "))
    return found


# ------------------------------------------------------------------ tables and lists


TABLE_LINES: Sequence[tuple[str, Lines]] = (
    ("wrong columns", _line(lambda s: s.replace("name", "tile"), 0)), ("no header", lambda lines: lines[1:]),
    ("wrong columns", _line(lambda s: s.replace("um_per_px", "mpp"), 0)),
    ("wrong delimiter", lambda lines: [line.replace(",", ";") for line in lines]),
    ("pixel size", _line(lambda s: s.replace("0.5", "0").replace("0.25", "0"))),
    ("pixel size", _line(lambda s: s.replace("0.5", "-1").replace("0.25", "-1"))),
    ("pixel size", _line(lambda s: s.replace("0.5", "nan").replace("0.25", "nan"))),
    ("pixel size", _line(lambda s: s.replace("0.5", "half").replace("0.25", "half"))),
    ("pixel size", _line(lambda s: s.replace("0.5", "inf").replace("0.25", "inf"))),
    ("pixel size", _line(lambda s: s.replace("0.5", "1e-300").replace("0.25", "1e-300"))),
    ("pixel size", _line(lambda s: s.replace("0.5", "1e9").replace("0.25", "1e9"))),
    ("a tile twice", lambda lines: [*lines, lines[1]]), ("a name without file", lambda lines: [*lines, "zzz,,,"]),
    ("an empty name", lambda lines: [*lines, ",,,"]), ("a short line", _line(lambda s: s.split(",")[0])),
    ("surplus fields", _line(lambda s: s + ",a,b,c")), ("an empty line", lambda lines: [*lines[:2], "", *lines[2:]]),
    ("open quote", _line(lambda s: '"' + s)), ("control characters", _line(lambda s: "\0" + s)),
)  # fmt: skip
MASTER = """images_lists: []
labels_lists:
- {}
"""
YAML = (
    ("broken YAML", "labels_lists: ["), ("broken YAML", "\tlabels_lists:\n- a"), ("broken YAML", "a: &a [*a]"),
    ("empty", ""), ("wrong keys", "images_lists: []\n"), ("a text where a list belongs", "labels_lists: all\n"),
    ("wrong types", "labels_lists: 3\n"), ("wrong types", "labels_lists: [3, null, {a: b}]\n"),
    ("wrong types", "[1, 2]\n"), ("no list", "labels_lists: []\n"), ("a list that is missing", MASTER.format("nowhere")),
    ("a list outside of the dataset", MASTER.format("../../../etc/passwd")),
    ("a list outside of the dataset", MASTER.format("/dev/zero")),
    ("hostile YAML", "labels_lists: !!python/object/apply:os.system ['touch OWNED']\n"),
    ("interpolation", MASTER.format("${oc.env:HOME}")), ("interpolation", MASTER.format("${nothing}")),
)  # fmt: skip
LIST_LINES: Sequence[tuple[str, Lines]] = (
    ("bad line", lambda lines: ["nonsense"]), ("bad line", lambda lines: ["a/b/c.txt"]),
    ("a label that is missing", lambda lines: [line.replace("/0.txt", "/999.txt") for line in lines] + ["dataset/labels/bulk/ptg9/5.txt"]),
)  # fmt: skip


def _tables() -> list[Case]:
    found = []
    for scenario, file in (
        ("own nuclei", "nuclei/tiles.csv"),
        ("points", "points/tiles.csv"),
        ("prediction", "tiles/tiles.csv"),
    ):

        def place(file: str = file) -> Path:
            return Path(file)

        names = ("tiles.csv", "data.mpp")
        for number, (family, edit) in enumerate(TABLE_LINES):
            found.append(Case(TABLES, family, scenario, _lines(place, edit, names), number))
        for number, (family, change) in enumerate(POINT_BYTES):
            if family != "tabs":
                found.append(Case(TABLES, family, scenario, _bytes(place, change, names), number, "bytes "))
        for family, spoil in (("empty", damage.empty), ("other content", damage.noise), ("missing", damage.gone),
                              ("a folder of that name", damage.folder), ("a link to nothing", damage.dangling)):  # fmt: skip
            found += on(TABLES, family, scenario, file, spoil, names)
    master = Path("endonuke/master_ymls/unique.yaml")
    for number, (family, text) in enumerate(YAML):

        def write(rng: np.random.Generator, text: str = text) -> Change:
            master.write_text(text)
            return Change(names=(master.name, "data.subset", "unique"))

        found.append(Case(TABLES, f"list of labels: {family}", "EndoNuke", write, number))
    found += [
        Case(TABLES, f"list of labels: {family}", "EndoNuke", _damaged(lambda: master, spoil), number, "file ")
        for number, (family, spoil) in enumerate(
            (("other content", damage.noise), ("a folder of that name", damage.folder))
        )
    ]
    for number, (family, edit) in enumerate(LIST_LINES):

        def lists() -> Path:
            return sorted(Path("endonuke/dataset/file_lists/bulk").glob("*_labels.txt"))[0]

        found.append(Case(TABLES, f"list of labels: {family}", "EndoNuke",
                          _lines(lists, edit, ("_labels.txt", "999", "5.txt")), number, "lines "))  # fmt: skip
    found.append(Case(TABLES, "list of labels: not UTF-8", "EndoNuke",
                      _bytes(lists, lambda data: b"\xff\xfe\xe9" + data, ("_labels.txt",))))  # fmt: skip
    note = "endonuke/truth/simulation.json"
    for family, text in (
        ("broken JSON", "{"),
        ("wrong keys", "{}"),
        ("wrong types", '{"size": "big"}'),
        ("wrong types", "[]"),
        ("zero", '{"size": 0}'),
    ):

        def write_note(rng: np.random.Generator, text: str = text) -> Change:
            Path(note).write_text(text)
            return Change(names=("simulation.json",))

        found.append(Case(TABLES, f"note of the simulator: {family}", "EndoNuke", write_note, len(text)))
    return found


# ------------------------------------------------------------------ maps of labels


def _map(folder: str, write: Callable[[Path, NDArray], str]) -> Callable[[np.random.Generator], Change]:
    def mutate(rng: np.random.Generator) -> Change:
        path = Path(folder) / "t0.png"
        valid = write(path, cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) or ""
        return Change(names=(path.name, "t0", folder), valid=valid)

    return mutate


def _png(change: Callable[[NDArray], NDArray], valid: str = "") -> Callable[[Path, NDArray], str]:
    def write(path: Path, labels: NDArray) -> str:
        path.write_bytes(cv2.imencode(".png", change(labels))[1].tobytes())
        return valid

    return write


def _tif(change: Callable[[NDArray], NDArray]) -> Callable[[Path, NDArray], str]:
    def write(path: Path, labels: NDArray) -> str:
        import tifffile

        tifffile.imwrite(path.with_suffix(".tif"), change(labels))
        path.unlink()
        return ""

    return write


def _jpeg(path: Path, labels: NDArray) -> str:
    path.write_bytes(cv2.imencode(".jpg", np.clip(labels, 0, 255).astype(np.uint8))[1].tobytes())
    return ""


def _as_colours(labels: NDArray) -> NDArray:
    return np.dstack([labels.astype(np.uint8)] * 3)


BOTH: Sequence[tuple[str, Callable[[Path, NDArray], str]]] = (
    ("colours", _png(_as_colours)), ("JPEG", _jpeg), ("another size", _png(lambda a: a[:-1])),
    ("another size", _png(lambda a: a[:1, :1])), ("another size", _png(lambda a: np.repeat(a, 2, 0))),
    ("TIFF of the same values", _tif(lambda a: a)), ("TIFF of floats", _tif(lambda a: a.astype(np.float32))),
    ("TIFF with NaN", _tif(lambda a: np.where(a > 0, a, np.nan).astype(np.float32))),
    ("TIFF of negative values", _tif(lambda a: a.astype(np.int32) - 5)),
    ("TIFF of several pages", _tif(lambda a: np.stack([a] * 3))),
    ("TIFF of huge values", _tif(lambda a: a.astype(np.uint32) * 2**27)),
    ("TIFF of complex values", _tif(lambda a: a.astype(np.complex64))),
    ("TIFF of 64 bits", _tif(lambda a: a.astype(np.uint64))),
)  # fmt: skip
INSTANCES = (*BOTH, ("nuclei without a type", _png(lambda a: np.where(a > 0, a, a.max() + 1))),
             ("types without a nucleus", _png(lambda a: a * 0)))  # fmt: skip
TYPES = (*BOTH, ("an unknown type", _png(lambda a: np.where(a > 0, 9, 0).astype(a.dtype))),
         ("types without a nucleus", _png(np.ones_like)), ("nuclei without a type", _png(lambda a: a * 0)))  # fmt: skip


def _maps() -> list[Case]:
    found = []
    for folder, edits in (("nuclei/instances", INSTANCES), ("nuclei/types", TYPES)):
        for number, (family, write) in enumerate(edits):
            found.append(Case(MAPS, family, "own nuclei", _map(folder, write), number, f"{folder} "))
        for family, spoil in (
            ("cut off", damage.cut), ("empty", damage.empty), ("other content", damage.noise), ("missing", damage.gone),
            ("bits flipped in a PNG", damage.flip()), ("a folder of that name", damage.folder),
            ("a link to nothing", damage.dangling), ("a stretch of zeros", damage.zeros),
        ):  # fmt: skip
            place = f"{folder}/t0.png"
            found += on(MAPS, family, "own nuclei", place, spoil, ("t0", folder))
    return found
