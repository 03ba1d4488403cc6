"""The results of slides: nuclei window by window, then the files of each slide, and at the end those of all."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.callbacks.claiming import claim, plain
from ihc2he.callbacks.imagefiles import write_json
from ihc2he.callbacks.slidefiles import ALL, KINDS, Options, assemble
from ihc2he.data.plans import Plan, done_windows, folders_with_plans, read_plan, read_result, read_tissue, window_file
from ihc2he.data.tables import read_rows
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.files import write_csv
from ihc2he.images.areas import Area
from ihc2he.images.writing import write_png
from ihc2he.models.handover import worker_pool
from ihc2he.nuclei.columns import check_table
from ihc2he.nuclei.counts import THRESHOLDS, Counts, check_thresholds, pooled
from ihc2he.nuclei.windows import kept_nuclei, write_window
from ihc2he.ranks import from_all_ranks
from ihc2he.report.page import write_report

if TYPE_CHECKING:
    from ihc2he.models.pipeline.slides import WindowPrediction

log = logging.getLogger(__name__)

Failure = dict[str, str]  # a row of failed.csv

MAX_PENDING = 16  # windows that wait to be written
FAILED = ("slide", "window", "error", "path")


class SlideWriter(Callback):
    """Writes the nuclei of each window as it is predicted, and the files of a slide when its last window is done.

    A slide has a folder `NAME` with `slide.json`, which is written last. The files of the run are `settings.json`,
    `summary.csv` with all slides in the folder, `report.html`, and `failed.csv` if anything could not be read. A later
    run goes on at the window where this one ended. Other settings, or a second run at the same time, are refused.

    Args:
        out: the folder.
        thresholds: mean DAB optical density above which a nucleus is weak (and positive), moderate, strong.
        write: which of `ihc2he.callbacks.slidefiles.KINDS`.
        table: of nuclei: `parquet` or `csv`.
        hot_spot_mm2: area of the round field of a hot spot.
        hot_spots: how many to look for in a slide.
        workers: processes that write the files of slides meanwhile; 0: this one does.

    Raises:
        ConfigError: for a setting that cannot be.
    """

    def __init__(
        self,
        out: str,
        thresholds: Sequence[float] = THRESHOLDS,
        write: Sequence[str] = KINDS,
        table: str = "parquet",
        hot_spot_mm2: float = 1.0,
        hot_spots: int = 3,
        workers: int = 1,
    ) -> None:
        check_thresholds(thresholds)
        for kind in write:
            if kind not in KINDS:
                msg = f"callbacks.writer.write: there is no '{kind}'.{did_you_mean(kind, KINDS)}"
                raise ConfigError(msg)
        if "nuclei" in write:
            check_table(table, "callbacks.writer.table")
        if not 0.001 <= hot_spot_mm2 <= 1000 or hot_spots < 0 or workers < 0:
            msg = (
                f"callbacks.writer: hot_spot_mm2={hot_spot_mm2} has to be from 0.001 to 1000, hot_spots={hot_spots} "
                f"and workers={workers} 0 or more."
            )
            raise ConfigError(msg)
        self.out = Path(out).expanduser()
        self.options = Options(tuple(thresholds), hot_spot_mm2, hot_spots, table, tuple(write))
        self.workers = workers
        self._lock = ExitStack()
        self._settings: dict[str, Any] = {}
        self._threads: ThreadPoolExecutor | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Lock the folder, on the first rank.

        Raises:
            ConfigError: if another run is using it, or it was begun with other settings.
        """
        if stage != "predict":
            return
        own = {name: value for name, value in vars(self.options).items() if name != "classes"}
        self._settings = plain({**pl_module.fingerprint, **own})
        self._threads = ThreadPoolExecutor(min(2, os.cpu_count() or 1))
        self._pool: Executor = worker_pool(self.workers) if self.workers else ThreadPoolExecutor(1)
        self._pending: deque[tuple[str, Future[None]]] = deque()
        self._assembled: dict[str, Future[Any]] = {}
        self._assembling = Lock()
        self._waits: dict[str, int] = {}
        self._ranks = trainer.world_size
        self._tissues: dict[str, Area] = {}
        self._failed: list[Failure] = []
        problem = claim(self.out, self._settings, self._lock) if trainer.is_global_zero else None
        problem = trainer.strategy.broadcast(problem)  # so that no rank waits for one that has stopped
        if problem:
            raise ConfigError(problem)

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the settings, before the first window."""
        self.options = replace(self.options, classes=tuple(pl_module.class_names))
        if trainer.is_global_zero:
            write_json(self.out / "settings.json", self._settings)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the nuclei of the windows, in threads."""
        assert self._threads is not None
        prediction: WindowPrediction
        for prediction in outputs:
            if prediction.error is not None:
                window = "" if prediction.plan is None else str(prediction.number)
                self._failed.append({"slide": prediction.name, "window": window, "error": prediction.error})
                continue
            self._pending.append((prediction.name, self._threads.submit(self._write, prediction)))
            self._wait(MAX_PENDING)

    def _write(self, prediction: WindowPrediction) -> None:
        """Write what a window has; with the last of a slide, its files."""
        plan, folder = prediction.plan, self.out / prediction.name
        assert prediction.found is not None
        assert prediction.image is not None
        tissue = self._tissues.get(prediction.name)
        if tissue is None:
            tissue = read_tissue(folder, plan)
            self._tissues = {prediction.name: tissue}  # another thread may do so, too
        block = plan.blocks[prediction.number]
        kept = kept_nuclei(
            prediction.found, block, plan.grid, plan.scale, plan.grid_mpp, prediction.image, plan.white,
            tissue, prediction.agreement_n, self.options.thresholds[0],
        )  # fmt: skip
        path = window_file(folder, prediction.number)
        if prediction.he is not None and "he" in self.options.write:
            (left, right), (top, bottom) = block.core_x, block.core_y
            x, y = block.columns.start, block.rows.start
            write_png(path.with_suffix(".png"), prediction.he[top - y : bottom - y, left - x : right - x])
        write_window(path, kept)
        self._count(plan)

    def _count(self, plan: Plan) -> None:
        """Note that a window was written; after the last of a slide, write its files.

        The folder is listed when all that were missing in it may be there: after as many windows, shared by the ranks.
        """
        name, folder = plan.name, self.out / plan.name
        with self._assembling:
            self._waits[name] = self._waits.get(name, 1) - 1
            if self._waits[name] > 0 or name in self._assembled:
                return
            missing = len(plan.windows) - len(done_windows(folder))
            self._waits[name] = max(1, missing // self._ranks)
            if not missing:
                self._assembled[name] = self._pool.submit(assemble, folder, self.options)

    def _wait(self, most: int) -> None:
        """Wait until at most this many windows are waiting to be written; raise errors of the others."""
        while self._pending and (self._pending[0][1].done() or len(self._pending) > most):
            self._pending.popleft()[1].result()

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Finish the slides, and write the tables of all, on the first rank; a run without new windows only comes here.

        Raises:
            DataError: if slides or windows could not be read.
        """
        if stage != "predict":
            return
        self.options = replace(self.options, classes=tuple(pl_module.class_names))
        failed = _gathered(self._failed + self._unwritten() + _outcomes(self._assembled))
        # Only the first rank looks, so that all share the same list.
        names = _may_be_finished(self.out, failed) if trainer.is_global_zero else []
        own = trainer.strategy.broadcast(names)[trainer.global_rank :: trainer.world_size]
        failed += _gathered(
            _outcomes({name: self._pool.submit(assemble, self.out / name, self.options) for name in own})
        )
        self._close()
        if not trainer.is_global_zero:
            return
        write_csv(self.out / "summary.csv", summary(self.out), SUMMARY)
        paths = {slide.name: str(slide.path.absolute()) for slide in trainer.datamodule.slides}  # type: ignore[attr-defined]
        write_failed(self.out / "failed.csv", [row | {"path": paths.get(row["slide"], "")} for row in failed], paths)
        write_report(self.out)
        self._lock.close()
        log.info("Slides: %s", self.out)
        if failed:
            raise DataError(_failure(failed, self.out / "failed.csv"))

    def _unwritten(self) -> list[Failure]:
        """Wait until all windows are written; return those that were not."""
        rows = []
        while self._pending:
            name, job = self._pending.popleft()
            try:
                job.result()
            except (DataError, OSError) as error:
                rows.append(_failed(name, error))
        return rows

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the windows that are being written, and unlock the folder."""
        self._close()
        self._lock.close()

    def _close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
            self._pool.shutdown(cancel_futures=True)
            self._threads = None


def _may_be_finished(out: Path, failed: Sequence[Failure]) -> list[str]:
    """Return the slides of which all windows were tried, and whose files are not of all that are done."""
    broken = {row["slide"] for row in failed if not row["window"]}
    tried: dict[str, set[int]] = {}
    for row in failed:
        if row["window"]:
            tried.setdefault(row["slide"], set()).add(int(row["window"]))
    names = []
    for folder in folders_with_plans(out):
        plan, result, name = read_plan(folder), read_result(folder), folder.relative_to(out).as_posix()
        if plan is None or plan.name != name or name in broken:
            continue
        missing = {*plan.windows} - done_windows(folder)
        if result is not None and {*result["windows_failed"]} in (missing, set()):
            continue
        if missing <= tried.get(name, set()):
            names.append(name)
    return names


def _outcomes(jobs: Mapping[str, Future[dict[str, Any]]]) -> list[Failure]:
    """Wait until slides are finished; return which are not, and why."""
    rows = []
    for name, job in jobs.items():
        try:
            result = job.result()
        except (ConfigError, DataError, OSError) as error:
            rows.append(_failed(name, error))
        else:
            area = result["area_mm2"][ALL]
            log.info("%s: %d nuclei on %.3g mm2 of tissue", name, result["nuclei"], area)
            if seams := _short(result.get("seams")):
                log.info("%s: steps across borders of windows in he.ome.tif are %s of those beside them", name, seams)
    return rows


def _failed(name: str, error: Exception) -> Failure:
    return {"slide": name, "window": "", "error": str(error)}


def _gathered(rows: list[Failure]) -> list[Failure]:
    return [row for own in from_all_ranks(rows) for row in own]


def write_failed(path: Path, failed: Sequence[Failure], tried: Collection[str]) -> None:
    """Write what could not be read, also by earlier runs on other slides; no file if there is nothing.

    Args:
        path: of the table.
        failed: rows of this run.
        tried: slides of this run. Rows of other slides stay while these exist.
    """
    before = [row for _, row in read_rows(path, list(FAILED), FAILED)] if path.is_file() else []
    rows = [row for row in before if row["slide"] not in tried and Path(row["path"]).exists()] + [*failed]
    if rows:
        write_csv(path, sorted(rows, key=lambda row: (row["slide"], row["window"].zfill(9))), FAILED)
    else:
        path.unlink(missing_ok=True)


def _failure(failed: Sequence[Failure], table: Path) -> str:
    """Return what could not be read, in a sentence, and the first reason."""
    slides = sorted({row["slide"] for row in failed if not row["window"]})
    windows = [row["slide"] for row in failed if row["window"]]
    parts = []
    if slides:
        names = ", ".join(slides[:3]) + (", ..." if len(slides) > 3 else "")
        parts.append(f"{len(slides)} slides could not be read: {names}")
    if windows:
        parts.append(f"{len(windows)} windows of {len({*windows})} slides do not decode, and are left out")
    return f"{'; '.join(parts)}. See {table}; the same command tries them again. The first: {failed[0]['error']}"


SUMMARY = (
    "slide", "case", "stain", "region", "class", "nuclei", "positive", "percent_positive", "h_score", "area_mm2",
    "nuclei_per_mm2", "windows_failed", "seams",
)  # fmt: skip


def summary(out: Path) -> list[dict[str, Any]]:
    """Return a row for each slide, region and class, and at the end rows for all slides together.

    Args:
        out: the folder of the run; all slides that are finished there count, whichever run finished them.
    """
    rows, whole, areas = [], [], 0.0
    for folder in folders_with_plans(out):
        result = read_result(folder)
        if result is None:
            continue
        start = {"slide": result["name"], "case": result["case"], "stain": result["stain"]}
        for region, stored in result["counts"].items():
            counts = {kind: Counts(**own) for kind, own in stored.items()}
            end = {"windows_failed": len(result["windows_failed"]), "seams": _short(result.get("seams"))}
            rows += _rows(start | {"region": region}, counts, result["area_mm2"][region], end)
            if region == ALL:
                whole.append(counts)
                areas += result["area_mm2"][region]
    return rows + _rows({"slide": "all slides", "region": ALL}, pooled(whole), areas, {})


def _short(seams: float | None) -> str:
    return "" if seams is None else f"{seams:.3f}"


def _rows(
    start: Mapping[str, str], counts: Mapping[str, Counts], area_mm2: float, end: Mapping[str, Any]
) -> list[dict[str, Any]]:
    return [
        {
            **start,
            "class": kind,
            "nuclei": own.nuclei,
            "positive": own.positive,
            "percent_positive": f"{own.percent_positive:.2f}" if own.nuclei else "",
            "h_score": f"{own.h_score:.2f}" if own.nuclei else "",
            "area_mm2": f"{area_mm2:.6g}",
            "nuclei_per_mm2": f"{own.nuclei / area_mm2:.6g}" if area_mm2 else "",
            **end,
        }
        for kind, own in counts.items()
    ]
