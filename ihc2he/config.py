"""What a configuration may contain: root schema, resolvers, the folder conf/, and the check before a run."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from hashlib import sha256
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf

from ihc2he.errors import ConfigError, did_you_mean


class Stage(StrEnum):
    """A verb of the Trainer."""

    fit = "fit"
    validate = "validate"
    test = "test"
    predict = "predict"


@dataclass
class Paths:
    """Folders. Relative paths start at the working directory."""

    data: str = MISSING
    store: str = MISSING
    outputs: str = MISSING
    output_dir: str = MISSING


@dataclass
class Config:
    """Root of the configuration. Its keys are fixed, so that a misspelt key is noticed."""

    experiment_name: str = MISSING
    tags: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=lambda: [Stage.fit, Stage.test])
    seed: int = 42
    ckpt_path: str | None = None
    optimized_metric: str | None = None
    float32_matmul_precision: str = "high"
    out: str = MISSING
    paths: Paths = field(default_factory=Paths)
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


def config_dir() -> Path:
    """Return the absolute folder of the configuration: in the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    msg = f"The configuration folder conf/ is missing in {package} and next to it. Reinstall ihc2he."
    raise ConfigError(msg)


def stamp() -> str:
    """Return the name of this run's folder: the same for all processes of a launch, and different for each launch.

    Launchers that start every process (torchrun, SLURM) provide an id, because the clocks of nodes differ.
    """
    env = os.environ
    run_id = env.get("IHC2HE_RUN_ID") or env.get("TORCHELASTIC_RUN_ID")
    if run_id == "none" and env.get("WORLD_SIZE") != "1":
        msg = (
            "torchrun has no id, so each process would choose its own folder. Pass --standalone on one node, "
            "--rdzv_backend=c10d --rdzv_id=NAME on several, or set IHC2HE_RUN_ID=NAME on each."
        )
        raise ConfigError(msg)
    if run_id and run_id != "none":
        return run_id
    job, interactive = env.get("SLURM_JOB_ID"), env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if job and not interactive:  # the same when it is requeued, and another for another command of the job
        return "-".join(filter(None, ("slurm", job, env.get("SLURM_STEP_ID"), _command_id(sys.argv[1:]))))
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


def _command_id(arguments: Sequence[str]) -> str:
    """Return six digits that tell command lines apart, whether they continue a run or begin it."""
    own = [argument for argument in arguments if not argument.startswith("ckpt_path=")]
    return sha256("\0".join(own).encode()).hexdigest()[:6]


def newest_run(folder: str | Path) -> Path | None:
    """Return the run in a folder that wrote `checkpoints/last.ckpt` most recently, or None."""
    found = sorted(Path(folder).glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    return found[-1].parent.parent if found else None


def newest_bundle(outputs: str, experiment: str, name: str) -> str | None:
    """Return the model bundle of the newest finished run of an experiment, or None."""
    found = sorted(Path(outputs, experiment).glob(f"*/bundles/{name}"), key=lambda p: p.stat().st_mtime)
    return str(found[-1]) if found else None


def run_dir(outputs: str, experiment: str | None, ckpt_path: str | None) -> str:
    """Return the folder of this run; `ckpt_path=last` continues in the newest run of the experiment."""
    home = Path(outputs) / (experiment or "none")
    if ckpt_path == "last":
        run = newest_run(home)
        if run is None:
            msg = f"ckpt_path=last: no run below {home} has a checkpoints/last.ckpt. Start one without ckpt_path."
            raise ConfigError(msg)
        return str(run)
    return str(home / stamp())


def group(experiment: str, mode: Any, sweep_dir: str) -> str:
    """Return the W&B group of a run: its sweep, or its experiment.

    Args:
        experiment: its name.
        mode: Hydra's, RUN or MULTIRUN.
        sweep_dir: folder of the sweep, if it is one.
    """
    return f"{experiment}/{Path(sweep_dir).name}" if mode == RunMode.MULTIRUN else experiment


def job_number() -> int | None:
    """Return the number of this job in its sweep, or None where this is no job of a sweep."""
    hydra = HydraConfig.get()
    return None if hydra.mode != RunMode.MULTIRUN or OmegaConf.is_missing(hydra.job, "num") else hydra.job.num


def config_dir_arguments(hydra: Any) -> list[str]:
    """Return the `--config-dir` arguments of this launch; every command that repeats it needs them.

    Args:
        hydra: Hydra's own configuration.
    """
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [argument for folder in folders for argument in ("--config-dir", folder)]


def register() -> None:
    """Register the schema and the resolvers with Hydra; may be called repeatedly."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("add", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("floordiv", lambda number, divisor: int(number) // divisor, replace=True)
    OmegaConf.register_new_resolver("group", group, replace=True)
    OmegaConf.register_new_resolver("job_number", job_number, replace=True)
    OmegaConf.register_new_resolver("newest_bundle", newest_bundle, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("run_dir", run_dir, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("stamp", stamp, use_cache=True, replace=True)


def target_nodes(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted path and the content of every mapping that has a `_target_`, outermost first."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield path, node
        for key, value in node.items():
            yield from target_nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from target_nodes(value, f"{path}.{i}")


MOVED = {  # modules that bundles, checkpoints and configurations of earlier versions name
    "ihc2he.models.cyclegan.evaluation": "ihc2he.models.translation.evaluation",
    "ihc2he.models.cyclegan.pool": "ihc2he.models.translation.pool",
    "ihc2he.models.cyclegan": "ihc2he.models.translation.cyclegan",
    "ihc2he.models.hovernet.encoders": "ihc2he.models.segmentation.encoders",
    "ihc2he.models.hovernet.evaluation": "ihc2he.models.segmentation.evaluation",
    "ihc2he.models.hovernet": "ihc2he.models.segmentation.hovernet",
    "ihc2he.models.pipeline.segmenters.Hovernet": "ihc2he.models.pipeline.segmenters.Learned",
    "ihc2he.callbacks.loggers": "ihc2he.loggers.base",
    "ihc2he.callbacks.pages": "ihc2he.report.tiles",
    "ihc2he.sweep.SweepTables": "ihc2he.sweep.callback.SweepTables",
    "ihc2he.models.pipeline.translators.CycleGan": "ihc2he.models.pipeline.translators.LearnedTranslator",
}


FORMER = {  # keys of earlier versions
    "data.mpp_files": "It is called data.mpp now (um/px of the files), and what data.mpp was is data.target_mpp.",
}


def moved(target: str) -> str:
    """Return a dotted name with its module as it is called now.

    >>> moved("ihc2he.models.cyclegan.networks.ResnetGenerator")
    'ihc2he.models.translation.cyclegan.networks.ResnetGenerator'
    """
    for before, now in MOVED.items():
        if target == before or target.startswith(f"{before}."):
            return now + target.removeprefix(before)
    return target


def what_now(full_key: str, known: Iterable[str]) -> str:
    """Return what to write instead of an unknown key: its present name, or the nearest of those known.

    >>> what_now("data.mp", ["mpp"])
    " Did you mean 'mpp'?"
    """
    return f" {FORMER[full_key]}" if full_key in FORMER else did_you_mean(full_key.rpartition(".")[2], known)


def locate(target: str, path: str = "_target_") -> Callable[..., Any]:
    """Return the class or function with a dotted name.

    Args:
        target: `package.module.Name`.
        path: where the name was written, for the message.

    Raises:
        ConfigError: if a part of it does not exist; the message has the nearest name that does.
    """
    target = moved(target)
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        msg = f"{path}: '{target}' is not a dotted name; expected package.module.Class."
        raise ConfigError(msg)
    found: Any = None
    for i, part in enumerate(parts):
        name = ".".join(parts[: i + 1])
        if found is not None and hasattr(found, part) and not inspect.ismodule(getattr(found, part)):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                msg = f"{path}: importing '{name}' needs the package '{error.name}', which is not installed."
                raise ConfigError(msg) from error
            msg = (
                f"{path}: '{target}' does not exist; there is no '{part}' in '{'.'.join(parts[:i])}'."
                if i
                else f"{path}: '{target}' does not exist; no module named '{part}'. Expected package.Class."
            )
            raise ConfigError(msg + (did_you_mean(part, _names_in(found)) if i else "")) from error
        except Exception as error:  # of the module itself
            msg = f"{path}: importing '{name}' failed ({type(error).__name__}: {error}). Correct it, or use another."
            raise ConfigError(msg) from error
    if not callable(found):
        msg = f"{path}: '{target}' is not a class or function; expected package.module.Class."
        raise ConfigError(msg)
    return found


def _names_in(module: Any) -> list[str]:
    names = [name for name in dir(module) if not name.startswith("_")]
    return names + [m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []))]


def preflight(cfg: Mapping[str, Any]) -> None:
    """Check every argument of every `_target_` in a resolved configuration against the signature of the target.

    Builds nothing, so a typo ends the run before any data is read.

    Raises:
        ConfigError: for an unknown argument (with the nearest known one), or a text instead of a number.
    """
    for path, node in target_nodes(cfg):
        parameters = signature(locate(node["_target_"], f"{path}._target_")).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        known = [name for name in parameters if name != "self"]
        for key, value in node.items():
            if key in ("_target_", "_partial_", "_recursive_", "_convert_", "_args_"):
                continue
            if key not in known:
                msg = f"{path}.{key}: {node['_target_']} has no argument '{key}'.{what_now(f'{path}.{key}', known)}"
                raise ConfigError(msg)
            if isinstance(value, str) and not _takes_text(parameters[key].annotation):
                names = [kind.__name__ for kind in kinds(parameters[key].annotation) if kind is not NoneType]
                msg = f"{path}.{key}: expected {' or '.join(names)}, found '{value}'."
                raise ConfigError(msg)


def signature(target: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a class or function, with its annotations as objects where that is possible.

    See `resolved_signature` for `**options`.
    """
    try:
        return resolved_signature(target)
    except (NameError, TypeError, AttributeError):  # annotations that only type checkers can resolve
        return inspect.signature(target)


def resolved_signature(target: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a class or function, with its annotations as objects.

    A class whose constructor takes `**options` hands them on, so the keyword-only arguments of the next constructor
    among its bases are its own.

    Raises:
        NameError, TypeError, AttributeError, ValueError: if there is none, or it cannot be resolved.
    """
    found = inspect.signature(target, eval_str=True)
    if not isinstance(target, type) or "options" not in found.parameters:
        return found
    owners = [base for base in target.__mro__ if "__init__" in vars(base)]
    handed_on = resolved_signature(owners[1]).parameters.values()
    inherited = [p for p in handed_on if p.kind is p.KEYWORD_ONLY and p.name not in found.parameters]
    if not inherited:
        return found
    own = [p for p in found.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return found.replace(parameters=[*own, *inherited])


def kinds(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or only the annotation."""
    return (
        get_args(annotation) if isinstance(annotation, UnionType) or get_origin(annotation) is Union else (annotation,)
    )


def _takes_text(annotation: Any) -> bool:
    """Return whether an annotation may accept text: unless it only has classes that text is not an instance of."""
    parts = kinds(annotation)
    return not all(isinstance(kind, type) and kind is not inspect.Parameter.empty for kind in parts) or any(
        issubclass(kind, str | Path | Enum) or kind is object for kind in parts
    )
