"""The files of one predicted image, written strip by strip."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError, DataError
from ihc2he.files import write_text
from ihc2he.images.writing import PngRows, png_rows, write_instance_rows, write_png
from ihc2he.nuclei.counts import count_by_class
from ihc2he.nuclei.drawing import Overlay
from ihc2he.nuclei.geojson import write_geojson
from ihc2he.nuclei.instances import foreground
from ihc2he.nuclei.table import IHC_STAINS, NucleiTable, joined, nuclei_table, write_table

if TYPE_CHECKING:
    from ihc2he.models.pipeline.prediction import Prediction

log = logging.getLogger(__name__)

KINDS = ("he", "instances", "geojson", "nuclei", "overlay")
OVERLAY_PX = (400, 4096)  # smallest and largest size of an overlay's longer side
INK_TO_SAY = 0.01  # share of an image from which ink is worth a line in the log


class ImageFiles:
    """Writes the files of an image; the one that marks it as complete is written last.

    Args:
        out: the folder of the run.
        first: the first strip of the image; results of an earlier version of the image are deleted.
        write: which of `KINDS`.
        thresholds: of the mean DAB optical density, for weak, moderate, strong.
        fingerprint: of the settings of the run.

    Raises:
        ConfigError: if the folder has results of another image of this name.
    """

    def __init__(
        self, out: Path, first: Prediction, write: Sequence[str], thresholds: Sequence[float], fingerprint: str
    ) -> None:
        _refuse_other_source(out, first)
        withdraw(out, first.name)
        self._out, self._name, self._shape = out, first.name, first.whole_shape
        self._write, self._thresholds, self._fingerprint = write, thresholds, fingerprint
        self._stat = Path(first.path).stat()  # before the last strip, so that a later change is seen next time
        self._open = ExitStack()
        self._he: PngRows | None = None
        if "he" in write and first.he is not None:
            self._he = self._open.enter_context(png_rows(self._path("he", ".png"), (*self._shape, 3)))
        self._overlay = Overlay(self._shape, OVERLAY_PX) if "overlay" in write else None
        self._tables: list[NucleiTable] = []
        self._types_n = np.zeros(0, np.int64)  # of all nuclei so far
        self._instances: list[tuple[int, bytes]] = []  # height and packed map of each strip

    def add(self, strip: Prediction) -> None:
        """Write what can be written of the next strip, and all the rest after the last."""
        assert strip.image is not None
        assert strip.nuclei is not None
        self._tables.append(self._table(strip))
        self._types_n = np.append(self._types_n, strip.nuclei.types_n)
        final_hw = strip.final_hw
        if self._he is not None:
            assert strip.he is not None
            self._he.write(strip.he)
        if "instances" in self._write:
            self._instances.append((len(final_hw), zlib.compress(np.ascontiguousarray(final_hw).data, 1)))
        if self._overlay is not None:
            pixels = foreground(final_hw)
            types_n = self._types_n[pixels.ids_n - 1]
            self._overlay.add(strip.top, strip.image[: len(final_hw)], final_hw, pixels, types_n)
        if strip.last:
            self._finish(strip)

    def abandon(self) -> None:
        """Delete what was written of an image that will not be complete."""
        self._open.pop_all().__exit__(DataError, DataError("abandoned"), None)

    def _path(self, kind: str, suffix: str) -> Path:
        return self._out / kind / f"{self._name}{suffix}"

    def _table(self, strip: Prediction) -> NucleiTable:
        nuclei = strip.nuclei
        assert nuclei is not None
        table = nuclei_table(
            nuclei.inst_hw, nuclei.types_n, nuclei.shares_n,
            mpp=strip.mpp, image=strip.image, stains=IHC_STAINS, white=strip.white, corner=(0, strip.top),
        )  # fmt: skip
        extra: dict[str, NDArray] = {"score": nuclei.scores_n}
        if nuclei.agreement_n is not None:
            extra["agreement"] = nuclei.agreement_n
        extra["positive"] = (table.stain_od["dab"] >= self._thresholds[0]).astype(np.int64)
        return replace(table, extra=extra)

    def _finish(self, last: Prediction) -> None:
        table = joined(self._tables)
        files = []
        self._open.close()
        if self._he is not None:
            files.append(self._path("he", ".png"))
        if "instances" in self._write:
            files.append(self._path("instances", ".png" if len(table) < 1 << 16 else ".tif"))
            write_instance_rows(files[-1], self._shape, self._unpacked())
        if "geojson" in self._write:
            files.append(self._path("geojson", ".geojson"))
            write_geojson(files[-1], table, last.classes)
        if "nuclei" in self._write:
            files.append(self._path("nuclei", ".csv"))
            write_table(files[-1], table, last.classes)
        if self._overlay is not None:
            files.append(self._path("overlay", ".png"))
            write_png(files[-1], self._overlay.picture(last.classes, table.types_n))
        if last.ink_share >= INK_TO_SAY:
            log.warning(
                "%s: ink covers %.0f %% of the image; nuclei under it are not counted, nor is its area.",
                last.path, 100 * last.ink_share,
            )  # fmt: skip
        counts = count_by_class(table, last.classes, self._thresholds)
        record = {
            "source": str(Path(last.path).absolute()),
            "mpp": last.mpp,
            "size": self._stat.st_size,
            "mtime_ns": self._stat.st_mtime_ns,
            "settings": self._fingerprint,
            "files": [file.relative_to(self._out).as_posix() for file in files],
            "white": list(last.white),
            "ink_share": last.ink_share,
            "area_mm2": self._shape[0] * self._shape[1] * last.mpp**2 / 1e6,
            "counts": {kind: own._asdict() for kind, own in counts.items()},
        }
        write_json(done_file(self._out, self._name), record)

    def _unpacked(self) -> Iterator[NDArray[np.int32]]:
        for height, packed in self._instances:
            yield np.frombuffer(zlib.decompress(packed), np.int32).reshape(height, self._shape[1])


def _refuse_other_source(out: Path, prediction: Prediction) -> None:
    """Raise a ConfigError where an image of this name has results that are of another file."""
    done = done_file(out, prediction.name)
    source = Path(read_json(done)["source"]) if done.is_file() else Path(prediction.path)
    if source.exists() and source.resolve() != Path(prediction.path).resolve():
        msg = (
            f"out={out} has the results of another image called {prediction.name}: {source}. Those of "
            f"{prediction.path} would take their place. Choose another out=, one for each folder of images."
        )
        raise ConfigError(msg)


def withdraw(out: Path, name: str) -> None:
    """Delete the results of an earlier version of an image, so that they are not taken for those of this one."""
    done = done_file(out, name)
    if done.is_file():
        files = read_json(done)["files"]
        done.unlink()
        for file in files:
            (out / file).unlink(missing_ok=True)


def sweep(out: Path) -> None:
    """Delete the half-written files that a killed run has left; no other run may be writing."""
    for kind in (*KINDS, "done"):
        for file in (out / kind).glob("**/.*.[0-9]*.part.*"):
            file.unlink()


def done_file(out: Path, name: str) -> Path:
    """Return the file that marks an image as complete."""
    return out / "done" / f"{name}.json"  # not with_suffix: names may have dots


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Raises:
        DataError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        msg = f"{path} cannot be read ({error}). Delete it and repeat the command."
        raise DataError(msg) from error
