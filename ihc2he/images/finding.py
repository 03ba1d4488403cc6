"""Finding image files in folders."""

import logging
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def find_images(folder: Path) -> list[str]:
    """Return the image files below a folder, as sorted POSIX paths relative to it.

    Looks into sub-folders, knows PNG, JPEG and TIFF by their extension in any case, and passes over hidden
    files, such as the ``._*`` companions that macOS leaves in archives. Folders, dangling links and the like that bear
    such a name are left out, with one warning.
    """
    named = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    return [path.relative_to(folder).as_posix() for path in regular_files(named)]


def regular_files(paths: Iterable[Path]) -> list[Path]:
    """Return those of some paths that are files, after a warning that counts the others."""
    paths = list(paths)
    files = [path for path in paths if path.is_file()]
    if len(files) < len(paths):
        other = next(path for path in paths if not path.is_file())
        kind = "a link to nothing" if other.is_symlink() else "a folder" if other.is_dir() else "no regular file"
        log.warning(
            "left out %d entries named like images, such as %s, which is %s", len(paths) - len(files), other, kind
        )
    return files
