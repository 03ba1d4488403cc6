"""Times what the command line needs to answer, against what Python needs to import torch and Lightning.

    python benchmarks/startup.py [rounds=3]

Commands take turns, each in a process of its own; times are the CPU time of that process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from timing import Row, argument, finish, ratios, take_turns

IMPORTS = ("-c", "import torch, lightning")
OURS = {
    "--help": ("-m", "ihc2he.train", "--help"),
    "--cfg job": ("-m", "ihc2he.train", "--cfg", "job", "experiment=cyclegan_bci"),
}


def python(arguments: tuple[str, ...]) -> None:
    """Run Python with these arguments.

    Raises:
        CalledProcessError: where it fails.
    """
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=Path(__file__).parents[1])


def measure(rounds: int) -> list[Row]:
    """Return a row for each command."""
    walls: dict[str, list[float]] = {}

    def children_seconds(call: Callable[[], object]) -> float:
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        call()
        walls.setdefault(of[call], []).append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    commands = {"import torch, lightning": IMPORTS, **OURS}
    calls: dict[str, Callable[[], object]] = {name: partial(python, arguments) for name, arguments in commands.items()}
    of = {call: name for name, call in calls.items()}
    spent = take_turns(calls, 0, children_seconds, rounds)
    rows = []
    for name in OURS:
        both = {"import torch, lightning": spent["import torch, lightning"], "ours": spent[name]}
        wall = f"{median(walls['import torch, lightning'][1:]):.1f} s and {median(walls[name][1:]):.1f} s on the wall"
        rows += ratios(f"start of the command line, {name}", both, {"import torch, lightning": wall})
    return rows


if __name__ == "__main__":
    finish("startup", measure(argument("rounds", 3)))
