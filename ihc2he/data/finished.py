"""Images that earlier runs have finished, from the records in the folder of their results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ihc2he.errors import ConfigError

log = logging.getLogger(__name__)

Notes = Mapping[str, Mapping[str, Any]]


def read_notes(done: Path) -> Notes:
    """Return the records of finished images by name; a damaged one is left out, so its image is done again.

    Args:
        done: their folder, which may be missing.
    """
    notes = {}
    for path in sorted(done.glob("**/*.json")):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(note, dict):
            notes[path.relative_to(done).as_posix().removesuffix(".json")] = note
    return notes


def each_once(named: Mapping[str, Path]) -> dict[str, Path]:
    """Return images without those that are links to others, after a warning that counts them."""
    first: dict[Path, str] = {}
    for name, file in named.items():
        first.setdefault(file.resolve(), name)
    again = [name for name, file in named.items() if first[file.resolve()] != name]
    if again:
        other = first[named[again[0]].resolve()]
        log.warning("left out %d images that are links to others, such as %s, which is %s", len(again), again[0], other)
    return {name: file for name, file in named.items() if name not in again}


def check_sources(done: Path, notes: Notes, named: Mapping[str, Path]) -> None:
    """Refuse images whose results would replace those of another image, or that would be counted twice.

    Args:
        done: the folder of the records, for the message.
        notes: records of the finished images.
        named: the images to do, by name.

    Raises:
        ConfigError: with both files, or both names.
    """
    names = {Path(note["source"]).resolve(): name for name, note in notes.items() if note.get("source")}
    for name, file in named.items():
        source = notes.get(name, {}).get("source")
        if source and Path(source).resolve() != file.resolve() and Path(source).exists():
            msg = (
                f"out={done.parent} has the results of another image called {name}: {source}. Those of {file} would "
                "take their place. Choose another out=, one for each folder of images."
            )
            raise ConfigError(msg)
        known = names.get(file.resolve(), name)
        if known != name:
            msg = (
                f"out={done.parent} has the results of {file} under the name {known}; as {name} it would be counted "
                "twice. Pass the same data.path as before, or choose another out=."
            )
            raise ConfigError(msg)


def is_done(note: Mapping[str, Any] | None, file: Path, mpp: float) -> bool:
    """Return whether a record is of the present version of an image, with the same pixel size.

    Args:
        note: record of an image with this name; None: there is none.
        file: the image.
        mpp: um/px.
    """
    if note is None:
        return False
    now = file.stat()
    same = (note.get("size"), note.get("mtime_ns")) == (now.st_size, now.st_mtime_ns)
    return same and note.get("mpp", mpp) == mpp
