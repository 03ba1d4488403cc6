"""Downloads that continue where they stopped, and unpacking without incomplete files."""

import logging
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ihc2he.errors import DataError
from ihc2he.files import complete, write_text

log = logging.getLogger(__name__)

ATTEMPTS = 5
WAIT = 2.0  # s before the second attempt; doubles each time
TIMEOUT = 60.0  # s without a byte
BLOCK = 1 << 20  # bytes


def download(url: str, path: Path) -> str:
    """Download a file, unless it is already there, and return its SHA-256.

    Incomplete downloads are kept in ``<path>.part``, and the next call asks the server for the rest. The server sends
    it only if its file is still the same (``If-Range``). The checksum is written to ``<path>.sha256`` in the format of
    ``sha256sum -c``. A later download with other content is refused.

    Args:
        url: http or https.
        path: of the file; its folder is created.

    Raises:
        DataError: if the server refuses, the connection keeps breaking, the disk is too small, or the content differs
            from an earlier download.
    """
    record = _beside(path, ".sha256")
    if path.is_file() and record.is_file():
        return record.read_text(encoding="utf-8").split()[0]
    part = _beside(path, ".part")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch_persistently(url, part)
    file = path if path.is_file() else part
    with file.open("rb") as stream:
        checksum = file_digest(stream, "sha256").hexdigest()
    _check_record(url, record, checksum)
    file.replace(path)
    write_text(record, f"{checksum}  {path.name}\n")
    _beside(part, ".version").unlink(missing_ok=True)
    log.info("%s: sha256 %s, from %s", path, checksum, url)
    return checksum


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file; files that are already there with their full size are skipped.

    Args:
        archive: the zip file.
        folder: destination.

    Raises:
        DataError: for a damaged archive, an entry outside the folder, or a disk that is too small.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [info for info in content.infolist() if not info.is_dir()]
            targets = [folder / info.filename for info in members]
            for target in targets:
                if not target.resolve().is_relative_to(folder.resolve()):
                    msg = f"{archive}: its entry {target} lies outside {folder}. Do not trust this archive."
                    raise DataError(msg)
            missing = [
                (info, target)
                for info, target in zip(members, targets, strict=True)
                if not target.is_file() or target.stat().st_size != info.file_size
            ]
            size = sum(info.file_size for info, _ in missing)
            folder.mkdir(parents=True, exist_ok=True)
            _require_space(folder, size)
            with _progress(f"Unpacking {archive.name}", 0, size) as advance:
                for info, target in missing:
                    with content.open(info) as source, complete(target) as temporary, temporary.open("wb") as sink:
                        while block := source.read(BLOCK):
                            sink.write(block)
                            advance(len(block))
    except (zipfile.BadZipFile, EOFError) as error:
        msg = f"{archive}: damaged ({error}). Delete it together with {archive.name}.sha256 and download it again."
        raise DataError(msg) from error


def _fetch_persistently(url: str, part: Path) -> None:
    for attempt in range(ATTEMPTS):
        try:
            _fetch(url, part)
        except HTTPError as error:
            if error.code < 500:
                msg = f"{url}: the server answered {error.code} {error.reason}. Check the address in a browser."
                raise DataError(msg) from error
            problem: Exception = error
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            problem = error
        else:
            return
        if attempt + 1 < ATTEMPTS:
            log.warning("%s: %s; trying again.", url, problem)
            time.sleep(WAIT * 2**attempt)
    have = part.stat().st_size if part.is_file() else 0
    msg = (
        f"{url}: the download failed {ATTEMPTS} times, the last time with: {problem}. "
        f"{have / 1e6:.1f} MB are kept in {part}; run again to continue."
    )
    raise DataError(msg) from problem


def _fetch(url: str, part: Path) -> None:
    """Download the missing part of a file, or all of it if the server now has another version."""
    note = _beside(part, ".version")
    start = part.stat().st_size if part.is_file() and note.is_file() else 0
    headers = {"User-Agent": "ihc2he"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": note.read_text(encoding="utf-8")}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
            return  # complete, but killed before it was renamed
        if error.code == 416:
            note.unlink()
            msg = f"{part} is longer than the file of the server"
            raise ConnectionError(msg) from error
        raise
    with response:
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _require_space(part.parent, 0 if length is None else int(length))
        with part.open("ab" if start else "wb") as sink:
            _note_version(response.headers.get("ETag"), response.headers.get("Last-Modified"), note)
            _copy(response, sink, start, total, part.stem)
    if total is not None and part.stat().st_size != total:
        msg = f"the connection ended after {part.stat().st_size} of {total} bytes"
        raise ConnectionError(msg)


def _copy(source: BinaryIO, sink: BinaryIO, start: int, total: int | None, name: str) -> None:
    with _progress(f"Downloading {name}", start, total) as advance:
        while block := source.read(BLOCK):
            sink.write(block)
            advance(len(block))


def _note_version(etag: str | None, last_modified: str | None, note: Path) -> None:
    """Save the server's tag for this version of the file; without a tag a broken download starts again."""
    version = last_modified if etag is None or etag.startswith("W/") else etag  # weak tags do not guarantee equal bytes
    if version is None:
        note.unlink(missing_ok=True)
    else:
        note.write_text(version, encoding="utf-8")


def _check_record(url: str, record: Path, checksum: str) -> None:
    if record.is_file() and (before := record.read_text(encoding="utf-8").split()[0]) != checksum:
        msg = (
            f"{url}: sha256 {checksum}, but an earlier download had {before} ({record}). The file was changed at its "
            f"source or on the way. Delete {record.name} to accept the new one."
        )
        raise DataError(msg)


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        msg = f"{folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. Choose another folder."
        raise DataError(msg)


@contextmanager
def _progress(title: str, start: int, total: int | None) -> Iterator:
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, completed=start, total=total)
        yield lambda n: progress.update(task, advance=n)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
