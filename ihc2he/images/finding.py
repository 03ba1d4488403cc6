"""Finding image files in folders."""

import logging
from collections import Counter, deque
from collections.abc import Iterable
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Files that may be next to images without a message.
BESIDE = (
    ".csv", ".tsv", ".txt", ".md", ".json", ".geojson", ".xml", ".yaml", ".yml", ".html", ".pdf", ".xlsx", ".ini",
    ".db", ".log", ".zip", ".md5", ".sha256",
)  # fmt: skip


def find_images(folder: Path) -> list[str]:
    """Return the image files in a folder and its sub-folders, as sorted POSIX paths relative to it.

    Looks into sub-folders, those that links lead to among them (`walk`), knows PNG, JPEG and TIFF by their extension
    in any case, and passes over hidden files, such as the ``._*`` companions that macOS leaves in archives. Folders,
    dangling links and the like that bear such a name are left out, with one warning; files of other kinds are counted
    by their ending in one line of the log, unless they are such as may lie beside images (`BESIDE`).
    """
    found = walk(folder)
    others = endings(found)
    if any(ending not in BESIDE for ending in others):
        _say_others(folder, tuple(others.items()))
    named = [path for path in found if path.suffix.lower() in SUFFIXES]
    return [path.relative_to(folder).as_posix() for path in regular_files(named)]


def walk(folder: Path) -> list[Path]:
    """Return all files and entries in a folder that are not hidden, sorted; empty if there is no such folder.

    Links to folders are followed, each once and after real folders. A folder that contains the link to it, or that was
    reached by another path, is left out, with one warning.
    """
    found: list[Path] = []
    entered: set[Path] = set()
    again: list[Path] = []
    folders: deque[tuple[Path, tuple[Path, ...]]] = deque()  # with the real paths of them and of those above
    links: deque[tuple[Path, tuple[Path, ...]]] = deque()
    if folder.is_dir():
        folders.append((folder, (folder.resolve(),)))
    while folders or links:
        here, chain = (folders or links).popleft()
        if chain[-1] in entered or any(above.is_relative_to(chain[-1]) for above in chain[:-1]):
            again.append(here)
            continue
        entered.add(chain[-1])
        for path in here.iterdir():
            if path.is_dir():
                (links if path.is_symlink() else folders).append((path, (*chain, path.resolve())))
            if not path.name.startswith("."):
                found.append(path)
    if again:
        log.warning("left out %d links to folders that are read already, such as %s", len(again), min(again))
    return sorted(found)


def endings(paths: Iterable[Path]) -> dict[str, int]:
    """Return the number of files with each ending that is not of an image, the most frequent first."""
    others = (path for path in paths if path.suffix.lower() not in SUFFIXES and path.is_file())
    return dict(Counter(path.suffix.lower() or path.name for path in others).most_common())


@cache
def _say_others(folder: Path, counts: tuple[tuple[str, int], ...]) -> None:
    """Log the files that are not read, once unless they change."""
    log.warning(
        "%s: files that are not read: %s. Images are PNG, JPEG and TIFF; export others as one of these.",
        folder,
        dict(counts),
    )


def regular_files(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that are files, after a warning that counts the others."""
    paths = list(paths)
    files = [path for path in paths if path.is_file()]
    if len(files) < len(paths):
        other = next(path for path in paths if not path.is_file())
        kind = "a link to nothing" if other.is_symlink() else "a folder" if other.is_dir() else "no regular file"
        log.warning(
            "left out %d entries named like images, such as %s, which is %s", len(paths) - len(files), other, kind
        )
    return files
