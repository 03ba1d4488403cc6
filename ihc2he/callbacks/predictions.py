"""The results of a prediction: files for every image, and a table of counts for all images."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ihc2he.callbacks.claiming import claim, plain
from ihc2he.callbacks.imagefiles import KINDS, ImageFiles, read_json, sweep, withdraw, write_json
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.files import write_csv
from ihc2he.nuclei.counts import THRESHOLDS, Counts, check_thresholds, pooled
from ihc2he.ranks import from_all_ranks

if TYPE_CHECKING:
    from ihc2he.models.pipeline.prediction import Prediction

log = logging.getLogger(__name__)

MAX_PENDING_PX = 1 << 24  # of images that wait to be written; more would use too much memory


class PredictionWriter(Callback):
    """Writes the files of each image as it is predicted, and at the end the tables of all images.

    The files of an image are `he/NAME.png`, `instances/NAME.png` (16 bits; a 32-bit `.tif` above 65,535 nuclei),
    `geojson/NAME.geojson`, `nuclei/NAME.csv`, `overlay/NAME.png` and, written last, `done/NAME.json`. The files of
    the run are `settings.json`, `summary.csv` with all finished images in the folder, and `failed.csv` if images could
    not be read. A later run continues in the folder. Other settings, or a second run at the same time, are refused.

    Args:
        out: the folder.
        thresholds: mean DAB optical density above which a nucleus is weak (and positive), moderate, strong.
        write: which of the five kinds of files.

    Raises:
        ConfigError: for thresholds that do not increase, or an unknown kind.
    """

    def __init__(self, out: str, thresholds: Sequence[float] = THRESHOLDS, write: Sequence[str] = KINDS) -> None:
        check_thresholds(thresholds)
        for kind in write:
            if kind not in KINDS:
                msg = f"callbacks.writer.write: there is no '{kind}'.{did_you_mean(kind, KINDS)}"
                raise ConfigError(msg)
        self.out = Path(out).expanduser()
        self.thresholds = list(thresholds)
        self.write = list(write)
        self._lock = ExitStack()
        self._settings: dict[str, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[Future[ImageFiles], int]] = deque()
        self._begun: dict[str, Future[ImageFiles]] = {}  # images of which strips are to come, with their last job
        self._written = 0
        self._failed: dict[str, dict[str, str]] = {}  # by name

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Lock the folder, on the first rank.

        Raises:
            ConfigError: if another run is using it, or it was begun with other settings.
        """
        if stage != "predict":
            return
        settings = {**pl_module.fingerprint, "thresholds": self.thresholds, "write": sorted(self.write)}
        self._settings = plain(settings)
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        self._pending.clear()
        self._written, self._failed = 0, {}
        problem = self._claim() if trainer.is_global_zero else None
        problem = trainer.strategy.broadcast(problem)  # so that no rank waits for one that has stopped
        if problem:
            raise ConfigError(problem)

    def _claim(self) -> str | None:
        """Take the lock; return why the folder must not be used, or None."""
        problem = claim(self.out, self._settings, self._lock)
        if problem is None:
            sweep(self.out)
        return problem

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings, before the first image."""
        if trainer.is_global_zero:
            write_json(self.out / "settings.json", self._settings)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the results of the batch, in threads."""
        predictions: Iterable[Prediction] = outputs
        for prediction in predictions:
            name = prediction.name
            if name in self._failed:
                continue
            before = self._begun.pop(name, None)
            error = prediction.error or (None if before else self._too_long(name))
            if error is not None:
                if before is not None:
                    before.result().abandon()
                if prediction.error is not None:
                    withdraw(self.out, name)
                self._failed[name] = {"name": name, "path": prediction.path, "error": error}
                continue
            assert prediction.image is not None
            assert self._pool is not None
            self._wait(MAX_PENDING_PX)
            job = self._pool.submit(self._add, before, prediction)
            self._pending.append((job, prediction.image.shape[0] * prediction.image.shape[1]))
            if prediction.last:
                self._written += 1
            else:
                self._begun[name] = job

    def _add(self, before: Future[ImageFiles] | None, strip: Prediction) -> ImageFiles:
        """Write a strip behind those before it."""
        if before is None:
            files = ImageFiles(self.out, strip, self.write, self.thresholds, _fingerprint(self._settings))
        else:
            files = before.result()
        try:
            files.add(strip)
        except BaseException:
            files.abandon()
            raise
        return files

    def _too_long(self, name: str) -> str | None:
        """Return why no files can have the name of an image, or None."""
        most = os.pathconf(self.out, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        *folders, last = name.split("/")
        longest = max(len(os.fsencode(part)) for part in (*folders, f".{last}.{os.getpid()}.part.geojson"))
        if longest <= most:
            return None
        return (
            f"{last}: the name is too long: with what the files of the results add to it {longest} bytes, where this "
            f"disk has {most}. Shorten it."
        )

    def _wait(self, most_px: int) -> None:
        """Wait until at most this many pixels are waiting to be written; raise errors of the others."""
        while self._pending and (self._pending[0][0].done() or sum(n for _, n in self._pending) > most_px):
            self._pending.popleft()[0].result()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the tables of all images, on the first rank; here, because a run without new images only comes here.

        Raises:
            DataError: if images could not be read.
        """
        if stage != "predict":
            return
        self._wait(0)
        self._close()
        parts = from_all_ranks((self._written, list(self._failed.values())))
        if not trainer.is_global_zero:
            return
        write_csv(self.out / "summary.csv", summary(self.out), SUMMARY)
        failed = sorted((row for _, rows in parts for row in rows), key=lambda row: row["name"])
        if failed:
            write_csv(self.out / "failed.csv", failed)
        else:
            (self.out / "failed.csv").unlink(missing_ok=True)
        self._lock.close()
        log.info("Predictions: %s", self.out)
        if failed:
            total = len(failed) + sum(written for written, _ in parts)
            names = ", ".join(row["path"] for row in failed[:3]) + (", ..." if len(failed) > 3 else "")
            msg = f"{len(failed)} of {total} images could not be read: {names}; see {self.out / 'failed.csv'}."
            raise DataError(msg)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the images that are being written, and unlock the folder."""
        self._close()
        self._lock.close()

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        for job in self._begun.values():
            if job.exception() is None:
                job.result().abandon()
        self._begun.clear()


SUMMARY = (
    "image", "class", "nuclei", "positive", "percent_positive", "h_score", "area_mm2", "nuclei_per_mm2",
    "percent_ink",
)  # fmt: skip


def summary(out: Path) -> list[dict[str, Any]]:
    """Return a row for each image and class, and at the end rows for all images together.

    Percentages and H-scores are empty if there are no nuclei.

    Args:
        out: the folder of the run; all images in its `done/` count, whichever run wrote them.
    """
    rows, images, areas, inks = [], [], [], []
    for path in sorted(out.glob("done/**/*.json")):
        record = read_json(path)
        counts = {kind: Counts(**own) for kind, own in record["counts"].items()}
        name = path.relative_to(out / "done").as_posix().removesuffix(".json")
        ink = record.get("ink_share", 0.0)  # version 0.1.0 did not look for any
        rows += _rows(name, counts, record["area_mm2"], ink)
        images.append(counts)
        areas.append(record["area_mm2"])
        inks.append(ink * record["area_mm2"])
    return rows + _rows("all images", pooled(images), sum(areas), sum(inks) / sum(areas) if areas else 0.0)


def _rows(name: str, counts: Mapping[str, Counts], area_mm2: float, ink_share: float) -> list[dict[str, Any]]:
    """Return a row per class; the area is that of the image, of which ink hides a share."""
    area_mm2 *= 1 - ink_share
    return [
        {
            "image": name,
            "class": kind,
            "nuclei": own.nuclei,
            "positive": own.positive,
            "percent_positive": f"{own.percent_positive:.2f}" if own.nuclei else "",
            "h_score": f"{own.h_score:.2f}" if own.nuclei else "",
            "area_mm2": f"{area_mm2:.6g}",
            "nuclei_per_mm2": f"{own.nuclei / area_mm2:.6g}" if area_mm2 else "",
            "percent_ink": f"{100 * ink_share:.2f}",
        }
        for kind, own in counts.items()
    ]


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
