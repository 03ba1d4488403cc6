"""Tables next to images: strict CSV, names matched with files, pixel sizes."""

import csv
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.images.finding import SUFFIXES
from ihc2he.images.pixelsize import stated_mpp
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

OTHER_NAMES = {"um_per_px": ("mpp", "umpx", "pixelsize", "pixelwidth", "umperpixel", "micronsperpixel")}
CLOSE = 0.8  # of difflib: 1 = equal; "spilt" and "split" have 0.8, "class" and "case" 0.67


def by_name(base: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return files by their path below a folder without extension.

    Raises:
        DataError: if two files get the same name.

    >>> list(by_name(Path("a"), [Path("a/b/tile.1.png")]))
    ['b/tile.1']
    """
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(base).with_suffix("").as_posix()
        if name in named:
            msg = (
                f"{file}: {named[name].name} has the same name apart from the extension. Remove or rename one of them."
            )
            raise DataError(msg)
        named[name] = file
    return named


def pixel_size(said: str | None, otherwise: float | None, image: Path, table: Path) -> float:
    """Return um/px of an image: as the table says, else as given, else as its own file states.

    Args:
        said: the entry ``um_per_px`` of the table, or nothing.
        otherwise: the pixel size if the table has none.
        image: the file.
        table: the ``tiles.csv`` that the entry is from.

    Raises:
        ConfigError: if it is not known.
        DataError: if the entry is not a positive number, or if it is the file's turn and its pixels are not square.
    """
    if not said:
        mpp = stated_mpp(image) if otherwise is None else otherwise
        if mpp is None:
            msg = (
                f"data.mpp=null: the pixel size of {image} is not known, and it states none. Pass data.mpp "
                "in um/px: the scanner notes it, QuPath shows it as pixel width; about 0.25 for a 40x scan, 0.5 for "
                f"20x. Or write it, tile by tile, to {table} with the columns name and um_per_px."
            )
            raise ConfigError(msg)
        return mpp
    try:
        mpp = float(said)
    except ValueError:
        mpp = -1.0
    if not is_pixel_size(mpp):
        comma = f" Write {said.replace(',', '.')}, with a point." if said.count(",") == 1 else ""
        msg = f"{table}: um_per_px {said!r} for {image.name}, expected {PIXEL_SIZE}, such as 0.25.{comma}"
        raise DataError(msg)
    return mpp


def read_table(
    path: Path, columns: Sequence[str] = (), names: Collection[str] | None = None
) -> dict[str, dict[str, str]]:
    """Return the rows of a table next to images by the name of the image; empty if there is no such file.

    A row names its image by the path in the folder, with or without extension, with slashes or backslashes.

    Args:
        path: of the table.
        columns: the known ones besides ``name``.
        names: of the images, as `by_name` gives them; None: the rows are not checked.

    Raises:
        DataError: if `read_rows` refuses it, or if a name is empty, repeated, or not that of an image.
    """
    if not path.is_file():
        if path.exists() or path.is_symlink():
            msg = (
                f"{path}: found a folder, or a link to nothing; expected a CSV file. Remove it, or put the file there."
            )
            raise DataError(msg)
        return {}
    table: dict[str, dict[str, str]] = {}
    for line, row in read_rows(path, ["name"], ["name", *columns]):
        where, said = f"{path}, line {line}", row["name"]
        if not said.strip():
            msg = f"{where}: the name is empty. Fill it, or remove the line."
            raise DataError(msg)
        name = _match(said, names)
        if name is None:
            hint = did_you_mean(said, names or ())
            msg = (
                f"{where}: there is no image {said!r} below {path.parent}.{hint} Correct the name, or remove the line."
            )
            raise DataError(msg)
        if name in table:
            msg = f"{path}: {name} comes twice. Leave one row for each tile."
            raise DataError(msg)
        table[name] = row
    return table


def columns_of(path: Path) -> list[str]:
    """Return the columns of a table next to images, without ``name``; empty if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return [column for column in next(csv.reader(stream), []) if column != "name"]


def _match(said: str, names: Collection[str] | None) -> str | None:
    """Return the name of the image that a row means, or None if there is none."""
    plain = said.replace("\\", "/").removeprefix("./")
    candidates = (said, plain, stem(plain))
    return candidates[-1] if names is None else next((name for name in candidates if name in names), None)


def read_rows(path: Path, wanted: Sequence[str], known: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV file whose first line names the columns, each with the number of its last line.

    Other columns are allowed and listed once in the log. A column is refused if it looks like a misspelt known one:
    if both differ only in case, blanks and punctuation, if it is another usual name (`OTHER_NAMES`), or if it is nearly
    equal (`CLOSE`) to one that the file lacks. Blanks around the values of known columns are removed, except in the
    column ``name``.

    Args:
        path: of the file.
        wanted: columns that must be there.
        known: columns that are understood, including these.

    Raises:
        DataError: if it cannot be read as CSV, if a column is missing, repeated or misspelt, or if a line has more or
            fewer fields than the first.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            _check_columns(path, header, wanted, known)
            rows = []
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    found = "more" if len(fields) > len(header) else "fewer"
                    msg = (
                        f"{path}, line {reader.line_num}: {found} fields than the first line names. Check the "
                        "separators, quote texts with commas, and write 5.5, not 5,5."
                    )
                    raise DataError(msg)
                pairs = zip(header, fields, strict=True)
                row = {c: text if c == "name" else text.strip() for c, text in pairs if c in known}
                rows.append((reader.line_num, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path}: not a CSV file in UTF-8 ({error}). Export it again."
        raise DataError(msg) from error


def _check_columns(path: Path, header: Sequence[str], wanted: Sequence[str], known: Sequence[str]) -> None:
    unknown = [column for column in header if column not in known]
    other = next((c for c in ";\t" if len(header) == 1 and c in header[0]), None)
    for column in unknown if other is None else ():
        if meant := _meant(column, header, known):
            msg = (
                f"{path}: the column {column!r} is not known. Did you mean '{meant}'? Rename it, to something else "
                "where it is not to be read."
            )
            raise DataError(msg)
    for column in known:
        n = header.count(column)
        if n > 1 or (n == 0 and column in wanted):
            found = ", ".join(header) or "none"
            hint = "" if other is None else f" Here they are separated by {other!r}."
            msg = (
                f"{path}: found the columns {found}, expected one called {column}. The first line names the columns, "
                f"separated by commas.{hint}"
            )
            raise DataError(msg)
    if unknown:
        _say_unread(path.parent, path.name, tuple(unknown))


def _meant(column: str, header: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the known column that an unknown one looks like."""
    plain = _plain(column)
    for name in known:
        if plain == _plain(name) or (name not in header and plain in OTHER_NAMES.get(name, ())):
            return name
    lacking = {_plain(name): name for name in known if name not in header}
    near = get_close_matches(plain, lacking, n=1, cutoff=CLOSE)
    return lacking[near[0]] if near else None


def _plain(column: str) -> str:
    return re.sub(r"[\W_]+", "", column).casefold()


@cache
def _say_unread(folder: Path, file: str, columns: tuple[str, ...]) -> None:
    """Log the columns of a table that are not read; once for the tables of a folder."""
    log.info("%s: columns that are not read: %s", folder / file, ", ".join(map(repr, columns)))


def stem(name: str) -> str:
    """Return a name without the extension of an image; other dots belong to the name."""
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name
