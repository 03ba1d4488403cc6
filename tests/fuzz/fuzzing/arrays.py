"""Malformed arrays: the folds of PanNuke, and the tile store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import damage
from .damage import Hostile, on
from .harness import Case, Change

NPY, STORE = "npy arrays", "tile stores (HDF5)"
FOLD = "pannuke/Fold 1"
ARRAYS = {
    "images": f"{FOLD}/images/fold1/images.npy",
    "masks": f"{FOLD}/masks/fold1/masks.npy",
    "types": f"{FOLD}/images/fold1/types.npy",
}
STORES = (("CycleGAN, fit on a store", "store/tiles.h5"), ("HoVer-Net, test on a store", "nstore/tiles.h5"))


def cases() -> list[Case]:
    """Return the cases."""
    return [*_npy(), *_stores()]


# ------------------------------------------------------------------ NumPy


def _npy() -> list[Case]:
    scenario, found = "HoVer-Net, test", list[Case]()
    for file in ARRAYS.values():
        for family, spoil in (
            ("cut off", damage.cut), ("cut off", damage.cut_end), ("empty", damage.empty),
            ("other content", damage.noise), ("other content", damage.text), ("missing", damage.gone),
            ("a folder of that name", damage.folder), ("a link to nothing", damage.dangling),
            ("hostile pickle", damage.hostile), ("header cut", _header_cut), ("header claims more", _claims_more),
            ("another version", _version), ("hostile pickle", _objects),
        ):  # fmt: skip
            found += on(NPY, family, scenario, file, spoil)
    for name, edits in (("images", PIXELS), ("masks", MASKS), ("types", TISSUES)):
        for number, (family, edit, harmless) in enumerate(edits):
            found.append(Case(NPY, f"{name}: {family}", scenario, _edited(ARRAYS[name], edit, harmless), number))
    return found


def _edited(file: str, edit: Callable[[NDArray[Any]], Any], harmless: str) -> Callable[..., Change]:
    def mutate(rng: np.random.Generator) -> Change:
        np.save(file, edit(np.load(file)), allow_pickle=True)
        return Change(names=("images.npy", "masks.npy", "types.npy"), valid=harmless)

    return mutate


def _put(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def edit(array: NDArray[Any]) -> NDArray[Any]:
        array[0, 3, 5, 0] = value
        return array

    return edit


def _header_cut(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: int(rng.integers(7, 60))])


def _claims_more(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes().replace(b"'shape': (2", b"'shape': (9", 1))


def _version(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[6] = 9
    path.write_bytes(bytes(data))


def _objects(path: Path, rng: np.random.Generator) -> None:
    np.save(path, np.array([Hostile(), Hostile()], dtype=object), allow_pickle=True)


SAME = (
    ("another byte order", lambda a: a.astype(a.dtype.newbyteorder(">")), ""),
    ("Fortran order", np.asfortranarray, ""),
    ("float32", lambda a: a.astype(np.float32), ""),
    ("int64", lambda a: a.astype(np.int64), ""),
)
SHAPES = (
    ("shape", lambda a: a[:1], ""),
    ("shape", lambda a: a[..., :2], ""),
    ("shape", lambda a: a[:, :, :-1], ""),
    ("shape", lambda a: a.transpose(0, 3, 1, 2), ""),
    ("shape", lambda a: a.ravel(), ""),
    ("shape", lambda a: a[0], ""),
    ("shape", lambda a: np.array(3.0), ""),
    ("shape", lambda a: a[:0], ""),
    ("dtype", lambda a: a.astype(str), ""),
    ("dtype", lambda a: a.astype(complex), ""),
    ("dtype", lambda a: a > 0, ""),
    ("dtype", lambda a: a.astype("datetime64[s]"), ""),
    ("dtype", lambda a: np.zeros(len(a), [("a", float)]), ""),
)
NUMBERS = (
    ("NaN", _put(np.nan), ""), ("infinite", _put(np.inf), ""), ("negative", _put(-1), ""), ("fraction", _put(0.5), ""),
    ("huge", _put(1e30), ""),
)  # fmt: skip
PIXELS = (*SAME, *SHAPES, *NUMBERS, ("above 255", _put(256), ""), ("scaled to 1", lambda a: a / 255, ""))
MASKS = (*SAME, *SHAPES, *NUMBERS)
TISSUES = (
    ("shape", lambda a: a[:1], ""), ("shape", lambda a: a[None], ""), ("dtype", lambda a: np.zeros(len(a)), ""),
    ("dtype", lambda a: a.astype(bytes), ""), ("dtype", lambda a: a.astype(object), ""),
)  # fmt: skip


# ------------------------------------------------------------------ HDF5


def _stores() -> list[Case]:
    found: list[Case] = []
    for scenario, path in STORES:
        for family, spoil, n in (
            ("cut off", damage.cut, 2), ("cut off", damage.cut_end, 1), ("empty", damage.empty, 1),
            ("other content", damage.noise, 1), ("other content", damage.text, 1), ("missing", damage.gone, 1),
            ("hostile pickle", damage.hostile, 1), ("bits flipped in the first tenth", damage.flip(0, 0.1), 3),
            ("bits flipped anywhere", damage.flip(), 5), ("a stretch of zeros", damage.zeros, 3),
        ):  # fmt: skip
            found += on(STORE, family, scenario, path, spoil, n=n)
        for number, (family, edit) in enumerate(EDITS):
            found.append(Case(STORE, family, scenario, _reopened(path, edit), number))
    return found


def _reopened(path: str, edit: Callable[[Any], None]) -> Callable[..., Change]:
    def mutate(rng: np.random.Generator) -> Change:
        import h5py

        with h5py.File(path, "r+", locking=False) as file:
            edit(file)
        return Change(names=("tiles.h5",))

    return mutate


def _field(file: Any) -> str:
    return next(name for name in file if name in ("ihc", "image"))


def _replaced(make: Callable[[NDArray[Any]], Any]) -> Callable[[Any], None]:
    """Return an edit of the first array, which keeps the table of rows as it was."""

    def edit(file: Any) -> None:
        for name in list(file[_field(file)]):
            key = f"{_field(file)}/{name}"
            array = make(file[key][()])
            del file[key]
            file[key] = array

    return edit


def _gone(name: str) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        if name in file.attrs:
            del file.attrs[name]
        else:
            del file[name]

    return edit


def _attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def _rows(change: Callable[[list[dict[str, Any]]], Any], name: str = "rows") -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        text = json.dumps(change(json.loads(file[name][()])))
        del file[name]
        file[name] = text

    return edit


def _text(name: str, value: Any) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        del file[name]
        file[name] = value

    return edit


EDITS: tuple[tuple[str, Callable[[Any], None]], ...] = (
    ("a dataset is missing", lambda file: file.__delitem__(_field(file))),
    ("a dataset is missing", lambda file: [file.__delitem__(f"{_field(file)}/{n}") for n in list(file[_field(file)])]),  # type: ignore[arg-type, return-value]
    ("a part is missing", _gone("rows")), ("a part is missing", _gone("skipped")),
    ("a part is missing", _gone("source")), ("a part is missing", _gone("source/name")),
    ("a part is missing", _gone("settings")), ("a part is missing", _gone("version")),
    ("another version", _attribute("version", 1)), ("another version", _attribute("version", 99)),
    ("another version", _attribute("version", "two")), ("another version", _attribute("version", np.zeros(3))),
    ("broken settings", _attribute("settings", "{")), ("broken settings", _attribute("settings", "[]")),
    ("broken settings", _attribute("settings", 3)), ("broken settings", _attribute("settings", '{"mpp": 9}')),
    ("broken rows", _text("rows", "[")), ("broken rows", _text("rows", "{}")), ("broken rows", _text("rows", 3)),
    ("broken rows", _text("rows", b"\xff\xfe")), ("broken rows", _rows(lambda rows: rows[:1])),
    ("broken rows", _rows(lambda rows: rows * 2)), ("broken rows", _rows(lambda rows: [])),
    ("broken rows", _rows(lambda rows: [{**row, "shapes": {}} for row in rows])),
    ("broken rows", _rows(lambda rows: [{**row, "split": "train"} for row in rows])),
    ("broken rows", _rows(lambda rows: [["a", "b"]], "skipped")),
    ("an array of another shape", _replaced(lambda a: a[:8])),
    ("an array of another shape", _replaced(lambda a: a[..., 0])),
    ("an array of another type", _replaced(lambda a: a.astype(np.float64) / 255)),
    ("an array of another type", _replaced(lambda a: "text")),
)  # fmt: skip
