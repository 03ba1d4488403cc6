"""Fine-tuning on corrected tiles as a child process, and what it changed on these tiles."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.app.analysis import Networks, Say, analyse
from ihc2he.app.saving import tiles
from ihc2he.images.decoding import read_image
from ihc2he.images.labels import read_labels
from ihc2he.images.source import ArraySource
from ihc2he.metrics.panoptic import panoptic_stats, qualities
from ihc2he.nuclei.instances import instance_types, overlaps
from ihc2he.typed import quote

_PLAIN = re.compile(r"[\w./:@-]+", re.ASCII)
_EPOCH = re.compile(r"Epoch (\d+) of (\d+)(.*)")
_SHOWN = 6  # last lines of a training that failed
_GRACE_S = 10  # for a training to end by itself


def command(folder: Path, networks: Networks, run: Path | None = None) -> list[str]:
    """Return the command that fine-tunes the weights on a folder of corrected tiles, without the interpreter.

    Args:
        folder: as `ihc2he.app.saving` writes it.
        networks: with the weights to start from.
        run: folder of the run; None: as the configuration has it.
    """
    segmenter = networks.segmenter
    settings = {key: value for key, value in segmenter.node.items() if key != "_target_"}
    rows = tiles(folder)
    return [
        "-m", "ihc2he.train", "experiment=nuclei_finetune", f"data.root={_text(folder)}",
        f"data.mpp={rows[-1]['um_per_px']}",
        *([f"data.classes=[{','.join(map(_text, segmenter.classes))}]"] if segmenter.classes else []),
        *([] if networks.weights == "builtin" else [f"model.init={_text(networks.weights)}"]),
        *(f"model.decoder.{key}={value}" for key, value in settings.items()),
        f"data.store={_text(folder.with_name('store'))}", "data.rebuild=true", "stages=[fit]", "logger=csv",
        *([f"hydra.run.dir={_text(run)}"] if run else []),
    ]  # fmt: skip


def _text(value: object) -> str:
    """Return a text as Hydra reads it, in quotes where it has to be."""
    return str(value) if _PLAIN.fullmatch(str(value)) else quote(str(value))


def shown(arguments: list[str]) -> str:
    """Return a command as one types it."""
    return shlex.join(["python", *arguments])


def uses(weights: Path, out: Path, mpp: str) -> list[str]:
    """Return the commands that use fine-tuned weights: on a folder of images, and in the page.

    Args:
        weights: the bundle.
        out: folder for corrections.
        mpp: um/px of the corrected tiles.
    """
    predict = ["experiment=predict_tiles", "data.path=FOLDER", f"data.mpp={mpp}", "out=found"]
    return [
        shown(["-m", "ihc2he.train", *predict, f"model.segmenters.centres.weights={_text(weights)}"]),
        shown(["-m", "ihc2he.app", f"weights={weights}", f"out={out}"]),
    ]


class Tuning:
    """A training that runs beside the page.

    Args:
        folder: of the corrected tiles.
        networks: with the weights to start from.
        run: folder of the run.
        extra: further settings.

    Attributes:
        comparison: what `compared` has returned about it, if it was asked.
    """

    comparison: dict[str, Any] | None = None

    def __init__(self, folder: Path, networks: Networks, run: Path, extra: tuple[str, ...] = ()) -> None:
        self.folder, self.run = folder, run
        self.arguments = command(folder, networks, run)
        self._mpp = tiles(folder)[-1]["um_per_px"]
        run.mkdir(parents=True)
        self._log = run / "output.txt"
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments, *extra], stdout=stream, stderr=subprocess.STDOUT, cwd=run,
                env={**os.environ, "WANDB_MODE": "offline", "COLUMNS": "160"},
            )  # fmt: skip

    @property
    def bundle(self) -> Path:
        """The fine-tuned weights."""
        return self.run / "bundles" / "segmenter"

    @property
    def is_running(self) -> bool:
        """Whether the training goes on."""
        return self._process.poll() is None

    def status(self) -> dict[str, Any]:
        """Return how far it is, as plain values."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        epochs = _EPOCH.findall(text)
        done, total, said = epochs[-1] if epochs else (0, 0, "")
        state = "running" if self.is_running else "done" if self.bundle.is_dir() else "failed"
        return {
            "state": state, "done": int(done), "total": int(total), "said": said.strip(" :,"), "run": str(self.run),
            "error": "\n".join(text.splitlines()[-_SHOWN:]) if state == "failed" else "",
            "weights": str(self.bundle) if state == "done" else None,
            "uses": uses(self.bundle, self.folder.parent, self._mpp) if state == "done" else [],
            "comparison": self.comparison,
        }  # fmt: skip

    def stop(self) -> None:
        """End it."""
        if self.is_running:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def compared(folder: Path, before: Networks, weights: Path, say: Say) -> dict[str, Any]:
    """Return what two networks find on corrected tiles: nuclei, F1 at an IoU above .5, and how many have their type.

    `types` is the share with the right type of the nuclei that were found; None without types.

    The tiles are those that the second one was trained on.

    Args:
        folder: of the tiles.
        before: with the first weights.
        weights: the second ones.
        say: is told of the progress.
    """
    rows = tiles(folder)
    both = {"before": before, "after": Networks(str(weights))}
    n_classes = len(before.segmenter.classes)
    sums = {name: np.zeros((n_classes + 1, 4)) for name in both}
    for number, row in enumerate(rows):
        say(number, len(rows))
        image = read_image(folder / "images" / f"{row['name']}.png")
        true_hw = _labels(folder / "instances", row["name"])
        types_t = instance_types(true_hw, _labels(folder / "types", row["name"]))[0] if n_classes else None
        for name, networks in both.items():
            source = ArraySource(image, None, row["name"])
            found = analyse(networks, source, float(row["um_per_px"]), "none", None, lambda *_: None)
            types_p = found.nuclei.types_n if n_classes else None
            sums[name] += panoptic_stats(overlaps(true_hw, found.nuclei.inst_hw), types_t, types_p, n_classes)
    return {
        "tiles": len(rows),
        "corrected": int(sums["before"][0, 0] + sums["before"][0, 2]),
        **{name: _judged(own) for name, own in sums.items()},
    }


def _labels(folder: Path, name: str) -> NDArray[np.int32]:
    (file,) = folder.glob(f"{name}.*")
    return read_labels(file)


def _judged(stats_cs: NDArray[np.float64]) -> dict[str, Any]:
    found, invented = stats_cs[0, :2]
    typed = float(stats_cs[1:, 0].sum() / found) if len(stats_cs) > 1 and found else None
    return {"nuclei": int(found + invented), "f1": float(qualities(stats_cs[0])[0]), "types": typed}


def trainable(networks: Networks) -> bool:
    """Return whether `experiment=nuclei_finetune` can go on from these weights."""
    return (
        str(networks.segmenter.node.get("_target_", "")).endswith("CentresDecoder") and networks.segmenter.members == 1
    )
