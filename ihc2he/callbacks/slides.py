"""The results of slides: nuclei window by window, then the files of each slide, and at the end those of all."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.callbacks.claiming import claim, plain
from ihc2he.callbacks.imagefiles import write_json
from ihc2he.callbacks.slidefiles import ALL, KINDS, Options, assemble
from ihc2he.data.plans import done_windows, folders_with_plans, read_plan, read_result, read_tissue, window_file
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

MAX_PENDING = 16  # windows that wait to be written


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
        self._pending: deque[Future[None]] = deque()
        self._assembled: dict[str, Future[Any]] = {}
        self._tissues: dict[str, Area] = {}
        self._failed: list[dict[str, str]] = []
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
            self._pending.append(self._threads.submit(self._write, prediction))
            self._wait(MAX_PENDING)

    def _write(self, prediction: WindowPrediction) -> None:
        """Write what a window has; with the last of a slide, its files."""
        plan, folder = prediction.plan, self.out / prediction.name
        assert prediction.found is not None
        assert prediction.image is not None
        if prediction.name not in self._tissues:
            self._tissues = {prediction.name: read_tissue(folder, plan)}
        block = plan.blocks[prediction.number]
        kept = kept_nuclei(
            prediction.found, block, plan.grid, plan.scale, plan.grid_mpp, prediction.image, plan.white,
            self._tissues[prediction.name], prediction.agreement_n, self.options.thresholds[0],
        )  # fmt: skip
        path = window_file(folder, prediction.number)
        if prediction.he is not None and "he" in self.options.write:
            (left, right), (top, bottom) = block.core_x, block.core_y
            x, y = block.columns.start, block.rows.start
            write_png(path.with_suffix(".png"), prediction.he[top - y : bottom - y, left - x : right - x])
        write_window(path, kept)
        if len(done_windows(folder)) == len(plan.windows):
            self._assembled[prediction.name] = self._pool.submit(assemble, folder, self.options)

    def _wait(self, most: int) -> None:
        """Wait until at most this many windows are waiting to be written; raise errors of the others."""
        while self._pending and (self._pending[0].done() or len(self._pending) > most):
            self._pending.popleft().result()

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Finish the slides, and write the tables of all, on the first rank; a run without new windows only comes here.

        Raises:
            DataError: if slides or windows could not be read.
        """
        if stage != "predict":
            return
        self._wait(0)
        self.options = replace(self.options, classes=tuple(pl_module.class_names))
        failed = [row for rows in from_all_ranks(self._failed) for row in rows]
        folders = [folder for folder in folders_with_plans(self.out) if _may_be_finished(self.out, folder, failed)]
        for folder in folders[trainer.global_rank :: trainer.world_size]:
            name = folder.relative_to(self.out).as_posix()
            if name not in self._assembled:
                self._assembled[name] = self._pool.submit(assemble, folder, self.options)
        own = [row for name, job in self._assembled.items() if (row := _outcome(name, job)) is not None]
        failed += [row for rows in from_all_ranks(own) for row in rows]
        self._close()
        if not trainer.is_global_zero:
            return
        write_csv(self.out / "summary.csv", summary(self.out), SUMMARY)
        if failed:
            failed.sort(key=lambda row: (row["slide"], row["window"].zfill(9)))
            write_csv(self.out / "failed.csv", failed)
        else:
            (self.out / "failed.csv").unlink(missing_ok=True)
        write_report(self.out)
        self._lock.close()
        log.info("Slides: %s", self.out)
        if failed:
            raise DataError(_failure(failed, self.out / "failed.csv"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the windows that are being written, and unlock the folder."""
        self._close()
        self._lock.close()

    def _close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
            self._pool.shutdown(cancel_futures=True)
            self._threads = None


def _may_be_finished(out: Path, folder: Path, failed: Sequence[Mapping[str, str]]) -> bool:
    """Return whether all windows of a slide were tried, and its files are not of all that are done."""
    plan, result = read_plan(folder), read_result(folder)
    name = folder.relative_to(out).as_posix()
    if plan is None or plan.name != name:
        return False
    missing = {*plan.windows} - done_windows(folder)
    if result is not None and {*result["windows_failed"]} in (missing, set()):
        return False
    return missing <= {int(row["window"]) for row in failed if row["slide"] == name and row["window"]}


def _outcome(name: str, job: Future[Any]) -> dict[str, str] | None:
    """Wait until a slide is finished; return why it is not."""
    try:
        result = job.result()
    except DataError as error:
        return {"slide": name, "window": "", "error": str(error)}
    if result is not None:
        area = result["area_mm2"][ALL]
        log.info("%s: %d nuclei on %.3g mm2 of tissue", name, result["nuclei"], area)
    return None


def _failure(failed: Sequence[Mapping[str, str]], table: Path) -> str:
    """Return what could not be read, in a sentence."""
    slides = sorted({row["slide"] for row in failed if not row["window"]})
    windows = [row["slide"] for row in failed if row["window"]]
    parts = []
    if slides:
        names = ", ".join(slides[:3]) + (", ..." if len(slides) > 3 else "")
        parts.append(f"{len(slides)} slides could not be read: {names}")
    if windows:
        parts.append(f"{len(windows)} windows of {len({*windows})} slides do not decode, and are left out")
    return f"{'; '.join(parts)}. See {table}; the same command tries them again."


SUMMARY = (
    "slide", "case", "stain", "region", "class", "nuclei", "positive", "percent_positive", "h_score", "area_mm2",
    "nuclei_per_mm2", "windows_failed",
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
            rows += _rows(start | {"region": region}, counts, result["area_mm2"][region], len(result["windows_failed"]))
            if region == ALL:
                whole.append(counts)
                areas += result["area_mm2"][region]
    return rows + _rows({"slide": "all slides", "region": ALL}, pooled(whole), areas, "")


def _rows(start: Mapping[str, str], counts: Mapping[str, Counts], area_mm2: float, failed: Any) -> list[dict[str, Any]]:
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
            "windows_failed": failed,
        }
        for kind, own in counts.items()
    ]
