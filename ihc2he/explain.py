"""Messages of the command line: one line for a mistake, one line for each experiment."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from ihc2he.config import config_dir, locate, signature, what_now
from ihc2he.errors import ConfigError, Ihc2heError, did_you_mean
from ihc2he.internals.torch import without_worker
from ihc2he.typed import parse_options

E = TypeVar("E", bound=BaseException)

PLAIN = re.compile(r"[\w./+-]*", re.ASCII)  # values that Hydra's grammar reads as they are

PLUGINS = {  # what to install for configurations whose names begin like this
    "hydra/sweeper/optuna": "ihc2he[sweep]",
    "hydra/launcher/joblib": "ihc2he[sweep]",
    "hydra/launcher/submitit_": "ihc2he[sweep]",
    "hydra/launcher/ray": "hydra-ray-launcher",
}


def one_line(error: Exception) -> str:
    """Return what is wrong with a configuration, and the nearest correct name, as one line.

    Errors of this package are returned unchanged, because their text is already written for the user.
    """
    own = _first_of(Ihc2heError, error)
    if own is not None:
        return without_worker(str(own))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        for start, package in PLUGINS.items():
            if str(error.missing_cfg_file).startswith(start):
                return f'{error.missing_cfg_file} needs a plugin that is not installed: pip install "{package}".'
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if error.options is not None:
            return f"There is no '{name}' in '{group}'.{did_you_mean(name, error.options)}"
        return f"There is no configuration '{error.missing_cfg_file}'.{did_you_mean(group or name, _groups())}"
    if isinstance(error, OSError):
        return f"{error}. Check the path and its permissions (HYDRA_FULL_ERROR=1 shows where)."
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            said = 'expected KEY=VALUE. A value with spaces needs quotes, such as "data.path=my images".'
            return f"Cannot read '{error.override}': {said}"
        return f"Cannot read '{error.override}'.{_quoting(error.override)}"
    cause = _first_of(OmegaConfBaseException, error)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key is not None:
        return _unknown_key(cause)
    if isinstance(cause, ValidationError) and "is not Optional" in str(cause.msg):
        return f"{cause.full_key}=null: expected a value."
    if isinstance(cause, ValidationError):
        return f"{cause.full_key}: {_joined(str(cause.msg))}"
    if cause is not None and cause.full_key:
        return f"{cause.full_key}: {_joined(str(cause.msg or cause))}"
    return _joined(str(error) or str(cause) or type(error).__name__)


def write_what_is_possible() -> None:
    """Let standard output and error write a code for a sign that their encoding does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook or a test may have put something else there
            stream.reconfigure(errors="backslashreplace")


def _unknown_key(error: ConfigAttributeError | ConfigKeyError) -> str:
    """Return what to write instead of a key that is not there."""
    if error.full_key == "experiment":
        return "The file of the experiment must begin with the line '# @package _global_'; expected keys of the root."
    parent = error.parent_node
    if _takes(parent, str(error.key)):
        return f"There is no '{error.full_key}' in the configuration yet; to add it, write +{error.full_key}=VALUE."
    known = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    if "." not in str(error.full_key):
        known += _groups()
    return f"There is no key '{error.full_key}'.{what_now(str(error.full_key), known)}"


def _quoting(override: str) -> str:
    """Return how to quote a value that Hydra's grammar cannot read, in a shell too; nothing where that is not why.

    >>> print(_quoting("out=scan(1)"))
     Quote a value with special characters: "out='scan(1)'"
    """
    key, _, value = override.partition("=")
    if PLAIN.fullmatch(value):
        return ""
    inner = f"{key}='{value}'" if "'" not in value else f'{key}="{value}"'
    shell = f'"{inner}"' if "'" not in value else shlex.quote(inner)
    return f" Quote a value with special characters: {shell}"


def _takes(node: Any, key: str) -> bool:
    """Return whether the class that a node describes has an argument of this name."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return False
    try:
        return key in signature(locate(target)).parameters
    except ConfigError:  # another mistake, which is named when this one is mended
        return False


def _first_of(kind: type[E], error: BaseException | None) -> E | None:
    """Return the outermost error of a kind in a chain of causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _joined(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(
        line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))
    )


def _groups() -> list[str]:
    root = config_dir()
    return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_dir()]


def experiments(folders: Iterable[Path]) -> str:
    """Return the names of all experiments in the configuration folders, with the first comment of each file.

    Args:
        folders: configuration folders; if two have the same name, the later one is shown.
    """
    lines: dict[str, str] = {}
    for folder in folders:
        for file in sorted((folder / "experiment").rglob("*.yaml")):
            comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            about = next((line.lstrip("# ") for line in comments if "@package" not in line), "")
            lines[str(file.relative_to(folder / "experiment").with_suffix(""))] = about
    width = max((len(name) for name in lines), default=0)
    listed = "\n".join(f"  {name:<{width}}  {line}" for name, line in lines.items())
    return f"Choose an experiment: python -m ihc2he.train experiment=NAME [key=value ...]\n\n{listed}"


def unreadable_file(argv: Sequence[str]) -> str | None:
    """Return what is wrong with the user's first configuration file that cannot be read, or None."""
    for file in (file for folder in parse_options(argv)[0] for file in sorted(folder.rglob("*.yaml"))):
        try:
            OmegaConf.load(file)
        except Exception as error:  # of several libraries
            return f"{file}: cannot be read as YAML in UTF-8 ({type(error).__name__}: {_joined(str(error))})."
    return None


def warn_shadowed(folders: Iterable[Path], shipped: Path) -> None:
    """Print a line for each of the user's configuration files that has the same name as a file of the package.

    Hydra silently reads the one of the package.
    """
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            if (shipped / file.relative_to(folder)).is_file():
                text = f"ihc2he: {file} is not used: the package has a file of the same name. Choose another."
                print(text, file=sys.stderr)
