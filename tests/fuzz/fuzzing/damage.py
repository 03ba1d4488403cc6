"""Damage to files of any format."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .harness import MARKER, Case, Change

Damage = Callable[[Path, np.random.Generator], None]


class Hostile:
    """An object whose unpickling writes the marker file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


def empty(path: Path, rng: np.random.Generator) -> None:
    """Leave zero bytes."""
    path.write_bytes(b"")


def cut(path: Path, rng: np.random.Generator) -> None:
    """Keep a random share of the bytes from the start."""
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(1, max(2, len(data) - 1)))])


def cut_end(path: Path, rng: np.random.Generator) -> None:
    """Take away some last bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: -int(rng.integers(1, 16))])


def flip(low: float = 0.0, high: float = 1.0) -> Damage:
    """Return a damage that flips a bit in a random byte between two shares of the file's length."""

    def damage(path: Path, rng: np.random.Generator) -> None:
        data = bytearray(path.read_bytes())
        start, end = int(low * len(data)), max(int(high * len(data)), int(low * len(data)) + 1)
        data[int(rng.integers(start, end))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))

    damage.__name__ = f"flip {low:g}-{high:g}"
    return damage


def zeros(path: Path, rng: np.random.Generator) -> None:
    """Overwrite a random stretch of a tenth with zeros, as a disk that was full leaves it."""
    data = bytearray(path.read_bytes())
    n = max(1, len(data) // 10)
    start = int(rng.integers(len(data) - n + 1))
    data[start : start + n] = bytes(n)
    path.write_bytes(bytes(data))


def noise(path: Path, rng: np.random.Generator) -> None:
    """Put random bytes in its place."""
    path.write_bytes(rng.bytes(2000))


def text(path: Path, rng: np.random.Generator) -> None:
    """Put a web page in its place, as a failed download leaves it."""
    path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>\n")


def folder(path: Path, rng: np.random.Generator) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def dangling(path: Path, rng: np.random.Generator) -> None:
    """Put a link to nothing in its place."""
    path.unlink()
    path.symlink_to("nowhere")


def looping(path: Path, rng: np.random.Generator) -> None:
    """Put a link to itself in its place."""
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path, rng: np.random.Generator) -> None:
    """Put a named pipe in its place, which waits for ever to be read."""
    path.unlink()
    os.mkfifo(path)


def gone(path: Path, rng: np.random.Generator) -> None:
    """Delete it."""
    path.unlink()


def hostile(path: Path, rng: np.random.Generator) -> None:
    """Put a pickle in its place that executes code when loaded."""
    path.write_bytes(pickle.dumps(Hostile()))


def on(kind: str, family: str, scenario: str, file: str, damage: Damage, names: tuple[str, ...] = (), n: int = 1,
       **change: Any) -> list[Case]:  # fmt: skip
    """Return cases that damage one file of a scenario; the message has to name the file, or one of `names`."""

    def mutate(rng: np.random.Generator) -> Change:
        damage(Path(file), rng)
        return Change(names=names or (Path(file).name, Path(file).stem), **change)

    return [
        Case(kind, family, scenario, mutate, number, f"{file} {getattr(damage, '__name__', '')} ")
        for number in range(n)
    ]
