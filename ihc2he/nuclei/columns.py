"""The nuclei of a slide as columns, and the tables that they are written to.

Shape suffix: n = nuclei.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError
from ihc2he.files import complete

_ROWS = 1 << 16  # that are text at once
_ROUND = 4  # digits behind the point in a CSV


def narrow(columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return columns in half the space: numbers of 32 bits.

    >>> {name: values.dtype.name for name, values in narrow({"a": np.zeros(1), "b": np.zeros(1, int)}).items()}
    {'a': 'float32', 'b': 'int32'}
    """
    return {
        name: values_n.astype(np.float32 if np.issubdtype(values_n.dtype, np.floating) else np.int32)
        for name, values_n in columns.items()
    }


def check_table(kind: str, key: str) -> None:
    """Refuse a kind of table that cannot be written here.

    Args:
        kind: `parquet` or `csv`.
        key: of the setting, for the message.

    Raises:
        ConfigError: for another kind, or if the package for Parquet is missing.
    """
    if kind not in ("parquet", "csv"):
        msg = f"{key}={kind}: expected parquet or csv."
        raise ConfigError(msg)
    if kind == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            msg = f'{key}=parquet needs pyarrow: pip install "ihc2he[slides]", or pass {key}=csv.'
            raise ConfigError(msg) from error


def write_parquet(path: Path, columns: Mapping[str, NDArray], types: Sequence[str]) -> None:
    """Write a row per nucleus.

    Args:
        path: the file.
        columns: of equal length; `type` has numbers of types.
        types: their names from 0.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values_n) for name, values_n in columns.items()}
    arrays["type"] = pa.DictionaryArray.from_arrays(pa.array(columns["type"].astype(np.int32)), pa.array(types))
    with complete(path) as temporary:
        pq.write_table(pa.table(arrays), temporary, compression="zstd")


def write_rows(path: Path, columns: Mapping[str, NDArray], types: Sequence[str]) -> None:
    """Write the same as a CSV file, with four digits behind the point; a number that is not known stays empty."""
    n = len(columns["type"])
    with complete(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for start in range(0, n, _ROWS):
            part = {name: values_n[start : start + _ROWS] for name, values_n in columns.items()}
            texts = [
                [types[kind] for kind in values_n.tolist()] if name == "type" else _texts(values_n)
                for name, values_n in part.items()
            ]
            writer.writerows(zip(*texts, strict=True))


def _texts(values_n: NDArray) -> list[str]:
    if not np.issubdtype(values_n.dtype, np.floating):
        return [str(value) for value in values_n.tolist()]
    return ["" if value != value else f"{round(value, _ROUND)}" for value in values_n.tolist()]  # noqa: PLR0124
