"""Whole slides to find nuclei in, window by window."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ihc2he.data.evaluation import TileLoader, WholeTilesDataModule
from ihc2he.data.finished import each_once
from ihc2he.data.plans import Plan, Slide, clear, done_windows, make_plan, read_plan, read_result
from ihc2he.data.stored import require
from ihc2he.data.tables import by_name, pixel_size, read_rows
from ihc2he.data.tiles import find_files
from ihc2he.datainfo import DataInfo
from ihc2he.errors import DataError
from ihc2he.images.slides import SLIDE_SUFFIXES
from ihc2he.images.source import ImageSource
from ihc2he.ranks import from_all_ranks
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

_EXPECTED = "a slide, a folder of slides, a glob such as 'slides/*.svs', or a CSV of slides"
OVERLAP_UM = 32.0  # of windows; wider than any nucleus


class Window(NamedTuple):
    """What is read at once.

    Attributes:
        plan: of the slide; None: the slide cannot be read.
        slide: the slide.
        number: of the window.
        error: why the slide cannot be read.
    """

    plan: Plan | None
    slide: Slide
    number: int = 0
    error: str | None = None


class SlidesDataModule(WholeTilesDataModule):
    """Windows of slides, read at the pixel size that the model needs, where there is tissue.

    A batch has the keys ``name`` (of the slide), ``window`` (its number), ``plan`` (`ihc2he.data.plans.Plan`),
    ``image`` (HxWx3 uint8 RGB) and ``error``, each a list. A window that does not decode has a text under ``error`` and
    no image; a slide that cannot be read comes once, without a plan too. Ranks share all windows of all slides. Those
    whose nuclei are in the results are left out.

    Args:
        path: a slide, a folder (searched with its sub-folders), a glob, or a CSV with the columns path, um_per_px,
            name, stain and case, of which only the first is needed; paths there may be relative to the CSV.
        out: folder of the results.
        regions: GeoJSON of annotations of QuPath to compute, or a folder with a `NAME.geojson` for each slide; None:
            all tissue.
        mpp: um/px of the slides whose row in a CSV has none; None: as each file states.
        batch_size: windows per batch and process.
        num_workers: processes that read windows ahead of the network.
    """

    def __init__(
        self,
        *,
        path: str | None,
        out: str,
        mpp: float | None = None,
        regions: str | None = None,
        batch_size: int = 1,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer windows left than devices
        require("path", path, bool(path), _EXPECTED)
        require("mpp", mpp, mpp is None or is_pixel_size(mpp), PIXEL_SIZE)
        self.path = str(path)
        self.out = Path(out).expanduser()
        self.mpp = mpp
        self.regions = None if regions is None else Path(regions).expanduser()

    @property
    def info(self) -> DataInfo:
        """What models, callbacks and the runner can know about the slides."""
        return DataInfo(mpp=None)

    def setup(self, stage: str | None = None) -> None:
        """Find the slides, without opening them."""
        given = Path(self.path).expanduser()
        self.slides = _listed(given, self.mpp) if given.suffix.lower() == ".csv" else self._found()
        self.slides = [slide._replace(regions=self._regions(slide)) for slide in self.slides]
        left = [slide for slide in self.slides if not self._is_done(slide)]
        if len(left) < len(self.slides):
            log.info(
                "%d of %d slides were finished before and are skipped.", len(self.slides) - len(left), len(self.slides)
            )
        self.slides = left

    def _regions(self, slide: Slide) -> Path | None:
        if self.regions is None:
            return None
        path = self.regions / f"{slide.name}.geojson" if self.regions.is_dir() else self.regions
        if not path.is_file():
            msg = f"data.regions={self.regions}: there is no {path}. Export the slide's annotations from QuPath to it."
            raise DataError(msg)
        return path

    def _found(self) -> list[Slide]:
        base, files = find_files(self.path, SLIDE_SUFFIXES)
        files = [file for file in files if self.out.resolve() not in file.resolve().parents]
        if not files:
            msg = (
                f"data.path={self.path}: found no slide there, expected files that end in one of "
                f"{', '.join(SLIDE_SUFFIXES)}. Pass a file, a folder, a glob in quotes, or a CSV."
            )
            raise DataError(msg)
        return [Slide(name, file, self.mpp) for name, file in each_once(by_name(base, files)).items()]

    def _is_done(self, slide: Slide) -> bool:
        folder = self.out / slide.name
        plan, result = read_plan(folder), read_result(folder)
        return plan is not None and result is not None and plan.is_current(slide) and not result["windows_failed"]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Return the batch as it is: nothing in it is a tensor, and Lightning would walk through the plans."""
        return batch

    def predict_dataloader(self) -> TileLoader:
        """Return the windows that are left, after the tissue of the slides was found."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        own = {slide.name: self._plan(slide) for slide in self.slides[rank::ranks]}
        plans: dict[str, Plan | str] = {}
        for part in from_all_ranks(own):
            plans |= part
        windows = [window for slide in self.slides for window in self._windows(slide, plans[slide.name])]
        if not windows:
            log.info("No window is left to do.")
        return self._loader(windows, _Reader())

    def _plan(self, slide: Slide) -> Plan | str:
        """Return what to do of a slide, or why it cannot be read."""
        folder = self.out / slide.name
        plan = read_plan(folder)
        try:
            if plan is not None and plan.is_current(slide):
                return plan
            clear(folder)  # of another version of the slide
            return make_plan(folder, slide, *self._wanted())
        except (DataError, OSError) as error:
            return str(error)

    def _wanted(self) -> tuple[float, int, float]:
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        return module.working_mpp, module.block, OVERLAP_UM

    def _windows(self, slide: Slide, plan: Plan | str) -> Sequence[Window]:
        if isinstance(plan, str):
            return [Window(None, slide, error=plan)]
        done = done_windows(self.out / slide.name)
        return [Window(plan, slide, number) for number in plan.windows if number not in done]


def _listed(table: Path, mpp: float | None) -> list[Slide]:
    """Return the slides of a CSV.

    Raises:
        DataError: the table cannot be read, has no slides, or names one twice.
    """
    rows = read_rows(table, ["path"], ["path", "um_per_px", "name", "stain", "case"])
    slides: dict[str, Slide] = {}
    for line, row in rows:
        path = table.parent / Path(row["path"].replace("\\", "/")).expanduser()
        name = (row.get("name") or path.with_suffix("").name).strip("/ ")
        said = row.get("um_per_px")
        if not name or name in slides or ".." in Path(name).parts:
            msg = f"{table}, line {line}: the name {name!r} is empty, repeated or leads upwards. Fill the column name."
            raise DataError(msg)
        size = pixel_size(said, None, path, table) if said else mpp
        slides[name] = Slide(name, path, size, row.get("stain", ""), row.get("case", ""))
    if not slides:
        msg = f"{table}: lists no slides. Write a line for each, with its path in the column path."
        raise DataError(msg)
    return list(slides.values())


class _Reader:
    """Reads windows, and keeps the last slide open."""

    def __init__(self) -> None:
        self._last: tuple[str, ImageSource] | None = None

    def __call__(self, window: Window) -> dict[str, Any]:
        plan = window.plan
        entry: dict[str, Any] = {
            "name": window.slide.name,
            "window": window.number,
            "plan": plan,
            "image": None,
            "error": window.error,
        }
        if plan is None:
            return entry
        try:
            if self._last is None or self._last[0] != plan.name:
                self._last = (plan.name, plan.open())
            block = plan.blocks[window.number]
            entry["image"] = self._last[1].read(block.rows, block.columns)
        except (DataError, OSError) as problem:
            entry["error"] = str(problem)
        return entry
