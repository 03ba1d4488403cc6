"""The tile store: a raw dataset, converted once to an HDF5 file from which crops are read quickly.

In the file: one dataset ``<field>/<number>`` per array (``ihc/000012``); a JSON table of ``rows`` about the
records; the ``source`` files with size, modification time and hash; the ``settings`` it was built with.

Why chunks of about 128 px and no compression: measured on 1024-px H&E tiles, reading a 256-px crop takes 0.4 ms
(decoding the whole PNG 45 ms); lzf with shuffle takes 1.0 ms and saves 4 % of the space, gzip 2.8 ms and 13 %.

Damage is noticed: chunks have Fletcher-32 checksums (0.08 ms per crop), the structure those of HDF5 1.10, and the
table of rows a digest.
"""

import errno
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b, file_digest
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.files import complete, write_text

log = logging.getLogger(__name__)

VERSION = 2
CHUNK = 128
LOOKED_AT = 8  # records from which the size of the store is estimated
STRUCTURE = 2**20  # bytes; more than HDF5 needs for a record besides its arrays
WHOLE = (slice(None), slice(None))
_TABLES = ("rows", "skipped")
REMEDY = "Pass data.rebuild=true, or delete the store, to build it again."

Job = TypeVar("Job")
Result = TypeVar("Result")


class Record(NamedTuple):
    """One tile in a store: its arrays by field, and a row of values for JSON."""

    arrays: dict[str, NDArray]
    row: dict[str, Any]


class Skipped(NamedTuple):
    """A tile that was left out, and why."""

    name: str
    reason: str


class TileStore:
    """Read access to a finished store; opens the file lazily in each process, so it can be forked and pickled.

    Attributes:
        rows: per record the values given when it was built, and under ``shapes`` the array shape of each field.
        skipped: tiles left out when it was built.
        origin: digest of the source files and settings it was built from.

    Raises:
        DataError: for a file that is missing, unreadable, incomplete, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._pid = 0
        with _open_finished(path) as file:
            texts = [file[table][()] for table in _TABLES]
            if _digest(texts) != file.attrs["tables"]:
                msg = f"{path}: the tables of records are not those that were written. {REMEDY}"
                raise DataError(msg)
            self.origin = _digest([*file["source/hash"][()], file.attrs["settings"].encode()])
            self.rows: list[dict[str, Any]] = json.loads(texts[0])
            self.skipped = [Skipped(*entry) for entry in json.loads(texts[1])]

    def read(self, number: int, field: str, window: tuple[slice, slice] = WHOLE) -> NDArray:
        """Return an array of a record, or a window of it (rows, columns); only the chunks it touches are read.

        Raises:
            DataError: if it is damaged.
        """
        try:
            if self._file is None or self._pid != os.getpid():  # a handle must not be shared with a forked process
                self._file, self._pid = h5py.File(self.path, "r", locking=False), os.getpid()
            array = self._file[_key(field, number)]
            if list(array.shape) == self.rows[number]["shapes"][field] and array.dtype.kind in "iu":
                return array[window]
            cause: object = f"{array.dtype} of shape {array.shape}"
        except (OSError, KeyError, RuntimeError, ValueError, AttributeError) as error:
            cause = error
        msg = f"{self.path}: {field} of {self.rows[number]['name']} is damaged ({cause}). {REMEDY}"
        raise DataError(msg)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


def write_store(
    path: Path,
    jobs: Sequence[Job],
    load: Callable[[Job], Record | Skipped],
    sources: Mapping[str, Path],
    settings: Mapping[str, Any],
) -> None:
    """Build a store under a temporary name and rename it when complete.

    Args:
        path: of the store; its folder is created.
        jobs: one per tile, in the order of the records.
        load: turns a job into a record; it runs in threads.
        sources: every raw file the store depends on, under a name that stays valid when the dataset is moved.
        settings: plain values that change the content; `check_store` compares them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with complete(path, temporary=path.with_name(path.name + ".part")) as part:
            with h5py.File(part, "w", locking=False, libver="v110") as file, _Room(part, file) as room:
                _write_manifest(file, sources, room)
                _write_records(file, jobs, load, room)
                file.attrs["settings"] = json.dumps(dict(settings))
                file.attrs["version"] = VERSION
            os.truncate(part, room.used)
        _times_file(path).unlink(missing_ok=True)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free / 1e9
        limit = " Files may not grow so large here: look at ulimit -f." if error.errno == errno.EFBIG else ""
        msg = (
            f"{path}: the store could not be written ({error.strerror or error}); {free:.1f} GB are free.{limit} "
            "Name another data.store."
        )
        raise DataError(msg) from error


class _Room:
    """Disk space for a file of HDF5, reserved before writing.

    HDF5 cannot close a file if the disk is full, and crashes the process. With space reserved before, a full disk, a
    quota or a limit on the size of files gives an OSError here, while everything can still be undone.

    Args:
        path: of the file.
        file: the same file, open for writing.

    Attributes:
        used: bytes of the finished file, after the block.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        self._file = file
        self._reserved = 0
        self.used = 0

    def __enter__(self) -> "_Room":
        self._descriptor = os.open(self._path, os.O_RDWR)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.close(self._descriptor)
        if kind is None:
            self._file.flush()
            self.used = self._file.id.get_filesize()

    def reserve(self, size: int) -> None:
        """Reserve space.

        Args:
            size: bytes that will be written; some more is reserved for the structure of the file.

        Raises:
            OSError: if there is none.
        """
        end = self._file.id.get_filesize() + size + size // 4 + STRUCTURE
        if end <= self._reserved or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._descriptor, self._reserved, end - self._reserved)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # file systems without it
                raise
        self._reserved = end


def _times_file(path: Path) -> Path:
    return path.with_name(path.name + ".times.json")


def _noted_times(path: Path) -> dict[str, int]:
    """Return the new times of sources whose content has not changed since the store was built."""
    try:
        noted = json.loads(_times_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or a damaged one: the content is compared again
        return {}
    return noted if isinstance(noted, dict) else {}


def check_store(path: Path, sources: Mapping[str, Path] | None, settings: Mapping[str, Any]) -> None:
    """Refuse a store that was built from other files or with other settings.

    A file with the same size and modification time counts as unchanged. If only the time differs, the content is
    compared, and the new time is written next to the store, if possible, so that the next start does not read the file
    again. The store itself is only read.

    Args:
        path: of the store.
        sources: the present raw files, named as for `write_store`; None if they are gone.
        settings: as for `write_store`.

    Raises:
        DataError: with what differs, and what to do.
    """
    with _open_finished(path) as file:
        built_with = dict(json.loads(file.attrs["settings"]))
        if "target_mpp" in settings and "target_mpp" not in built_with:  # of version 0.1, with the names it had
            former = {"mpp": "target_mpp", "mpp_files": "mpp"}
            built_with = {former.get(key, key): value for key, value in built_with.items()}
        names = [name.decode() for name in file["source/name"][()]]
        sizes, times, hashes = (file[f"source/{column}"][()] for column in ("size", "mtime_ns", "hash"))
    different = [
        f"{key}: built with {built_with.get(key)!r}, now {settings.get(key)!r}"
        for key in sorted({*built_with, *settings})
        if built_with.get(key) != settings.get(key)
    ]
    if different:
        msg = f"{path} was built with other settings: {'; '.join(different)}. {REMEDY} Or name another store."
        raise DataError(msg)
    if sources is None:
        log.info("%s: its source is not there any more; the store is used unchanged.", path)
        return

    changed, noted = [], _noted_times(path)
    touched: dict[str, int] = {}
    for i, name in enumerate(names):
        if name not in sources:
            continue
        stat = sources[name].stat()
        if stat.st_size != sizes[i]:
            changed.append(name)
        elif stat.st_mtime_ns not in (times[i], noted.get(name)):
            if hash_file(sources[name]) == hashes[i].decode():
                touched[name] = stat.st_mtime_ns
            else:
                changed.append(name)
    kinds = {
        "added": sorted(set(sources) - set(names)),
        "removed": sorted(set(names) - set(sources)),
        "changed": changed,
    }
    if any(kinds.values()):
        found = "; ".join(f"{len(files)} {kind} ({_first(files)})" for kind, files in kinds.items() if files)
        msg = f"{path} does not match its source any more: {found}. {REMEDY}"
        raise DataError(msg)
    if touched:
        try:
            write_text(_times_file(path), json.dumps(noted | touched))
        except OSError as error:
            log.info(
                "%s: the new times of %d source files could not be saved next to it (%s).", path, len(touched), error
            )


def hash_file(path: Path) -> str:
    """Return the BLAKE2b hash of a file's content, 32 hexadecimal digits."""
    with path.open("rb") as stream:
        return file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()


@contextmanager
def _open_finished(path: Path) -> Iterator[h5py.File]:
    """Yield a complete store; errors of reading it in the block become errors with its name."""
    if not path.is_file():
        msg = f"{path}: there is no tile store yet. DataModule.prepare_data() builds it; the Trainer calls that."
        raise DataError(msg)
    try:
        with h5py.File(path, "r", locking=False) as file:
            version = file.attrs.get("version")
            if version != VERSION:
                found = "no version, so it was never completed" if version is None else f"version {version}"
                msg = f"{path}: found {found}; expected a tile store of version {VERSION}. {REMEDY}"
                raise DataError(msg)
            yield file
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        msg = f"{path}: not a readable tile store ({error}). {REMEDY}"
        raise DataError(msg) from error


def _write_records(file: h5py.File, jobs: Sequence[Job], load: Callable[[Job], Record | Skipped], room: _Room) -> None:
    from rich.progress import track

    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    size = 0
    for done, result in enumerate(track(map_in_threads(load, jobs), "Building the tile store", total=len(jobs))):
        if done == LOOKED_AT:
            _require_space(file, size * (len(jobs) - done) / done)
        if isinstance(result, Skipped):
            skipped.append(result)
            continue
        of_record = sum(array.nbytes for array in result.arrays.values())
        size += of_record
        room.reserve(of_record)
        for field, array in result.arrays.items():
            chunks = tuple(_chunk(side) for side in array.shape[:2]) + array.shape[2:]
            file.create_dataset(_key(field, len(rows)), data=array, chunks=chunks, fletcher32=True)
        rows.append(result.row | {"shapes": {field: array.shape for field, array in result.arrays.items()}})
    texts = [json.dumps(rows), json.dumps(skipped)]
    room.reserve(sum(len(text.encode()) for text in texts))
    for table, text in zip(_TABLES, texts, strict=True):
        file[table] = text
    file.attrs["tables"] = _digest([text.encode() for text in texts])


def _require_space(file: h5py.File, needed: float) -> None:
    """Raise an OSError if the remaining records need more space than is free, estimated from those before."""
    free = shutil.disk_usage(Path(file.filename).parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"it needs some {needed / 1e9:.1f} GB more")


def _write_manifest(file: h5py.File, sources: Mapping[str, Path], room: _Room) -> None:
    from rich.progress import track

    stats = [path.stat() for path in sources.values()]
    hashes = map_in_threads(hash_file, list(sources.values()))
    room.reserve(sum(100 + len(name.encode()) for name in sources))  # names, hashes and numbers
    group = file.create_group("source")
    group["name"] = list(sources)
    group["size"] = np.array([stat.st_size for stat in stats], np.int64)
    group["mtime_ns"] = np.array([stat.st_mtime_ns for stat in stats], np.int64)
    group["hash"] = list(track(hashes, "Hashing the source", total=len(sources)))


def map_in_threads(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """Yield the result of each job in order, using all cores and with few results in memory."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        pending = deque(pool.submit(work, job) for job in jobs[: 2 * workers])
        for job in jobs[2 * workers :]:
            yield pending.popleft().result()
            pending.append(pool.submit(work, job))
        while pending:
            yield pending.popleft().result()


def _chunk(side: int) -> int:
    """Return a chunk's side that divides a tile's side into equal parts of at most 128, so that little is padded.

    >>> _chunk(1024), _chunk(200), _chunk(50)
    (128, 100, 50)
    """
    return ceil(side / ceil(side / CHUNK))


def _digest(texts: Sequence[bytes]) -> str:
    return blake2b(b"\0".join(texts), digest_size=16).hexdigest()


def _key(field: str, number: int) -> str:
    return f"{field}/{number:06d}"


def _first(names: Sequence[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")
