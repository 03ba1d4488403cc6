"""The command line as it was typed: texts stay texts, although Hydra would convert `1e3` or `true`.

Imports neither torch nor Lightning.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ihc2he.config import Config, config_dir, kinds, locate, signature

_TEXT = (str, Path)


def parse_options(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the folders that a command line adds with `--config-dir`, in any spelling, and the other arguments.

    >>> parse_options(["--config-dir=mine", "seed=1"])
    ([PosixPath('mine')], ['seed=1'])
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd", action="append", type=Path, default=[])
    for other in ("--config-path", "--config-name"):  # so that an abbreviation means the same as to Hydra
        parser.add_argument(other, nargs="?")
    try:
        found, rest = parser.parse_known_args(list(argv))
    except (argparse.ArgumentError, SystemExit):  # Hydra says what is wrong
        return [], list(argv)
    others = [value for value in (found.config_path, found.config_name) if value is not None]
    return found.config_dir, rest + others


def as_typed(argv: Sequence[str]) -> list[str]:
    """Return a command line in which the values of text keys, and the names of options, are quoted where needed.

    >>> as_typed(["out=2025_01_02", "seed=1_000", "tags=[1e3,a]", "out=null"])
    ["out='2025_01_02'", 'seed=1_000', "tags=['1e3','a']", 'out=null']
    """
    return [_quoted(argument, argv) for argument in argv]


def restore_texts(cfg: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set those arguments of `_target_` nodes that are annotated as texts to the text that was typed.

    Args:
        cfg: a composed configuration of plain values, which is changed.
        overrides: of the command line.
    """
    for text in overrides:
        override = _parsed(text)
        if override is None or override.is_delete() or override.is_sweep_override():
            continue
        *parents, key = override.key_or_group.split(".")
        node: Any = cfg
        for name in parents:
            node = node.get(name) if isinstance(node, Mapping) else None
        if isinstance(node, dict) and isinstance(node.get("_target_"), str) and key in node:
            parameter = signature(locate(node["_target_"])).parameters.get(key)
            if parameter is not None:
                node[key] = _kept(override, parameter.annotation, node[key])


def _quoted(argument: str, argv: Sequence[str]) -> str:
    override = _parsed(argument)
    if override is None or override.is_delete():
        return argument
    key, annotation = override.key_or_group, str | None
    if not ("/" in key or (config_dir() / key).is_dir()):  # whose options have names
        annotation = _annotation(key)
    raw = override.get_value_string()
    head = argument[: len(argument) - len(raw)]
    if override.is_sweep_override():
        return head + _quoted_sweep(override, annotation, argv)
    value = override.value()
    kept = _kept(override, annotation, value)
    if kept is value:
        return argument
    return head + (f"[{','.join(quote(part) for part in kept)}]" if isinstance(kept, list) else quote(kept))


def _quoted_sweep(override: Override, annotation: Any, argv: Sequence[str]) -> str:
    """Return the values of a sweep with quotes around each text; a job gets each value as Hydra has read it."""
    raw = override.get_value_string()
    inner = raw.removeprefix("choice(").removesuffix(")") if raw.startswith("choice(") else raw
    if not override.is_choice_sweep() or not _is_plain(inner):
        return raw
    parts = [part.strip() for part in inner.split(",")]
    if annotation is Any and list(override.sweep_string_iterator()) != parts:  # only then is anything lost
        annotation = _annotation_in_node(override.key_or_group, argv)
    if annotation is Any:
        return raw
    read = [OverridesParser.create().parse_override(f"x={part}") for part in parts]
    kept = [_kept(one, annotation, one.value()) for one in read]
    texts = [quote(text) if isinstance(text, str) else part for text, part in zip(kept, parts, strict=True)]
    return raw.replace(inner, ",".join(texts))


def _annotation_in_node(key: str, argv: Sequence[str]) -> Any:
    """Return the annotation of an argument of a `_target_` node as a command line composes it; Any if it has none."""
    folders, rest = parse_options(argv)
    overrides = [text for text in map(_first, rest) if text is not None]
    if folders:
        overrides.append(f"hydra.searchpath=[{','.join(quote(f'file://{folder.absolute()}') for folder in folders)}]")
    *parents, name = key.split(".")
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            target = OmegaConf.select(compose("train", overrides), ".".join([*parents, "_target_"]))
    except (HydraException, OmegaConfBaseException):  # Hydra says what is wrong
        return Any
    parameter = signature(locate(target)).parameters.get(name) if isinstance(target, str) else None
    return Any if parameter is None else parameter.annotation


def _first(argument: str) -> str | None:
    """Return an override with only the first value of its sweep; None for options, and for other kinds of sweeps."""
    override = _parsed(argument)
    if override is None or not override.is_sweep_override():
        return argument if override is not None else None
    if not override.is_choice_sweep():
        return None
    head = argument.removesuffix(override.get_value_string())
    return head + next(iter(override.sweep_string_iterator()))


def _kept(override: Override, annotation: Any, value: Any) -> Any:
    """Return the value of an override for an annotation: the typed text if the annotation only accepts texts."""
    allowed = kinds(annotation)
    raw = override.get_value_string()
    if isinstance(value, str) or any(isinstance(value, _class(kind)) for kind in allowed if kind not in _TEXT):
        texts = any(_class(kind) in (list, tuple, Sequence) and str in get_args(kind) for kind in allowed)
        if isinstance(value, list) and texts and _is_plain(raw[1:-1]):
            parts = [part.strip() for part in raw[1:-1].split(",")]
            return value if all(isinstance(item, str) for item in value) else parts
        return value
    if value is None or isinstance(value, dict):  # nobody means a text; the check of types says what is expected
        return value
    return raw if any(kind in allowed for kind in _TEXT) else value


def _class(kind: Any) -> Any:
    """Return the class of an annotation; `object` if it has none."""
    found = get_origin(kind) or kind
    if found is Any or not isinstance(found, type) or found is inspect.Parameter.empty:
        return object
    return (int, float) if found is float else found if found is not Sequence else Sequence


def _is_plain(raw: str) -> bool:
    return bool(raw) and not set(raw) & set("'\"[]{}()\\")


def quote(text: str) -> str:
    """Return a text in quotes, as Hydra reads it."""
    return "'" + text.strip().replace("\\", "\\\\").replace("'", "\\'") + "'"


def unquoted(value: str) -> str:
    """Return the text of a quoted value as it was typed; any other value as it is.

    >>> unquoted("'real'"), unquoted("1e3"), unquoted("['a']")
    ('real', '1e3', "['a']")
    """
    parsed = _parsed(f"key={value}")
    inner = parsed.value() if parsed else value
    return inner if value[:1] == "'" and isinstance(inner, str) else value


def _parsed(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:  # Hydra says what is wrong; options such as -m are not overrides either
        return None


def _annotation(key: str) -> Any:
    """Return the annotation of a key in the schema or in Hydra's own; Any if it has none."""
    kind: Any = Config
    parts = key.split(".")
    if parts[0] == "hydra":
        kind, parts = HydraConf, parts[1:]
    for part in parts:
        if not dataclasses.is_dataclass(kind):
            return Any
        kind = get_type_hints(kind).get(part, Any)
        kind = next((one for one in kinds(kind) if one is not NoneType and dataclasses.is_dataclass(one)), kind)
    return kind
