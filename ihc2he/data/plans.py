"""Plans of slides: what is computed of each, in a folder of its own that also has the results.

Nothing here imports torch, which would take seconds in a process that only writes files.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ihc2he.errors import DataError
from ihc2he.files import write_text
from ihc2he.images.areas import Area
from ihc2he.images.decoding import read_image
from ihc2he.images.forgiving import Forgiving
from ihc2he.images.regions import Regions, read_regions
from ihc2he.images.rescaled import Rescaled
from ihc2he.images.slides import open_slide
from ihc2he.images.source import ImageSource
from ihc2he.images.tissue import Tissue, find_pen, find_tissue, glass_white
from ihc2he.images.writing import write_png
from ihc2he.stain.white import White
from ihc2he.tiling.resampling import resized_labels
from ihc2he.tiling.windows import STEP, Block, mosaic, widened

log = logging.getLogger(__name__)

PLAN, TISSUE, RESULT, WINDOWS = "plan.json", "tissue.png", "slide.json", "windows"
REGIONS = "regions.geojson"


class Slide(NamedTuple):
    """A slide before it is opened.

    Attributes:
        name: its path below the given folder, without extension; also that of its folder in the results.
        path: of the file.
        mpp: um/px; None: as the file states.
        stain: a note for the tables.
        case: likewise, such as a patient.
        regions: annotations of QuPath to compute; None: all tissue.
    """

    name: str
    path: Path
    mpp: float | None = None
    stain: str = ""
    case: str = ""
    regions: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What is computed of a slide: windows of a grid of the pixel size that the model needs.

    Attributes:
        name: of the slide.
        source: its file.
        size: of the file, bytes.
        mtime_ns: when the file was changed.
        given: um/px as the user says; None: the file states it.
        stain: a note for the tables.
        case: likewise.
        mpp: um/px of the slide at full resolution.
        shape: height and width at full resolution, px.
        grid_mpp: um/px of the grid.
        grid: height and width of the grid, px.
        core: largest side of the cores of windows, px of the grid.
        halo: what windows show around their cores, px of the grid.
        white: colour of the slide's glass.
        windows: numbers of those that hold tissue.
        cores: of these windows, first and last row and column: the part of the core around its tissue.
        regions: digest of the annotations; empty without.
        wanted: what the model asked for: um/px, side of windows, um of halo, and white.
    """

    name: str
    source: str
    size: int
    mtime_ns: int
    given: float | None
    stain: str
    case: str
    mpp: float
    shape: tuple[int, int]
    grid_mpp: float
    grid: tuple[int, int]
    core: int
    halo: int
    white: tuple[float, float, float]
    windows: list[int]
    cores: list[list[int]]
    regions: str = ""
    wanted: Sequence[Any] = ()

    @cached_property
    def blocks(self) -> dict[int, Block]:
        """The windows by their number."""
        bare = {
            number: Block(slice(0), slice(0), (top, bottom), (left, right))
            for number, (top, bottom, left, right) in zip(self.windows, self.cores, strict=True)
        }
        return {number: widened(block, self.halo, self.grid) for number, block in bare.items()}

    @property
    def scale(self) -> tuple[float, float]:
        """By how much the slide at full resolution is wider and higher than the grid."""
        return self.shape[1] / self.grid[1], self.shape[0] / self.grid[0]

    def is_of(self, path: Path) -> bool:
        """Return whether it is of the present version of a file, wherever that was moved to.

        Raises:
            OSError: the file cannot be reached.
        """
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns)

    def differs(self, slide: Slide) -> str:
        """Return which settings a slide has now that are not those of the plan; empty if there are none."""
        said = [f"data.mpp={slide.mpp} instead of {self.given}"] if slide.mpp != self.given else []
        return " and ".join(said + (["other regions"] if _digest(slide.regions) != self.regions else []))

    def is_for(self, mpp: float, side: int, halo_um: float, white: White | None) -> bool:
        """Return whether `make_plan` would get the same from a model."""
        return [*self.wanted] == _noted(mpp, side, halo_um, white)

    def noted(self, slide: Slide) -> Plan:
        """Return it with what a slide says now of its place, stain and case."""
        return replace(self, source=str(slide.path.absolute()), stain=slide.stain, case=slide.case)

    def open(self, forgiving: bool = False) -> Rescaled:
        """Return the slide on the grid.

        Args:
            forgiving: whether parts that do not decode are white.

        Raises:
            DataError: if it cannot be read, or was changed since.
        """
        path = Path(self.source)
        try:
            same = self.is_of(path)
        except OSError as error:
            msg = f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
            raise DataError(msg) from error
        if not same:
            msg = f"{self.source}: was changed while it was being read. Repeat the command when it is complete."
            raise DataError(msg)
        whole = open_slide(path, self.given)
        source = Rescaled(Forgiving(whole) if forgiving else whole, self.grid_mpp)
        source.white = self.white
        return source


def make_plan(folder: Path, slide: Slide, mpp: float, side: int, halo_um: float, white: White | None = None) -> Plan:
    """Return the plan of a slide, after it was written to its folder together with the map of tissue.

    What the folder had before is deleted, unless the slide cannot be read.

    Args:
        folder: of the slide in the results.
        slide: the slide.
        mpp: um/px that the model needs; a coarser slide is taken as it is.
        side: of windows, px; they are larger where the halo leaves little of that, and smaller where tissue ends.
        halo_um: what windows show around what they keep, at least.
        white: colour of the slide's glass; None: it is measured.

    Raises:
        DataError: the slide cannot be read.
    """
    whole = open_slide(slide.path, slide.mpp)
    if whole.mpp is None:
        msg = (
            f"{slide.path}: does not state its pixel size. Pass data.mpp in um/px (about 0.25 for a 40x scan, 0.5 for "
            "20x), or list the slides in a CSV with the column um_per_px."
        )
        raise DataError(msg)
    stat = slide.path.stat()
    grid_mpp = max(mpp, whole.mpp)
    forgiving = Forgiving(whole)
    source = Rescaled(forgiving, grid_mpp)
    source.white = white or glass_white(source)
    tissue = _wanted(slide, source, find_tissue(source), forgiving)
    halo = ceil(round(halo_um / grid_mpp, 6) / STEP) * STEP
    core = max((side - 2 * halo) // STEP * STEP, 2 * halo)
    if max(source.shape) <= side:
        core = side  # one window
    cores = _cores(tissue, source.shape, core)
    plan = Plan(
        slide.name, str(slide.path.absolute()), stat.st_size, stat.st_mtime_ns, slide.mpp, slide.stain, slide.case,
        whole.mpp, whole.shape, grid_mpp, source.shape, core, halo, source.white, [*cores], [*cores.values()],
        _digest(slide.regions), _noted(mpp, side, halo_um, white),
    )  # fmt: skip
    clear(folder)
    if slide.regions is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(slide.regions, folder / (REGIONS + (".gz" if slide.regions.suffix == ".gz" else "")))
    write_png(folder / TISSUE, tissue.map_hw.astype(np.uint8) * np.uint8(255))
    write_plan(folder, plan)
    return plan


def _cores(tissue: Tissue, shape: tuple[int, int], core: int) -> dict[int, list[int]]:
    """Return the cores of windows that hold tissue by their number, cut at multiples of `STEP` to where it is."""
    found = {}
    for number, block in enumerate(mosaic(*shape, core)):
        box = tissue.box(block.rows, block.columns)
        if box is not None:
            found[number] = [
                side
                for part, own in zip(box, (block.rows, block.columns), strict=True)
                for side in (part.start // STEP * STEP, min(-(-part.stop // STEP) * STEP, own.stop))
            ]
    return found


def _wanted(slide: Slide, source: ImageSource, tissue: Tissue, forgiving: Forgiving) -> Tissue:
    """Return where to compute: in tissue or regions, not under a pen, and wherever the slide does not decode.

    Raises:
        DataError: nothing of it decodes, or its regions cannot be read.
    """
    lost_hw = forgiving.lost_map(*tissue.map_hw.shape)
    if lost_hw.all():
        msg = f"{slide.path}: no part of it decodes. Copy the file again."
        raise DataError(msg)
    if lost_hw.any():
        log.warning(
            "%s: %.2g %% of it do not decode where it was searched for tissue; the windows there are tried.",
            slide.path,
            100 * lost_hw.mean(),
        )
        tissue = Tissue(tissue.map_hw | lost_hw, source.shape)
    if slide.regions is None:
        return tissue
    regions = Regions(read_regions(slide.regions), str(slide.regions))
    map_hw = regions.mask(forgiving.shape, tissue).map_hw
    pen_hw = resized_labels(find_pen(source).map_hw.view(np.uint8), *map_hw.shape) > 0
    return Tissue(map_hw & ~pen_hw, source.shape)


def _noted(mpp: float, side: int, halo_um: float, white: White | None) -> list[Any]:
    return [mpp, side, halo_um, None if white is None else [*white]]


def _digest(path: Path | None) -> str:
    return "" if path is None else blake2b(path.read_bytes(), digest_size=8).hexdigest()


def regions_of(folder: Path) -> Regions | None:
    """Return the regions of a slide, with places in px at full resolution; None: it has none."""
    path = next(iter(folder.glob(f"{REGIONS}*")), None)
    return None if path is None else Regions(read_regions(path), str(path))


def read_plan(folder: Path) -> Plan | None:
    """Return the plan in the folder of a slide; None if there is none that can be used."""
    try:
        stored = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return Plan(**stored | {key: tuple(stored[key]) for key in ("shape", "grid", "white")})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_plan(folder: Path, plan: Plan) -> None:
    """Write a plan to the folder of its slide."""
    write_text(folder / PLAN, json.dumps(asdict(plan)) + "\n")


def note(folder: Path, plan: Plan, slide: Slide) -> Plan:
    """Return a plan with what its slide says now of its place, stain and case, after this was written, if it is new."""
    noted = plan.noted(slide)
    if noted != plan:
        write_plan(folder, noted)
        result = read_result(folder)
        if result is not None:
            write_result(folder, result | {"source": noted.source, "stain": noted.stain, "case": noted.case})
    return noted


def read_tissue(folder: Path, plan: Plan) -> Area:
    """Return where the slide has tissue, on its grid."""
    return Area(read_image(folder / TISSUE)[..., 0] > 0, plan.grid)


def window_file(folder: Path, number: int) -> Path:
    """Return the file for the nuclei of a window."""
    return folder / WINDOWS / f"{number:06}.npz"


def done_windows(folder: Path) -> set[int]:
    """Return the numbers of the windows whose nuclei are there."""
    return {int(path.stem) for path in (folder / WINDOWS).glob("[0-9]*.npz")}


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished slide; None if it is not there, or not complete."""
    try:
        return dict(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write the summary of a finished slide."""
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")


def clear(folder: Path) -> None:
    """Delete the plan and the results in the folder of a slide; sub-folders may be those of other slides."""
    if not (folder / PLAN).is_file():
        return
    (folder / RESULT).unlink(missing_ok=True)
    shutil.rmtree(folder / WINDOWS, ignore_errors=True)
    for path in folder.glob("*"):
        if path.is_file() and path.name != PLAN:
            path.unlink()
    (folder / PLAN).unlink()  # last, as it says that the folder is one of results


def folders_with_plans(out: Path) -> Iterable[Path]:
    """Return the folders of slides in a folder of results."""
    return sorted(path.parent for path in out.glob(f"**/{PLAN}"))
