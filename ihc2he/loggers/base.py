"""Loggers with explicit arguments, so that a misspelt one is noticed; they work for resumed runs."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ihc2he.errors import ConfigError
from ihc2he.files import read_csv, write_csv
from ihc2he.internals.lightning import rank_zero_experiment
from ihc2he.internals.wandb import server
from ihc2he.loggers.lineage import outputs

log = logging.getLogger(__name__)

STEP = "trainer/global_step"  # Lightning's name for W&B's x axis; the same number as the column step of metrics.csv
_PATIENCE_S = 5  # with W&B's server


def forget_rows(file: Path, step: int) -> None:
    """Delete the rows of `metrics.csv` from a step on, for a run that repeats those steps."""
    if rows := read_csv(file):
        kept = [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < step]
        write_csv(file, kept, rows[0])


class Csv(Logger):
    """Writes scalars to `metrics.csv` in the run's folder; a resumed run continues the same file.

    Args:
        save_dir: the run's folder.
        flush_logs_every_n_steps: rows are written this often, and at the end.
    """

    def __init__(self, save_dir: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__()
        self._file = Path(save_dir) / "metrics.csv"
        self._every = flush_logs_every_n_steps
        self._rows: list[dict[str, Any]] = []  # rows that are not in the file yet
        self._columns: list[str] | None = None  # of the file; None = not read yet

    @property
    def name(self) -> str:
        """No name: the folder has one."""
        return ""

    @property
    def version(self) -> str:
        """No version: the folder has one."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._file.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: they are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Store a row of values."""
        step = len(self._rows) if step is None else step
        self._rows.append({**{key: getattr(value, "item", lambda v=value: v)() for key, value in metrics.items()},
                           "step": step})  # fmt: skip
        if (step + 1) % self._every == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the rows since the last time; new columns are added to the file."""
        if not self._rows:
            return
        if self._columns is None:
            self._columns = _repair(self._file)
        columns = self._columns
        if new := {key for row in self._rows for key in row}.difference(columns):
            self._columns = sorted({*columns, *new})
            write_csv(self._file, [*read_csv(self._file), *self._rows], self._columns)
        else:
            with self._file.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, columns).writerows(self._rows)
        self._rows = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the remaining rows."""
        self.save()


def _repair(file: Path) -> list[str]:
    """Return the columns of a CSV file, none if there is no file; remove an incomplete line of a killed run."""
    if not file.is_file():
        return []
    os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
    with file.open(newline="", encoding="utf-8") as stream:
        return next(csv.reader(stream), [])


class Wandb(WandbLogger):
    """Weights & Biases; offline, with one line that says so, if nobody is logged in.

    The id of the run is derived from its folder, so that a resumed run continues its curves. Bundles are uploaded as
    artifacts, and checkpoints as references to their files. Online, `inputs` among the
    hyperparameters (see `ihc2he.loggers.lineage.inputs`) are declared as such; offline W&B cannot.

    Args:
        save_dir: the run's folder.
        project: of W&B.
        name: of the run; None = the end of its folder's path.
        group: of runs, for instance those of a sweep.
        tags: shown with the run.
        entity: user or team.
        offline: None = offline if there is no API key.
        notes: free text.
        log_checkpoints: also upload the checkpoints, which are large.

    Attributes:
        arguments: for opening the run in W&B.
        summaries: which value the run's summary has for a key, or for all keys that begin with it, instead of the last
            one: `min`, `max` or `mean`.
    """

    _open: ClassVar[Any] = None  # the run that this process has started last

    def __init__(
        self,
        save_dir: str,
        project: str = "ihc2he",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        offline: bool | None = None,
        notes: str | None = None,
        log_checkpoints: bool = False,
    ) -> None:
        if offline is None:
            offline = _offline_by_environment()
        super().__init__(name=name or Path(save_dir).name, save_dir=save_dir, id=run_id(save_dir), project=project)
        self.arguments: dict[str, Any] = {
            "name": name or Path(save_dir).name,
            "project": project,
            "dir": save_dir,
            "id": run_id(save_dir),
            "group": group,
            "tags": tags,
            "entity": entity,
            "notes": notes,
            "mode": "offline" if offline else os.environ.get("WANDB_MODE", "online"),  # which may be `disabled`
            "resume": None if offline else "allow",
        }
        self._run: Any = None
        self._log_checkpoints = log_checkpoints
        self._known: set[str] = set()  # hashes of the artifacts of this run
        self._defined: set[str] = set()
        self.summaries = {"throughput": "mean", "throughput/gpu_memory_gb": "max"}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of this logger; a run that an earlier job of this process has left open is ended first."""
        if self._run is None:
            if Wandb._open is not None:
                Wandb._open.finish()
            Wandb._open = self._run = self._start()
        return self._run

    def _start(self) -> Any:
        """Open the run: offline where W&B does not let it in, for a training is worth more than its curves."""
        import wandb

        try:
            run = wandb.init(**self.arguments)
        except wandb.Error as error:
            log.warning("W&B: %s", _OFFLINE.format(" ".join(str(error).split())[:200].rstrip(".")))
            self.arguments |= {"mode": "offline", "resume": None}
            run = wandb.init(**self.arguments)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration, and declare the run's inputs if W&B is online."""
        super().log_hyperparams(params)
        if self.arguments["mode"] != "offline":
            for found in params.get("inputs", []):
                self._add(found, self.experiment.use_artifact)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values; for keys with a best value NaN is not logged, because W&B would keep NaN as the best."""
        for key in metrics.keys() - self._defined:  # one by one: with several patterns the choice would be random
            self._defined.add(key)
            if kept := self._summary_of(key):
                self.experiment.define_metric(key, step_metric=STEP, summary=kept)
        shown = {key: value for key, value in metrics.items() if not (_is_nan(value) and self._summary_of(key))}
        super().log_metrics(shown, step)

    def _summary_of(self, key: str) -> str | None:
        return self.summaries.get(key) or self.summaries.get(key.rpartition("/")[0])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Log the outputs of the run as artifacts; mark a failed run as failed."""
        if self._run is None:
            return
        if status != "success":
            self._run.finish(exit_code=1)
            return
        for found in outputs(str(self.save_dir)):
            self._add(found, self.experiment.log_artifact)

    def _add(self, found: Mapping[str, Any], declare: Callable[..., Any]) -> None:
        """Log an artifact to W&B, once; an error here must not stop a training."""
        if found["hash"] in self._known or not Path(found["path"]).exists():
            return
        self._known.add(found["hash"])
        try:
            declare(_artifact(found, self._log_checkpoints), aliases=_aliases(found))
        except Exception as error:
            log.warning("W&B did not accept the %s %s (%s); run.json lists it.", found["kind"], found["path"], error)


def run_id(folder: str | Path) -> str:
    """Return W&B's id of the run in a folder."""
    return hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]


def _artifact(found: Mapping[str, Any], whole: bool) -> Any:
    """Return the artifact of an input or output; equal contents are the same version, whichever run adds them.

    Args:
        found: an entry of `inputs` or `outputs`.
        whole: upload a checkpoint, not only a reference to it.
    """
    import wandb

    path, facts = Path(found["path"]), {"hash": found["hash"], "made_by": found["made_by"]}
    if found["kind"] == "bundle":
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        artifact = wandb.Artifact(_plain(path.name), "model", metadata=config | facts)
        artifact.add_dir(str(path), policy="immutable", skip_cache=True)  # no copies of it in the user's home folder
    elif found["kind"] == "checkpoint":
        owner = f"-{run_id(found['made_by'])}" if found["made_by"] else ""
        artifact = wandb.Artifact(f"checkpoint{owner}", "checkpoint", metadata=facts)
        if whole:
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        else:
            artifact.add_reference(path.as_uri())
    else:
        artifact = wandb.Artifact(_plain(path.parent.name), "dataset", metadata=facts)
        artifact.add_reference(path.as_uri(), checksum=False)  # it may be many GB
        with artifact.new_file("hash.txt") as file:  # so another store in the same folder is another version
            file.write(str(found["hash"]))
    return artifact


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _aliases(found: Mapping[str, Any]) -> list[str]:
    role = Path(found["path"]).stem.partition("_")[0]
    return ["latest", role] if found["kind"] == "checkpoint" and role in ("best", "last") else ["latest"]


def _plain(name: str) -> str:
    """Return a name with the characters that W&B accepts."""
    return re.sub(r"[^\w.-]", "_", name)


_OFFLINE = "{}, so the run is kept offline; upload it later with `wandb sync`."


def _offline_by_environment() -> bool:
    """Return whether W&B must work offline, and say so once if the user has not chosen it."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode == "offline"
    import wandb

    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    why = "" if wandb.login(prompt=False, verify=False) else "nobody is logged in"
    if not why and first and not _answers(server()):
        why = f"{server()} does not answer within {_PATIENCE_S} s"
    if why and first:
        log.info("W&B: %s", _OFFLINE.format(why))
    return bool(why)


def _answers(url: str) -> bool:
    """Return whether a URL answers, even with an error, which W&B then reports."""
    heard: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=_PATIENCE_S):
                heard.append(True)
        except HTTPError:
            heard.append(True)
        except (OSError, HTTPException, ValueError) as error:  # W&B itself checks certificates in another way
            heard.append(isinstance(getattr(error, "reason", None), ssl.SSLError))

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout
    thread.start()
    thread.join(_PATIENCE_S)
    return any(heard)


class TensorBoard(TensorBoardLogger):
    """TensorBoard event files in `tensorboard/` of the run's folder; needs `pip install ihc2he[tensorboard]`.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str) -> None:
        try:
            super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            msg = "logger=tensorboard needs TensorBoard: pip install 'ihc2he[tensorboard]'"
            raise ConfigError(msg) from error
