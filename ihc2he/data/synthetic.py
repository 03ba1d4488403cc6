"""Synthetic training tiles: a folder of PNG files with `manifest.csv`, which names the level of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.store import map_in_threads
from ihc2he.data.tables import read_rows
from ihc2he.errors import DataError
from ihc2he.images.decoding import read_image
from ihc2he.tiling.resampling import resize

SYNTHETIC = "synthetic"  # stands for the case of a synthetic tile


def synthetic_counts(
    labels: Sequence[str], used: Sequence[str], classes: Sequence[str], share: float | str
) -> dict[str, int]:
    """Return how many synthetic tiles of each class are added.

    Args:
        labels: of all training tiles.
        used: of those that are trained on.
        classes: all.
        share: synthetic tiles for each of all training tiles, in their ratio; or `balance`: as many as make each class
            as frequent as the most frequent one.

    >>> labels = ["0", "3+", "3+", "3+"]
    >>> synthetic_counts(labels, labels, ["0", "3+"], 2.0), synthetic_counts(labels, labels, ["0", "3+"], "balance")
    ({'0': 2, '3+': 6}, {'0': 2, '3+': 0})
    """
    counts, present = Counter(labels), Counter(used)
    if isinstance(share, str):
        most = max(present.values(), default=0) or max(counts.values())
        return {name: most - present[name] for name in classes}
    return {name: round(share * counts[name]) for name in classes}


def read_synthetic(
    folder: str, counts: Mapping[str, int], shape: tuple[int, int, int], seed: int
) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """Return synthetic tiles, their names and their levels, drawn at random from a folder.

    Tiles of two stains are PNG files of both side by side. Larger tiles are reduced.

    Args:
        folder: with the PNG files and `manifest.csv` (columns name and level).
        counts: tiles wanted of each level.
        shape: height, width and channels of the tiles of the data.
        seed: of the draw.

    Raises:
        DataError: if the folder has too few tiles of a level, or tiles of another shape.
    """
    root = Path(folder).expanduser()
    table = root / "manifest.csv"
    if not table.is_file():
        msg = (
            f"data.synthetic={folder}: there is no {table}. Pass a folder that experiment=gan_tiles out=FOLDER has "
            "written, or write the columns name and level of its PNG files there."
        )
        raise DataError(msg)
    named: dict[str, list[str]] = {level: [] for level in counts}
    for line, row in read_rows(table, ["name", "level"], ["name", "level", "seed"]):
        if row["level"] not in named:
            msg = f"{table}, line {line}: level {row['level']!r}, expected {', '.join(named)}."
            raise DataError(msg)
        named[row["level"]].append(row["name"])
    rng = np.random.default_rng(seed)
    names, levels = [], []
    for level, count in counts.items():
        if len(named[level]) < count:
            msg = (
                f"{table}: {len(named[level])} tiles of level {level}, {count} are needed. Make more of them, or pass "
                "a smaller data.synthetic_share."
            )
            raise DataError(msg)
        names += [named[level][i] for i in rng.permutation(len(named[level]))[:count]]
        levels += [level] * count
    images = [*map_in_threads(lambda name: _read(root, name, shape), names)]
    return np.stack(images) if images else np.zeros((0, *shape), np.uint8), names, levels


def _read(root: Path, name: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    path = root / (name if name.endswith(".png") else f"{name}.png")
    image = read_image(path)
    height, width, channels = shape
    stains = channels // 3
    right = image.shape[1] == stains * image.shape[0]
    if not right or image.shape[0] < height:
        remedy = (
            f"Pass data.size={image.shape[0]} or less, or train a generator of model.size={height}."
            if right
            else "Pass the data.stain of these tiles."
        )
        msg = (
            f"{path}: {image.shape[1]}x{image.shape[0]} px, expected {stains * width}x{height} or more in this ratio: "
            f"{'one square tile' if stains == 1 else 'the stains side by side'}. {remedy}"
        )
        raise DataError(msg)
    return np.concatenate([resize(part, height, width) for part in np.split(image, stains, axis=1)], axis=-1)
