"""The processes of a launch: which one is first, which folder they use, and how they end together."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import read_write

from ihc2he.config import config_dir_arguments
from ihc2he.errors import ConfigError, Ihc2heError
from ihc2he.internals.lightning import started_processes
from ihc2he.internals.torch import process_lost


class ProcessLostError(Ihc2heError):
    """Another process of the run has ended."""


def own_rank() -> int:
    """Return the number of this process in the launch, before the Trainer knows it."""
    # In this order: a SLURM session has a number of its own, even for processes that Lightning starts in it.
    names = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((value for value in names if value), "0"))


@contextmanager
def alone_in(folder: Path, cfg: Mapping[str, Any]) -> Iterator[None]:
    """Lock a run's folder against other runs.

    Raises:
        ConfigError: if the folder has a run that is not to be continued, or that is still running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        msg = f"{folder}: another process is writing this run. Wait for its end, or choose another hydra.run.dir."
        raise ConfigError(msg) from error
    try:
        if (folder / "run.json").exists() and cfg["ckpt_path"] is None:
            msg = f"{folder} already holds a run. Continue it with ckpt_path=auto, or choose another hydra.run.dir."
            raise ConfigError(msg)
        for left in folder.glob("checkpoints/.*.part.ckpt"):  # of a run that was killed while writing
            left.unlink()
        yield
    finally:
        lock.release()
        if all(path.name == ".lock" or path.suffix == ".log" for path in folder.iterdir()):  # it could not start
            shutil.rmtree(folder)


def cluster_environments() -> list[Any]:
    """Return the cluster environment for a SLURM job, in which requeueing is left to the job's script."""
    by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun may run inside a job
    return [SLURMEnvironment(auto_requeue=False)] if by_slurm else []


@contextmanager
def processes_of(trainer: Trainer) -> Iterator[None]:
    """End the process group and, after a failure, the other processes, for the report and the next job of a sweep.

    Raises:
        ProcessLostError: instead of the errors of gloo and NCCL, if another process has ended.
    """
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        yield
    except BaseException as error:
        started = started_processes(trainer)
        others = list(started)
        started.clear()  # Lightning watches this list, and also kills this process if one of them fails
        for process in others:
            process.kill()
            process.wait()
        if trainer.world_size > 1 and process_lost(error):
            msg = "Another process of this run has ended, so this one cannot continue. See the message of the other."
            raise ProcessLostError(msg) from error
        raise
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if in_sweep:
            for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                os.environ.pop(name, None)


def _end_with(parent: int) -> None:
    """End this process as soon as the process that started it is gone; otherwise it would stay."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def resume_command(folder: Path) -> str:
    """Return the command line that continues the run in a folder, without the rest of its sweep."""
    hydra = HydraConfig.get()
    own = [override for override in hydra.overrides.task if not override.startswith("ckpt_path=")]
    single = ["hydra.mode=RUN"] if hydra.mode == RunMode.MULTIRUN else []
    arguments = [*config_dir_arguments(hydra), *own, *single, f"hydra.run.dir={folder}", "ckpt_path=auto"]
    return shlex.join(["python", "-m", "ihc2he.train", *arguments])


def pin_job_for_ddp_children() -> None:
    """Make the processes that Lightning starts for other devices run this same job in this same folder.

    Lightning repeats the command line of this process. In a sweep that is the command of the whole sweep, and a sampler
    would give every process different values. So it is replaced by the overrides of this job.
    """
    hydra = HydraConfig.get()
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        return
    with read_write(hydra):  # type: ignore[arg-type]  # a node, though typed as what it holds
        hydra.run.dir = hydra.runtime.output_dir
    if hydra.mode == RunMode.MULTIRUN:
        sys.argv[1:] = [*config_dir_arguments(hydra), *hydra.overrides.task, "hydra.mode=RUN"]
