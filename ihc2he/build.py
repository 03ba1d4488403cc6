"""The one place that turns a configuration node into an object."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, Union, get_args, get_origin

from hydra.utils import instantiate

from ihc2he.config import kinds, locate, moved, resolved_signature, target_nodes
from ihc2he.errors import ConfigError, Ihc2heError

T = TypeVar("T")

TRUSTED = ("torch.nn", "ihc2he")  # what files of weights may contain
_SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}


def build(node: Mapping[str, Any] | T, only: type[T], **extra: Any) -> T:
    """Return the object that a `_target_` node describes; an object that is already built is returned unchanged.

    The name must be a subclass of `only`. Nothing else can be built, so a node from a checkpoint or a model hub cannot
    call arbitrary functions. Nested nodes stay plain dicts; the object builds them itself.

    Args:
        node: `{"_target_": "package.module.Class", argument: value, ...}` of plain values.
        only: the base class of the target.
        extra: arguments that a configuration cannot hold, such as parameters for an optimiser.

    Raises:
        ConfigError: if the target is missing, is not such a class, or does not accept its arguments.
    """
    if isinstance(node, only):
        return node
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        msg = f"Expected a mapping with a _target_ that names a {only.__name__}, found {node!r}."
        raise ConfigError(msg)
    target = node["_target_"]
    found = locate(target)
    if not (isinstance(found, type) and issubclass(found, only)):
        msg = f"_target_: '{target}' is not a {only.__name__}; it cannot be used here."
        raise ConfigError(msg)
    check_arguments(found, node)
    try:
        made = instantiate(
            {**node, "_target_": moved(target)}, **extra, _recursive_=False, _convert_="all", _partial_=False
        )
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, Ihc2heError | OSError):
            raise cause from None
        kind = "" if isinstance(cause, TypeError | ValueError) else f"{type(cause).__name__}: "
        given = ", ".join(f"{k}={v}" for k, v in node.items() if k not in _SPECIAL and not isinstance(v, Mapping))
        msg = f"Building {target} failed: {kind}{str(cause).rstrip('.')}. Check its arguments: {given[:300]}."
        raise ConfigError(msg) from error
    return made


def check_arguments(target: Callable[..., Any], node: Mapping[str, Any]) -> None:
    """Check the plain values in a node against the annotations in the signature of its target.

    Numbers, texts, lists and mappings are checked; everything else is left to the target. NaN and infinity are refused,
    except for Lightning's classes.

    Raises:
        ConfigError: with the argument, what was found, and what was expected.
    """
    try:
        parameters = resolved_signature(target).parameters
    except (NameError, TypeError, AttributeError, ValueError):  # annotations that only type checkers can resolve
        return
    lax = target.__module__.startswith("lightning")
    for key, value in node.items():
        if key in _SPECIAL:
            continue
        annotation = parameters[key].annotation if key in parameters else Any
        if not (_is_finite(value) or lax) or not _fits(value, annotation):
            expected = " or ".join(dict.fromkeys(_described(kind) for kind in kinds(annotation)))
            msg = f"{node['_target_']}: {key}={value!r}; expected {expected}."
            if isinstance(value, str) and "a list" in expected:
                msg += f" In brackets: {key}=[{value}]."
            raise ConfigError(msg)


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or isfinite(value)


def _fits(value: Any, annotation: Any) -> bool:
    return any(_is(value, kind) for kind in kinds(annotation))


def _is(value: Any, kind: Any) -> bool:
    """Return whether a value may be of a kind; also true if nothing is known about the kind."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in _PLAIN:
        return isinstance(value, kind)
    if kind is Path:
        return isinstance(value, str | Path)
    origin = get_origin(kind) or kind
    if not isinstance(origin, type) or origin in (Any, object, inspect.Parameter.empty):
        return True
    if issubclass(origin, Sequence):
        items = [arg for arg in get_args(kind) if arg is not Ellipsis]
        return isinstance(value, list | tuple) and all(_fits(item, Union[tuple(items)]) for item in value if items)  # noqa: UP007
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    return not isinstance(value, str | int | float | list | tuple | NoneType)  # an object, or a node of one


def _described(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if kind in _PLAIN or not isinstance(origin, type) or origin is Any:
        return _PLAIN.get(kind, "another value")
    if issubclass(origin, Sequence):
        return "a list"
    return "a mapping" if issubclass(origin, Mapping) else "a text" if origin is Path else f"a {origin.__name__}"


def refuse_foreign(node: Any) -> None:
    """Refuse a configuration from a file of weights that uses more than networks of PyTorch and of this package.

    Importing a module executes it, and constructors in other packages read pickles. So a checkpoint or a bundle must
    not use other installed packages, or read the environment. IHC2HE_TRUSTED lists packages of the user that are also
    allowed, separated by commas. Nothing is imported here.

    Raises:
        ConfigError: with the name of the target.
    """
    trusted = [*TRUSTED, *filter(None, os.environ.get("IHC2HE_TRUSTED", "").split(","))]
    for _, found in target_nodes(node):
        target = found["_target_"]
        if not any(target.startswith(f"{name}.") for name in trusted):
            package = target.partition(".")[0]
            msg = (
                f"_target_: '{target}' is none of {' and '.join(trusted)}, so it is not imported for a file that asks "
                f"for it. If you trust that package, set IHC2HE_TRUSTED={package} in the environment."
            )
            raise ConfigError(msg)
    if "${" in str(node):
        msg = f"Expected plain values without interpolations, found {node!r}."
        raise ConfigError(msg)
