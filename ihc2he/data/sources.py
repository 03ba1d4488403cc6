"""Folders of annotated tiles that train together: where each is, its pixel size, its types, and which tiles to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ihc2he.data.tables import columns_of, read_table
from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

KEYS = ("root", "mpp", "classes", "where")


@dataclass(frozen=True)
class Source:
    """A folder of annotated tiles.

    Attributes:
        name: among several folders; "": it is the only one.
        folder: with ``images`` and the others.
        mpp: um/px of the files that are not in ``tiles.csv``; None: not said.
        classes: for each value of its ``types``, from 1, the name of a class of the data, or None: no type; None: it
            has no types.
        where: for columns of ``tiles.csv``, the values of the tiles to take; empty: all tiles.
    """

    name: str
    folder: Path
    mpp: float | None
    classes: tuple[str | None, ...] | None
    where: Mapping[str, Sequence[str]]

    @property
    def table(self) -> Path:
        """The table of its tiles, which may be missing."""
        return self.folder / "tiles.csv"

    def named(self, tile: str) -> str:
        """Return the name of a tile, or of a file in this folder, among all sources."""
        return f"{self.name}/{tile}" if self.name else tile

    def chosen(self, images: Mapping[str, Path]) -> list[str]:
        """Return the names of the images that `where` selects.

        Args:
            images: all of the folder by name.

        Raises:
            ConfigError: for a column that the table lacks, or a value that no tile has.
        """
        if not self.where:
            return list(images)
        columns = columns_of(self.table)
        table = read_table(self.table, columns, images)
        kept = list(images)
        for column, wanted in self.where.items():
            if column not in columns:
                msg = (
                    f"data.where: {self.table} has no column '{column}'.{did_you_mean(column, columns)} Mend it, or "
                    "give each root its own where."
                )
                raise ConfigError(msg)
            found = {name: row[column] for name, row in table.items()}
            known = sorted(set(found.values()))
            if unknown := [value for value in wanted if value not in known]:
                msg = (
                    f"data.where: no tile of {self.table} has the {column} '{unknown[0]}'. Found: {', '.join(known)}."
                    f"{did_you_mean(unknown[0], known)}"
                )
                raise ConfigError(msg)
            kept = [name for name in kept if found.get(name) in wanted]
        if not kept:
            msg = f"data.where={dict(self.where)}: no tile of {self.table} fits all of it."
            raise ConfigError(msg)
        return kept

    def numbers(self, classes: Sequence[str]) -> list[int]:
        """Return for each value of its types, from 0, the number among the classes of the data; 0: no type.

        >>> Source("b", Path("b"), None, ("round", None, "square"), {}).numbers(["square", "round"])
        [0, 2, 0, 1]
        """
        return [0] + [0 if name is None else list(classes).index(name) + 1 for name in self.classes or ()]

    def settings(self) -> dict[str, Any]:
        """Return what changes the content of a store, as plain values."""
        where = {column: list(values) for column, values in self.where.items()}
        return {"mpp": self.mpp, "classes": self.classes and list(self.classes), "where": where}


def sources_of(
    root: str | Sequence[str] | Mapping[str, Any],
    classes: Sequence[str],
    mpp: float | None,
    where: Mapping[str, Any] | None,
) -> list[Source]:
    """Return the folders that a DataModule reads.

    Args:
        root: a folder; several, which are named as they are; or by name a folder, or a mapping of `KEYS`.
        classes: names of the types of the data, also those of each folder that names no own.
        mpp: of each folder that has no own.
        where: of each folder that has no own.

    Raises:
        ConfigError: for two folders of one name, an unknown key, class or pixel size.

    >>> [(s.name, s.mpp) for s in sources_of({"a": "x", "b": {"root": "y", "mpp": 0.5}}, [], 0.25, None)]
    [('a', 0.25), ('b', 0.5)]
    """
    if isinstance(root, str):
        return [_source("", {"root": root}, classes, mpp, where)]
    if not root:
        msg = "data.root=[]: expected a folder, or several."
        raise ConfigError(msg)
    if isinstance(root, Mapping):
        return [_source(name, node, classes, mpp, where) for name, node in root.items()]
    named = {Path(path).name: path for path in root}
    if len(named) < len(root):
        msg = f"data.root={list(root)}: two folders have the same name. Name them: data.root={{NAME: FOLDER, ...}}."
        raise ConfigError(msg)
    return [_source(name, path, classes, mpp, where) for name, path in named.items()]


def _source(name: str, node: Any, classes: Sequence[str], mpp: float | None, where: Mapping[str, Any] | None) -> Source:
    key = f"data.root.{name}" if name else "data.root"
    given: Any = {"root": node} if isinstance(node, str) else node
    if not isinstance(given, Mapping) or not isinstance(given.get("root"), str):
        msg = f"{key}={node}: expected a folder, or a mapping with root, its folder."
        raise ConfigError(msg)
    if unknown := [entry for entry in given if entry not in KEYS]:
        msg = f"{key}: there is no key '{unknown[0]}'; expected {', '.join(KEYS)}.{did_you_mean(unknown[0], KEYS)}"
        raise ConfigError(msg)
    own_mpp = given.get("mpp", mpp)
    if own_mpp is not None and not is_pixel_size(own_mpp):
        msg = f"{key}.mpp={own_mpp}: expected {PIXEL_SIZE}."
        raise ConfigError(msg)
    own_where = given.get("where", where) or {}
    selected = {
        column: [str(v)] if isinstance(v, str | int | float) else [str(x) for x in v] for column, v in own_where.items()
    }
    folder = Path(given["root"]).expanduser()
    return Source(name, folder, own_mpp, _types(key, given, folder, classes, bool(name)), selected)


def _types(
    key: str, given: Mapping[str, Any], folder: Path, classes: Sequence[str], several: bool
) -> tuple[str | None, ...] | None:
    """Return the classes of a folder; of several folders, one without types/ has none."""
    if not classes or ("classes" in given and given["classes"] is None):
        return None
    if "classes" not in given:
        return tuple(classes) if not several or (folder / "types").is_dir() else None
    own = tuple(given["classes"])
    if unknown := [name for name in own if name is not None and name not in classes]:
        msg = (
            f"{key}.classes: there is no '{unknown[0]}' in data.classes={list(classes)}; expected for each value of "
            f"types/ one of them, or null.{did_you_mean(str(unknown[0]), classes)}"
        )
        raise ConfigError(msg)
    return own
