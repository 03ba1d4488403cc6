"""Errors that a user can act on: what was found, what was expected, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

MANY = 100  # names that are no longer listed


class Ihc2heError(Exception):
    """A mistake in the user's input. The command line prints its message without a traceback."""


class ConfigError(Ihc2heError):
    """A name, value or combination in the configuration that cannot work."""


class DataError(Ihc2heError):
    """A file or folder that is missing, unreadable, or not in the documented layout."""


def require_setting(group: str, name: str, value: object, holds: bool, expected: str) -> None:
    """Raise a ConfigError with a key of the configuration, its value and what was expected, unless a condition is true.

    >>> require_setting("data", "seed", -1, False, "0 or more")
    Traceback (most recent call last):
    ihc2he.errors.ConfigError: data.seed=-1: expected 0 or more.
    """
    if not holds:
        msg = f"{group}.{name}={value}: expected {expected}."
        raise ConfigError(msg)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint with the nearest known name; if none is near, with all of them, or the first of many.

    The hint starts with a space so that it can be appended to a finished sentence. Names that differ
    only in case and surrounding blanks are nearest.

    >>> did_you_mean("max_epoch", ["max_epochs", "precision"])
    " Did you mean 'max_epochs'?"
    >>> did_you_mean("zzz", ["b", "a"])
    ' Known: a, b.'
    """
    known = sorted(set(known))
    folded = name.strip().casefold()
    near = [other for other in known if other.strip().casefold() == folded]
    near = near or get_close_matches(name.strip(), known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    more = f", ... ({len(known)} in all)" if len(known) > MANY else ""
    return f" Known: {', '.join(known[: 5 if more else None])}{more}." if known else ""
