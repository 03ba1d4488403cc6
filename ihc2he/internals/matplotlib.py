"""What is used of matplotlib that it does not promise to keep: when it reads MPLBACKEND."""

from __future__ import annotations

import os
import sys


def load() -> None:
    """Import matplotlib, which draws files here and needs no display.

    MPLBACKEND, which a process inherits from a notebook, may name a module that is not there, and the import would
    fail. The variable and a matplotlib that was imported before stay as they are.
    """
    if "matplotlib" in sys.modules:
        return
    inherited = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        import matplotlib as mpl  # noqa: F401  # it reads the variable now, and never again
    finally:
        del os.environ["MPLBACKEND"]
        if inherited is not None:
            os.environ["MPLBACKEND"] = inherited
