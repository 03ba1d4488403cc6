"""What a generator was trained on, as digests of names, so that no classifier is judged by tiles that it knows."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from ihc2he.data.tables import read_rows
from ihc2he.errors import ConfigError

log = logging.getLogger(__name__)

FILE = "trained_on.csv"  # beside manifest.csv


def digest(kind: str, name: str) -> str:
    """Return what stands for the name of a `tile` or `case`, which may not be for everyone's eyes.

    >>> digest("tile", "a") != digest("case", "a")
    True
    """
    return blake2b(f"{kind} {name}".encode(), digest_size=6).hexdigest()


def digests(names: Iterable[str], cases: Iterable[str]) -> set[str]:
    """Return the digests of tiles and of their cases, "" where not known."""
    return {digest("tile", name) for name in names} | {digest("case", case) for case in cases if case}


def read_origins(folder: Path) -> set[str]:
    """Return the digests of what the generator of synthetic tiles was trained on; none, and a warning, if not known."""
    path = folder / FILE
    found = {row["digest"] for _, row in read_rows(path, ["digest"], ["digest"])} if path.is_file() else set()
    if not found:
        log.warning(
            "%s: it is not known on which tiles the generator was trained. Make sure that none of them is a validation "
            "or test tile here, or of their cases.",
            path,
        )
    return found


def refuse_known(
    folder: Path, known: set[str], parts: Mapping[str, tuple[Sequence[str], Sequence[str]]], split: str
) -> None:
    """Refuse synthetic tiles whose generator was trained on validation or test tiles.

    Args:
        folder: of the synthetic tiles.
        known: digests of what the generator was trained on.
        parts: names and cases of the tiles of each split that must not be among them.
        split: `data.split`; with `cases`, no other tile of their cases may be among them either.

    Raises:
        ConfigError: with their number.
    """
    found = []
    for part, (names, cases) in parts.items():
        by_case = cases if split == "cases" else [""] * len(names)
        n = sum(not known.isdisjoint(digests([name], [case])) for name, case in zip(names, by_case, strict=True))
        if n:
            found.append(f"{n} of {len(names)} {part} tiles")
    if found:
        msg = (
            f"data.synthetic={folder}: its generator was trained on {' and '.join(found)}, or on tiles of their cases, "
            "so a result on them would say nothing. Train generator and classifier with the same data.split (here "
            f"{split}), data.split_seed, data.val_fraction and data.test_fraction. If these are other tiles that only "
            f"have the same names, remove {FILE} from the folder."
        )
        raise ConfigError(msg)
