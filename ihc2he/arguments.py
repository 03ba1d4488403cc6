"""Command lines of the form `name=value`, read by the signature of the function that gets the values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from ihc2he.errors import ConfigError, did_you_mean


def keyword_arguments(function: Callable, pairs: Sequence[str], command: str) -> dict[str, Any]:
    """Return the keyword arguments of a function; numbers and true or false by its annotations, all else as text.

    Args:
        function: with annotations.
        pairs: of the command line.
        command: its name, for messages.

    Raises:
        ConfigError: if a name or the type of a value is wrong, or if a name is missing.

    >>> def draw(out: str, size: int = 8, aligned: bool = False): ...
    >>> keyword_arguments(draw, ["out=here", "aligned=true"], "draw")
    {'out': 'here', 'aligned': True}
    """
    known, kinds = inspect.signature(function).parameters, get_type_hints(function)
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            msg = f"'{pair}' is not a name=value that {command} accepts.{did_you_mean(name, known)}"
            raise ConfigError(msg)
        values[name] = _value(name, text, kinds.get(name))
    missing = [name for name in known if known[name].default is inspect.Parameter.empty and name not in values]
    if missing:
        msg = f"{command} needs {' and '.join(f'{name}=...' for name in missing)}."
        raise ConfigError(msg)
    return values


def _value(name: str, text: str, kind: Any) -> str | int | float | bool:
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        msg = f"{name}={text} must be true or false."
        raise ConfigError(msg)
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        msg = f"{name}={text} is not a {'number' if kind is float else 'whole number'}."
        raise ConfigError(msg) from None
