"""The one place that turns a configuration node into an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hydra.utils import instantiate

from ihc2he.config import locate
from ihc2he.errors import ConfigError

T = TypeVar("T")


def build(node: Mapping[str, Any] | T, only: type[T], **extra: Any) -> T:
    """Return the object that a `_target_` node describes; an object that is built already passes through.

    The name is resolved first and must be a subclass of `only`: nothing but such classes can be built, so a
    node that comes from a checkpoint or a model hub cannot call arbitrary functions. Nested nodes stay plain
    dicts; the object builds them itself.

    Args:
        node: `{"_target_": "package.module.Class", argument: value, ...}` of plain values.
        only: the class that the target has to derive from.
        extra: arguments that a configuration cannot hold, such as parameters for an optimiser.

    Raises:
        ConfigError: where the target is missing, of another kind, or refuses its arguments.
    """
    if isinstance(node, only):
        return node
    if not isinstance(node, Mapping) or "_target_" not in node:
        msg = f"Expected a mapping with a _target_ that names a {only.__name__}, found {node!r}."
        raise ConfigError(msg)
    target = node["_target_"]
    found = locate(target)
    if not (isinstance(found, type) and issubclass(found, only)):
        msg = f"_target_: '{target}' is not a {only.__name__}; it cannot be used here."
        raise ConfigError(msg)
    try:
        return instantiate(dict(node), **extra, _recursive_=False, _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, TypeError | ValueError):
            msg = f"Building {target} failed: {cause}"
            raise ConfigError(msg) from error
        raise cause from None
