"""Whole slides to find nuclei in, window by window."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ihc2he.data.evaluation import TileLoader, WholeTilesDataModule
from ihc2he.data.finished import check_sources, each_once
from ihc2he.data.plans import (
    PLAN,
    Plan,
    Slide,
    done_windows,
    folders_with_plans,
    make_plan,
    note,
    read_plan,
    read_result,
)
from ihc2he.data.stored import require
from ihc2he.data.tables import by_name, pixel_size, read_rows
from ihc2he.data.tiles import find_files
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.regions import check_shapely
from ihc2he.images.slides import SLIDE_SUFFIXES, SlideSource
from ihc2he.images.source import ImageSource
from ihc2he.ranks import from_all_ranks
from ihc2he.stain.white import White
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

_EXPECTED = "a slide, a folder of slides, a glob such as 'slides/*.svs', or a CSV of slides"


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

    A batch has the keys ``name`` (of the slide), ``window`` (its number), ``plan`` (`ihc2he.data.plans.Plan`, added
    where the batch arrives), ``image`` (HxWx3 uint8 RGB) and ``error``, each a list. A window that does not decode has
    a text under ``error`` and no image; a slide that cannot be read comes once, without a plan too. Ranks share all
    windows of all slides. Those whose nuclei are in the results are left out.

    Args:
        path: a slide, a folder (searched with its sub-folders), a glob, or a CSV with the columns path, um_per_px,
            name, stain and case, of which only the first is needed; paths there may be relative to the CSV.
        out: folder of the results.
        regions: GeoJSON of annotations of QuPath to compute, or a folder with a `NAME.geojson` (or `.gz`) for each
            slide; None: all tissue.
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
        """Find the slides, without opening them.

        Raises:
            ConfigError: the results in `out` are of other slides, or were made with other settings.
            DataError: there are no slides, or no regions of one.
        """
        if self.regions is not None:
            check_shapely()
        given = Path(self.path).expanduser()
        slides = _listed(given, self.mpp) if given.suffix.lower() == ".csv" else self._found()
        for slide in slides:
            if self.out.resolve() in slide.path.resolve().parents:
                msg = f"out={self.out}: holds {slide.path}; results do not go among slides. Choose another out=."
                raise ConfigError(msg)
        slides = [slide._replace(regions=self._regions(slide, len(slides))) for slide in slides]
        plans = {plan.name: plan for folder in folders_with_plans(self.out) if (plan := read_plan(folder))}
        self._check(slides, plans)
        self.finished = {slide: plans[slide.name] for slide in slides if self._is_done(slide, plans.get(slide.name))}
        if self.finished:
            log.info("%d of %d slides were finished before and are skipped.", len(self.finished), len(slides))
        self.slides = [slide for slide in slides if slide not in self.finished]
        self.plans: dict[str, Plan | str] = {}

    def _regions(self, slide: Slide, slides: int) -> Path | None:
        if self.regions is None:
            return None
        if self.regions.is_file() and slides > 1:
            msg = (
                f"data.regions={self.regions}: is of one slide, and there are {slides}. Pass a folder with a "
                "NAME.geojson for each."
            )
            raise ConfigError(msg)
        names = [f"{slide.name}.geojson", f"{slide.name}.geojson.gz"]
        paths = [self.regions / name for name in names] if self.regions.is_dir() else [self.regions]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            msg = (
                f"data.regions={self.regions}: there is no {paths[0]}. Export the slide's annotations from QuPath to "
                "it."
            )
            raise DataError(msg)
        return path

    def _found(self) -> list[Slide]:
        base, files = find_files(self.path, SLIDE_SUFFIXES)
        out = self.out.resolve()
        if not base.resolve().is_relative_to(out):
            files = [file for file in files if out not in file.resolve().parents]
        if not Path(self.path).expanduser().is_file():
            files = slides_of(files)
        if not files:
            msg = (
                f"data.path={self.path}: found no slide there, expected files that end in one of "
                f"{', '.join(SLIDE_SUFFIXES)}. Pass a file, a folder, a glob in quotes, or a CSV."
            )
            raise DataError(msg)
        return [Slide(name, file, self.mpp) for name, file in each_once(by_name(base, files)).items()]

    def _check(self, slides: Sequence[Slide], plans: Mapping[str, Plan]) -> None:
        """Refuse slides whose results would take the place of others, or would be counted twice."""
        known = {(name, Path(plan.source).resolve()) for name, plan in plans.items()}
        notes = {name: {"source": plan.source} for name, plan in plans.items()}
        new = {slide.name: slide.path for slide in slides if (slide.name, slide.path.resolve()) not in known}
        check_sources(self.out / PLAN, notes, new)
        for slide in slides:
            folder, plan = self.out / slide.name, plans.get(slide.name)
            if plan is None or not (said := plan.differs(slide)):
                continue
            if read_result(folder) is not None or done_windows(folder):
                msg = (
                    f"{folder}: has results, which are lost with {said}. Repeat the previous settings, choose another "
                    "out=, or delete the folder."
                )
                raise ConfigError(msg)

    def _is_done(self, slide: Slide, plan: Plan | None) -> bool:
        result = read_result(self.out / slide.name)
        if plan is None or result is None or result["windows_failed"]:
            return False
        try:
            return plan.is_of(slide.path) and not plan.differs(slide)
        except OSError:
            return False  # reading it shows what is wrong

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Return the batch with the plans of its slides, which need not come from another process."""
        plans = [self.plans[name] for name in batch["name"]]
        return batch | {"plan": [None if isinstance(plan, str) else plan for plan in plans]}

    def predict_dataloader(self) -> TileLoader:
        """Return the windows that are left, after the tissue of the slides was found.

        Raises:
            ConfigError: a package is missing that a slide needs, or a plan cannot be written.
        """
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        own: dict[str, Plan | str] = {}
        problem = None
        try:
            for slide in [*self.finished][rank::ranks]:
                note(self.out / slide.name, self.finished[slide], slide)
            own = {slide.name: self._plan(slide) for slide in self.slides[rank::ranks]}
        except (ConfigError, OSError) as error:
            problem = str(error)
        for part, said in from_all_ranks((own, problem)):
            if said is not None:  # on all ranks, so that none waits for one that has stopped
                raise ConfigError(said)
            self.plans |= part
        windows = [window for slide in self.slides for window in self._windows(slide, self.plans[slide.name])]
        if not windows:
            log.info("No window is left to do.")
        return self._loader(windows, _Reader())

    def _plan(self, slide: Slide) -> Plan | str:
        """Return what to do of a slide, or why it cannot be read."""
        folder = self.out / slide.name
        plan = read_plan(folder)
        try:
            if plan is not None and plan.is_of(slide.path) and not plan.differs(slide):
                # Where no window is done, the settings may be others than those of the run that has made the plan.
                if plan.is_for(*self._wanted()) or done_windows(folder):
                    return note(folder, plan, slide)
            elif plan is not None and not plan.differs(slide):
                log.warning("%s: was changed since its results were made, and is done again.", slide.path)
            return make_plan(folder, slide, *self._wanted())
        except (DataError, OSError) as error:
            return str(error)

    def _wanted(self) -> tuple[float, int, float, White | None]:
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        return module.working_mpp, module.block, module.halo_um, module.white

    def _windows(self, slide: Slide, plan: Plan | str) -> Sequence[Window]:
        if isinstance(plan, str):
            return [Window(None, slide, error=plan)]
        done = done_windows(self.out / slide.name)
        return [Window(plan, slide, number) for number in plan.windows if number not in done]


def slides_of(files: Sequence[Path]) -> list[Path]:
    """Return the files of which each is a slide of its own.

    Results of earlier runs are left out, the parts that a VMS file names, and all but the first DICOM file of a series.

    Args:
        files: that look like slides, in order.
    """
    parts = {part for file in files if file.suffix.lower() in (".vms", ".vmu") for part in _named_in(file)}
    series: set[tuple[Path, str]] = set()
    found = []
    for file in files:
        if file in parts or any((folder / PLAN).is_file() for folder in (file.parent, file.parent.parent)):
            continue
        if file.suffix.lower() == ".dcm":
            own = (file.parent, _series(file))
            if own in series:
                continue
            series.add(own)
        found.append(file)
    return found


def _named_in(index: Path) -> list[Path]:
    """Return the files that an index of a slide names as its parts."""
    lines = index.read_text(encoding="utf-8", errors="replace").splitlines()
    return [index.parent / line.partition("=")[2].strip() for line in lines if "=" in line]


def _series(file: Path) -> str:
    """Return to which series a DICOM file belongs; one that cannot be read is for itself."""
    try:
        return SlideSource(file, mpp=1.0).series or file.name
    except DataError:
        return file.name


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
            "plan": None,
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
