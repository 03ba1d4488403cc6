"""Files that appear complete or not at all, tables, and locks."""

from __future__ import annotations

import csv
import errno
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ihc2he.errors import ConfigError

log = logging.getLogger(__name__)


@contextmanager
def complete(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it is renamed when the block ends without an error.

    Args:
        path: of the file.
        temporary: a path to use always, for large files that only one process writes at a time: what a killed process
            left there is written over. None: one of this process, with the same suffix, for libraries that derive the
            format from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say of which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Delete what processes that were killed have left of files they were writing to a folder.

    Args:
        folder: to which no other process writes now.
    """
    for path in folder.glob(".*.part*"):
        path.unlink(missing_ok=True)


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends without an error, it replaces the folder as a whole.

    A folder whose replacement was interrupted is put back first.
    """
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    restore(folder)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> None:
    """Put back the folder that a killed process was about to replace with `complete_folder`."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file, completely or not at all."""
    with complete(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> None:
    """Write rows with a header.

    Args:
        path: the file.
        rows: mappings from column to value; a missing one stays empty.
        columns: their order; None = order of first appearance.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    with complete(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table that `write_csv` has written; none if the file is missing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@contextmanager
def exclusive(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file, which the system releases when the process that holds it dies.

    On a disk that can only be read nobody writes what the lock is for, so none is held.

    Args:
        path: of the lock file.
        busy: what to tell the user where another process holds it; None: wait for that process.

    Raises:
        ConfigError: with that text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if busy is not None:
            raise ConfigError(busy) from error
        log.info("Waiting for another process, which has locked %s.", path)
        lock.acquire()
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    try:
        yield
    finally:
        lock.release()
