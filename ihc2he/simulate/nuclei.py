"""Single H&E tiles with instance and type maps, 0.25 um/px."""

import io
from csv import writer
from dataclasses import dataclass
from pathlib import Path

from ihc2he.files import write_text
from ihc2he.images.writing import write_png
from ihc2he.simulate.scene import cut, draw_block
from ihc2he.simulate.tile import draw_case, photograph_he, tile_rng, write_truth
from ihc2he.simulate.tissue import ORGANS, Marker
from ihc2he.simulate.writing import open_simulation, read_image, run

MPP = 0.25
COLUMNS = ("name", "source", "split", "case", "nuclei", "height", "width", "um_per_px", "licence")
_TILES_PER_CASE = 3
_VAL_EVERY = 5  # cases


@dataclass(frozen=True)
class _Tile:
    out: Path
    index: int
    size: int
    seed: int

    @property
    def name(self) -> str:
        return f"simulated_{self.index:05d}"

    @property
    def case(self) -> int:
        return self.index // _TILES_PER_CASE

    @property
    def image(self) -> Path:
        return self.out / "images" / f"{self.name}.png"


def write_nuclei(out: Path | str, tiles: int, size: int = 512, seed: int = 0, *, workers: int = 1) -> Path:
    """Return `out` after writing H&E tiles with their nuclei.

    ``images/<name>.png``, ``instances/<name>.png`` (uint16, 0 = background), ``types/<name>.png`` (uint8, PanNuke's
    five types from 1, 0 = background) and ``tiles.csv``; every fifth case is in the validation split. Under ``truth``:
    instances, types and markers. If a call is killed, the same call continues it.

    Args:
        out: folder to write to.
        tiles: number of tiles over both splits.
        size: side of a tile in pixels.
        seed: the same seed gives the same bytes.
        workers: number of processes.

    Raises:
        DataError: if `out` holds something else.
    """
    out = open_simulation(out, "images", "nuclei", tiles, size, seed)
    jobs = [_Tile(out, i, size, seed) for i in range(tiles)]
    run(_draw, [job for job in jobs if not job.image.exists()], workers, "nuclei")
    text = io.StringIO()
    rows = writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for job in jobs:
        count = int(read_image(out / "instances" / f"{job.name}.png").max())
        split = "val" if job.case % _VAL_EVERY == _VAL_EVERY - 1 else "train"
        rows.writerow([job.name, "simulated", split, f"case_{job.case:04d}", count, size, size, MPP, "MIT"])
    write_text(out / "tiles.csv", text.getvalue())
    return out


def _draw(tile: _Tile) -> None:
    organ = list(ORGANS.values())[tile.case % len(ORGANS)]
    case = draw_case(organ, Marker("nucleus"), tile.seed, tile.case)
    rng = tile_rng(tile.seed, tile.index)
    section = cut(draw_block(case.tissue, tile.size, MPP, rng), rng)
    relative = f"images/{tile.name}.png"
    write_truth(tile.out, relative, section, case)
    for kind in ("instances", "types"):
        write_png(tile.out / kind / f"{tile.name}.png", read_image(tile.out / "truth" / kind / relative))
    write_png(tile.image, photograph_he(section, case, rng))
