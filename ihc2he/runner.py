"""Runs one checked configuration: seed, build, run the stages in order, and record what was done."""

from __future__ import annotations

import json
import logging
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf import OmegaConf

from ihc2he.build import build
from ihc2he.callbacks.bundles import best_keeper
from ihc2he.callbacks.checkpoint import CompleteCheckpoints
from ihc2he.callbacks.monitors import CheckMonitors
from ihc2he.callbacks.results import weights_in_use
from ihc2he.callbacks.sigterm import EndOnSigterm
from ihc2he.callbacks.testing import CheckTestTiles
from ihc2he.config import Stage
from ihc2he.datainfo import info_of
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.files import write_text
from ihc2he.folders import alone_in, check_continuation, earlier_record, joined
from ihc2he.internals.lightning import CHATTY, next_step, silence
from ihc2he.internals.torch import cpu_multiplies_bf16, shared_memory_full
from ihc2he.launching import (
    cluster_environments,
    out_of_shared_memory,
    own_rank,
    processes_of,
    resume_command,
    warn_of_little_shared_memory,
)
from ihc2he.loggers.base import forget_rows
from ihc2he.loggers.lineage import inputs, outputs
from ihc2he.metrics.cards import card_of
from ihc2he.models.checkpoint import read_checkpoint
from ihc2he.models.task import Task, as_task
from ihc2he.report.page import write_report

log = logging.getLogger(__name__)

RECORDED_PACKAGES = ("ihc2he", "torch", "lightning", "hydra-core", "torchmetrics", "albumentations", "piq", "numpy")


def run(cfg: dict[str, Any]) -> float | None:
    """Build what the configuration describes, run its stages, and return the metric that a sweep optimises.

    Args:
        cfg: a composed, resolved and checked configuration of plain values.

    Raises:
        ConfigError: for a stage that cannot run, a Trainer that does not work here, or a metric that was not logged.
        DataError: if the loading processes have no memory to hand over their batches.
    """
    try:
        return _run(cfg)
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        if shared_memory_full(error):
            raise DataError(out_of_shared_memory()) from error
        raise


def _run(cfg: dict[str, Any]) -> float | None:
    folder = Path(cfg["paths"]["output_dir"])
    first = own_rank() == 0
    logging.getLogger("ihc2he").setLevel(logging.INFO if first else logging.ERROR)
    for chatty in CHATTY:
        logging.getLogger(chatty).handlers.clear()  # Hydra's root handlers print, once
        logging.getLogger(chatty).setLevel(logging.WARNING)
    silence()
    _check_values(cfg)
    warn_of_little_shared_memory(cfg["data"].get("num_workers", 0))
    cfg["trainer"]["precision"] = _precision(cfg["trainer"])
    with alone_in(folder, cfg) if first else nullcontext():
        return _run_stages(cfg, folder, first)


def _check_values(cfg: Mapping[str, Any]) -> None:
    """Raise a ConfigError for values that Lightning or PyTorch would refuse later, with other messages."""
    if not cfg["stages"]:
        msg = "stages=[]: there is nothing to do. Pass one or more of fit, validate, test, predict."
        raise ConfigError(msg)
    if cfg["float32_matmul_precision"] not in ("highest", "high", "medium"):
        msg = f"float32_matmul_precision={cfg['float32_matmul_precision']}: expected highest, high or medium."
        raise ConfigError(msg)
    if not 0 <= cfg["seed"] < 2**32:
        msg = f"seed={cfg['seed']}: expected 0 to {2**32 - 1}."
        raise ConfigError(msg)
    key, needed = cfg["optimized_metric"], {"test": (Stage.test,), "val": (Stage.fit, Stage.validate)}
    stages = needed.get(str(key).partition("/")[0])
    if key is not None and stages and not set(stages) & set(cfg["stages"]):
        msg = f"optimized_metric={key}: nothing logs it in stages={cfg['stages']}. Add {' or '.join(stages)}."
        raise ConfigError(msg)
    every = cfg["trainer"].get("check_val_every_n_epoch", 1)
    if every is not None and every < 1:
        msg = f"trainer.check_val_every_n_epoch={every}: expected 1 or more."
        raise ConfigError(msg)


def _run_stages(cfg: dict[str, Any], folder: Path, first: bool) -> float | None:
    torch.set_float32_matmul_precision(cfg["float32_matmul_precision"])
    seed_everything(cfg["seed"], workers=True, verbose=False)

    module = as_task(build(cfg["model"], LightningModule))
    log.info("%s: %.2f M parameters", type(module).__name__, sum(p.numel() for p in module.parameters()) / 1e6)
    data = build(cfg["data"], LightningDataModule) if cfg["data"] else None
    if data is not None:
        info_of(data)  # says its pixel size before anything is trained, or is refused
    log_config, end_on_sigterm = _LogConfig(cfg, data), EndOnSigterm()
    trainer = build(
        cfg["trainer"],
        Trainer,
        callbacks=[
            *([CheckTestTiles()] if Stage.test in cfg["stages"] else []),  # before anything is logged elsewhere
            log_config,
            end_on_sigterm,
            CheckMonitors(cfg["optimized_metric"]),
            *(build(node, Callback) for node in cfg["callbacks"].values() if node),
        ],
        logger=[build(node, Logger) for node in cfg["logger"].values() if node],
        plugins=[*cfg["trainer"].pop("plugins", ()), CompleteCheckpoints(), *cluster_environments()],
    )
    trains = Stage.fit in cfg["stages"]
    ckpt_path, resumes_at = _checkpoint(cfg, folder, module)
    changed = check_continuation(folder, cfg, ckpt_path, trains) if ckpt_path else []
    # Until here the folder is as it was.
    if cfg["ckpt_path"] in ("last", "auto") and ckpt_path:
        log.info("Continuing %s", ckpt_path)
    with _record(folder, cfg, trainer.loggers, log_config, changed, enabled=first) as record, processes_of(trainer):
        if resumes_at is not None and first:
            forget_rows(folder / "metrics.csv", resumes_at)
        logged: dict[str, Any] = {}
        for stage in cfg["stages"]:
            started = time.perf_counter()
            path = _weights(stage, trainer, module, ckpt_path, fitted="fit" in record["seconds"])
            if stage != Stage.fit and data is not None and (used := weights_in_use(trainer, path, folder)):
                log.info("%s: %s, epoch %s (from 0), step %s", stage, *used.values())
                record["weights"][stage] = used
            with nullcontext() if stage == Stage.fit else end_on_sigterm.stage():
                _run_stage(stage, trainer, module, data, path)
            logged |= trainer.callback_metrics  # of which the next stage leaves nothing
            record["seconds"][stage] = round(time.perf_counter() - started, 2)
            record["device"] = str(trainer.strategy.root_device)
            record["world_size"] = trainer.world_size
            if card := card_of(cfg["optimized_metric"] or "", module.cards):
                record["better"] = card.better  # for the sweep, which knows no cards
            _check_interrupted(trainer)
    for logger in trainer.loggers:
        logger.finalize("success")
    return _optimized(cfg["optimized_metric"], logged)


def _weights(stage: str, trainer: Trainer, module: Task, ckpt_path: str | None, fitted: bool) -> str | None:
    """Return the checkpoint of a stage: `fit` continues from the given one; the others use it, or the result of fit."""
    if stage != Stage.fit and fitted:
        keeper = best_keeper(trainer)
        return keeper.best_model_path if keeper else None  # None: the weights in memory, those of the last epoch
    if stage != Stage.fit and ckpt_path is None and module.requires_checkpoint:
        msg = f"stages=[{stage}] needs ckpt_path=PATH: a {type(module).__name__} with random weights says nothing."
        raise ConfigError(msg)
    return ckpt_path


def _run_stage(
    stage: str, trainer: Trainer, module: Task, data: LightningDataModule | None, ckpt_path: str | None
) -> None:
    """Run one stage with the weights of a checkpoint; None: those in memory."""
    # Predictions are written immediately; keeping all of them would use too much memory.
    options = {"return_predictions": False} if stage == Stage.predict else {}
    if stage in (Stage.test, Stage.validate):
        options["verbose"] = False
    getattr(trainer, stage)(module, datamodule=data, ckpt_path=ckpt_path, **options)
    for key, value in trainer.callback_metrics.items():
        if stage == Stage.test and key.removeprefix("test/") in module.cards:  # of no single group
            log.info("%s %.4f", key, value)


def _checkpoint(cfg: Mapping[str, Any], folder: Path, module: LightningModule) -> tuple[str | None, int | None]:
    """Return the checkpoint to start from, and the first step that training logs then; None: not this.

    `last` and `auto` mean the checkpoint in this run's folder.

    Raises:
        ConfigError: if there is no such file, or it has the weights of another model.
        DataError: if it cannot be read.
    """
    path, trains = cfg["ckpt_path"], Stage.fit in cfg["stages"]
    if path is None:
        return None, None
    if path in ("last", "auto"):
        last = folder / "checkpoints" / "last.ckpt"
        if path == "auto" and not last.is_file():
            return None, None
        path = str(last)
    if not Path(path).is_file():
        msg = (
            f"ckpt_path={path}: there is no such file. Pass a .ckpt file, 'last' for this experiment's newest run, or "
            "'auto' for the checkpoint in the run's own folder."
        )
        raise ConfigError(msg)
    content = read_checkpoint(path, to_continue=trains)
    found, own = content["state_dict"], module.state_dict()
    wrong = sorted(
        k for k in own.keys() | found.keys() if k not in own or k not in found or own[k].shape != found[k].shape
    )
    if wrong:
        msg = (
            f"{path}: holds another model than this configuration's {type(module).__name__}: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, such as {wrong[0]}. Its run's config.yaml has its settings."
        )
        raise ConfigError(msg)
    return path, next_step(content) if trains else None


def _precision(trainer: Mapping[str, Any]) -> Any:
    """Return the precision to use; `auto` is bf16-mixed if the hardware multiplies bfloat16, otherwise 32-true."""
    precision = trainer.get("precision")
    if precision != "auto":
        return precision
    accelerator = trainer.get("accelerator", "auto")
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if torch.backends.mps.is_available() and accelerator in ("auto", "gpu", "mps"):
        return "32-true"
    return "bf16-mixed" if cpu_multiplies_bf16() else "32-true"


@contextmanager
def _record(
    folder: Path,
    cfg: Mapping[str, Any],
    loggers: list[Logger],
    log_config: _LogConfig,
    changed: list[str],
    enabled: bool,
) -> Iterator[dict[str, Any]]:
    """Write `config.yaml` and `run.json` in the run's folder: what was run, with what, how long, and how it ended.

    In any case, `report.html` shows the results that exist. In the folder of an earlier run, a stage that does not
    train leaves `config.yaml` as it is.

    Args:
        folder: of the run.
        cfg: the configuration.
        loggers: to be told at the end.
        log_config: which finds what the run reads.
        changed: what is not as in the run that is continued or judged.
        enabled: whether this process writes at all.
    """
    heard = _Warnings()
    trains = Stage.fit in cfg["stages"]
    earlier = earlier_record(folder)
    record: dict[str, Any] = {
        "status": "running",
        "command": " ".join(sys.argv),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in RECORDED_PACKAGES},
        "seconds": {},
        "weights": {},
        "inputs": log_config.inputs,
        "outputs": [],
        **({"changed": changed} if changed else {}),
        "warnings": heard.lines,
    }

    def write() -> None:
        if enabled:
            write_text(folder / "run.json", json.dumps(joined(earlier, record, trains), indent=2) + "\n")

    if enabled and (trains or earlier is None):
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(cfg))))
    write()
    log_config.found = write
    logging.getLogger("ihc2he").addHandler(heard)
    try:
        yield record
        record["status"] = "finished"
    except (KeyboardInterrupt, SystemExit) as error:  # the Trainer turns the one into the other
        record["status"] = "interrupted"
        log.info("Interrupted. To continue:\n%s", resume_command(folder))
        if isinstance(error, SIGTERMException):  # whose status would be 0, as after a complete run
            raise SystemExit(128 + signal.SIGTERM) from error
        raise
    except BaseException as error:
        record["status"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        logging.getLogger("ihc2he").removeHandler(heard)
        record["outputs"] = outputs(folder) if enabled else []
        write()
        if enabled:
            for logger in loggers:
                logger.save()
            log.info("Report: %s", write_report(folder))


class _LogConfig(Callback):
    """Gives every logger the configuration and the run's inputs, after the data was prepared.

    So a run without data logs nothing to other services.

    Attributes:
        inputs: what the run reads.
        found: called when the inputs are known.
    """

    def __init__(self, cfg: Mapping[str, Any], data: LightningDataModule | None) -> None:
        self.cfg, self.data = cfg, data
        self.inputs: list[dict[str, Any]] = []
        self.found: Callable[[], None] = lambda: None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the inputs and log the configuration, on the first rank."""
        if not trainer.is_global_zero:
            return
        self.inputs[:] = inputs(self.cfg, self.data)
        self.found()
        for logger in trainer.loggers:
            logger.log_hyperparams({**self.cfg, "inputs": self.inputs})


class _Warnings(logging.Handler):
    """Keeps the warnings of this package for `run.json` and the report."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, once."""
        line = record.getMessage()
        if line not in self.lines:
            self.lines.append(line)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the checkout of this package, with `-dirty` if it has changes, or None."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _optimized(key: str | None, logged: Mapping[str, Any]) -> float | None:
    if key is None:
        return None
    if key not in logged:
        msg = f"optimized_metric: '{key}' was not logged.{did_you_mean(key, logged)}"
        raise ConfigError(msg)
    return float(logged[key])


def _check_interrupted(trainer: Trainer) -> None:
    if trainer.interrupted:
        raise KeyboardInterrupt
