"""Times what the command line needs to answer, against what Python needs to import torch and Lightning.

    python benchmarks/startup.py [rounds=3]

Commands take turns, each in a process of its own; times are the CPU time of that process, and the last column has those
on the wall.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from timing import argument, finish, ratios

IMPORTS = ("-c", "import torch, lightning")
OURS = {
    "--help": ("-m", "ihc2he.train", "--help"),
    "--cfg job": ("-m", "ihc2he.train", "--cfg", "job", "experiment=cyclegan_bci"),
}


def seconds(*arguments: str) -> tuple[float, float]:
    """Return the CPU seconds, and those on the wall, of Python with these arguments.

    Raises:
        CalledProcessError: where it fails.
    """
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=Path(__file__).parents[1])
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    commands = {"imports": IMPORTS, **OURS}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(argument("rounds", 3) + 1):
        for name, arguments in commands.items():
            spent[name].append(seconds(*arguments))
    # The first round fills the system's cache of files.
    cpu, wall = ({name: [pair[i] for pair in pairs[1:]] for name, pairs in spent.items()} for i in (0, 1))
    rows = []
    for name in OURS:
        walls = f"on the wall {median(wall['imports']):.1f} s and {median(wall[name]):.1f} s"
        pair = {"import torch, lightning": cpu["imports"], "ours": cpu[name]}
        rows += ratios(name, pair, {"import torch, lightning": walls})
    finish("startup", rows)
