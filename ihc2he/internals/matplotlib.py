"""Private parts of matplotlib that are used here: when it reads MPLBACKEND."""

from __future__ import annotations

import os
import sys


def load() -> None:
    """Import matplotlib without a display; it only draws files here.

    A process started in a notebook inherits MPLBACKEND, which may name a missing module, and the import would fail.
    The variable is not changed, and neither is a matplotlib that was imported before.
    """
    if "matplotlib" in sys.modules:
        return
    inherited = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        import matplotlib as mpl  # noqa: F401  # it reads the variable only now
    finally:
        del os.environ["MPLBACKEND"]
        if inherited is not None:
            os.environ["MPLBACKEND"] = inherited
