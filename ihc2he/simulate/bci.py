"""Simulated BCI: pairs of H&E and HER2 tiles of breast cancer from serial sections, 0.46 um/px."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ihc2he.errors import ConfigError
from ihc2he.files import write_csv
from ihc2he.images.writing import write_png
from ihc2he.simulate.scene import cut, cut_neighbour, draw_block
from ihc2he.simulate.tile import draw_case, photograph_he, photograph_ihc, tile_rng, write_truth
from ihc2he.simulate.tissue import BREAST, Marker
from ihc2he.simulate.writing import open_simulation, run, share_out

MPP = 0.46
LEVELS = ("0", "1+", "2+", "3+")
# Number of pairs of each level in the published dataset.
PUBLISHED = {"train": (202, 918, 1696, 1080), "test": (38, 235, 446, 258)}
SCANNER = {"blur": 0.36, "sharpening": 0.4}  # 20x: less sharp than a 40x scan
_SECTION = 4.0  # um from one section to the next
_TILES_PER_CASE = 12


@dataclass(frozen=True)
class _Pair:
    out: Path
    name: str
    split: str
    level: int
    index: int  # of the tile, over both splits
    case: int
    size: int
    seed: int
    aligned: bool


def write_bci(
    out: Path | str,
    tiles: int,
    size: int = 1024,
    seed: int = 0,
    *,
    aligned: bool = False,
    cases: int | Sequence[int] = 0,
    workers: int = 1,
) -> Path:
    """Return `out` after writing tiles in the public layout of BCI, and their truth.

    ``{HE,IHC}/{train,test}/<number>_<split>_<level>.png``, levels and splits in the published ratio. Under ``truth``:
    instances, types and markers of both stains, and in ``he/IHC`` the H&E tile of exactly the cells in the IHC tile,
    which the real data does not have. If a call is killed, the same call continues it.

    With `cases` it can be measured what a split by tile pretends: the tiles of a case, which share tissue, stain and
    scanner, are in both splits, and ``cases.csv`` says which they are. The level is that of the case, and H&E tells
    nothing of it.

    Args:
        out: folder to write to.
        tiles: number of pairs over both splits.
        size: side of a tile in pixels.
        seed: the same seed gives the same bytes.
        aligned: both stains show the same section instead of neighbouring ones.
        cases: number of cases with equally many tiles, as many of each level, or one number for each level; 0: a case
            for each 12 tiles of a split and level.
        workers: number of processes.

    Raises:
        ConfigError: for a level without cases, or more cases than tiles.
        DataError: if `out` holds something else.
    """
    level_of = _levels(cases)
    if cases and not (set(level_of) == set(range(len(LEVELS))) and len(level_of) <= tiles):
        msg = f"cases={cases}: expected {len(LEVELS)} or more, one for each level, and at most tiles={tiles}."
        raise ConfigError(msg)
    settings = {"aligned": aligned, **({"cases": cases if isinstance(cases, int) else [*cases]} if cases else {})}
    out = open_simulation(out, "HE", "bci", tiles, size, seed, **settings)
    pairs = list(_pairs(out, tiles, size, seed, aligned, level_of))
    if cases:
        write_csv(out / "cases.csv", [{"name": pair.name, "case": f"case_{pair.case:03d}"} for pair in pairs])
    # The H&E tile is written last: if it exists, the whole pair does.
    run(_draw, [p for p in pairs if not (out / "HE" / p.split / p.name).exists()], workers, "BCI")
    return out


def _levels(cases: int | Sequence[int]) -> list[int]:
    """Return the level of each case."""
    if isinstance(cases, int):
        return [case % len(LEVELS) for case in range(cases)]
    return [level for level, n in enumerate(cases) for _ in range(n)]


def _pairs(out: Path, tiles: int, size: int, seed: int, aligned: bool, level_of: Sequence[int] = ()) -> Iterator[_Pair]:
    n_test = min(tiles - 1, max(1, round(tiles * sum(PUBLISHED["test"]) / 4873)))
    counts = {"train": tiles - n_test, "test": n_test}
    slides = _mixed(counts, level_of, seed) if level_of else _apart(counts, seed)
    index = 0
    for split in counts:
        for number, (level, case) in enumerate(slides[split]):
            name = f"{number:05d}_{split}_{LEVELS[level]}.png"
            yield _Pair(out, name, split, level, index, case, size, seed, aligned)
            index += 1


def _apart(counts: dict[str, int], seed: int) -> dict[str, list[tuple[int, int]]]:
    """Return level and case of the tiles of each split; no case is in both."""
    found = {}
    for (split, n), first in zip(counts.items(), (0, 10_000), strict=True):
        # All tiles of a slide have the same level, so the slides of a level are consecutive.
        slides = [
            (level, first + 1000 * level + k // _TILES_PER_CASE)
            for level, count in enumerate(share_out(n, PUBLISHED[split]))
            for k in range(count)
        ]
        found[split] = [slides[row] for row in np.random.default_rng([seed, n]).permutation(n)]
    return found


def _mixed(counts: dict[str, int], level_of: Sequence[int], seed: int) -> dict[str, list[tuple[int, int]]]:
    """Return level and case of the tiles of each split; the tiles of every case are divided at random."""
    n = sum(counts.values())
    case_n = [int(row) % len(level_of) for row in np.random.default_rng([seed, n]).permutation(n)]
    slides = [(level_of[case], case) for case in case_n]
    return {"train": slides[: counts["train"]], "test": slides[counts["train"] :]}


def _draw(pair: _Pair) -> None:
    case = draw_case(BREAST, Marker("membrane", pair.level), pair.seed, pair.case, **SCANNER)
    rng = tile_rng(pair.seed, pair.index)
    block = draw_block(case.tissue, pair.size, MPP, rng)
    he_section = cut(block, rng)
    ihc_section = he_section if pair.aligned else cut_neighbour(block, he_section, _SECTION, rng)
    for stain, section in (("HE", he_section), ("IHC", ihc_section)):
        write_truth(pair.out, f"{stain}/{pair.split}/{pair.name}", section, case)
    he = photograph_he(he_section, case, rng)
    ihc = photograph_ihc(ihc_section, case, rng)
    same_cells = he if pair.aligned else photograph_he(ihc_section, case, rng)
    write_png(pair.out / "truth" / "he" / "IHC" / pair.split / pair.name, same_cells)
    write_png(pair.out / "IHC" / pair.split / pair.name, ihc)
    write_png(pair.out / "HE" / pair.split / pair.name, he)
