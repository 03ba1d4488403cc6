"""Tables beside images: strict CSV, names matched with files, pixel sizes."""

import csv
from collections.abc import Iterable
from pathlib import Path

from ihc2he.errors import ConfigError, DataError
from ihc2he.images.finding import SUFFIXES
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size


def by_name(base: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return files by their path below a folder without extension.

    Raises:
        DataError: where two files get one name.

    >>> list(by_name(Path("a"), [Path("a/b/tile.1.png")]))
    ['b/tile.1']
    """
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(base).with_suffix("").as_posix()
        if name in named:
            msg = f"{file}: {named[name].name} beside it has the same name but for the extension. Leave or rename one."
            raise DataError(msg)
        named[name] = file
    return named


def pixel_size(said: str | None, otherwise: float | None, image: Path, table: Path) -> float:
    """Return um/px of an image.

    Args:
        said: the entry ``um_per_px`` of the table, or nothing.
        otherwise: the pixel size where the table says nothing.
        image: whose pixel size it is.
        table: the ``tiles.csv`` that the entry is from.

    Raises:
        ConfigError: where nothing tells it.
        DataError: where the entry is not a positive number.
    """
    if not said:
        if otherwise is None:
            msg = (
                f"data.mpp=null: the pixel size of {image} is not known. Pass data.mpp in um/px: the scanner notes it, "
                "QuPath shows it as pixel width; about 0.25 for a 40x scan, 0.5 for 20x. Or write it, tile by tile, "
                f"to {table} with the columns name and um_per_px."
            )
            raise ConfigError(msg)
        return otherwise
    try:
        mpp = float(said)
    except ValueError:
        mpp = -1.0
    if not is_pixel_size(mpp):
        msg = f"{table}: um_per_px {said!r} for {image.name}, expected {PIXEL_SIZE}, such as 0.25."
        raise DataError(msg)
    return mpp


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a tiles.csv by the tile's name without extension; empty where there is no such file.

    Raises:
        DataError: where it cannot be read, the column ``name`` is missing, a line has more fields than the first, or a
            name is empty or comes twice.
    """
    if not path.is_file():
        if path.exists() or path.is_symlink():
            msg = (
                f"{path}: found a folder, or a link to nothing; expected a CSV file. Remove it, or put the file there."
            )
            raise DataError(msg)
        return {}
    table: dict[str, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if "name" not in (reader.fieldnames or ()):
                msg = f"{path}: found the columns {reader.fieldnames}, expected one called name."
                raise DataError(msg)
            for row in reader:
                where, name = f"{path}, line {reader.line_num}", stem(row["name"] or "")
                if None in row:
                    msg = f"{where}: more fields than the first line names. Remove them, or quote texts with commas."
                    raise DataError(msg)
                if not name:
                    msg = f"{where}: the name is empty. Fill it, or remove the line."
                    raise DataError(msg)
                if name in table:
                    msg = f"{path}: {name} comes twice. Leave one row for each tile."
                    raise DataError(msg)
                table[name] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path}: not a CSV file in UTF-8 ({error}). Export it again."
        raise DataError(msg) from error
    return table


def stem(name: str) -> str:
    """Return a name without the extension of an image; other dots belong to the name."""
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name
