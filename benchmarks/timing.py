"""What the benchmarks share: contenders take turns in one process; a table of ratios at the end, kept as JSON as well.

Times are CPU time of the process, which other load on the machine disturbs less than it does the time on the wall.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from ihc2he.files import complete

_TESTS = Path(__file__).parents[1] / "tests"
_RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("numpy", "scipy", "scikit-image", "opencv-python-headless", "torch", "lightning", "monai")
_MIN_ROUNDS = 3  # after the one to warm up


def argument(name: str, default: int) -> int:
    """Return the value of `name=value` on the command line.

    Args:
        name: what stands before the equals sign.
        default: the value where it is not given.
    """
    return int(dict(text.split("=") for text in sys.argv[1:]).get(name, default))


def names_of(test: str) -> dict[str, Any]:
    """Return the functions of a test file by name, for the transcriptions of published code that it holds.

    Args:
        test: path under `tests/`.
    """
    return runpy.run_path(str(_TESTS / test))


def has_peer(package: str) -> bool:
    """Return whether an optional package is installed, and say so where it is not.

    Args:
        package: its name, the same for import and installation.
    """
    found = find_spec(package) is not None
    if not found:
        print(f"{package} is not installed, so no row compares with it: `pip install {package}` adds them.")
    return found


def take_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Return the CPU seconds of each call in each round.

    Args:
        calls: contenders by name; each runs once per round, in an order that is reversed from round to round.
        seconds: rounds go on for so long, with at least three after the one to warm up, which is left out.
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    order, until = list(calls), time.perf_counter() + seconds
    while len(spent[order[0]]) <= _MIN_ROUNDS or time.perf_counter() < until:
        for name in order:
            started = time.process_time()
            calls[name]()
            spent[name].append(time.process_time() - started)
        order.reverse()
    return {name: values[1:] for name, values in spent.items()}


def ratios(case: str, spent: Mapping[str, Sequence[float]], outputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row of the table for each contender other than `ours`.

    Args:
        case: what was timed.
        spent: seconds of each round by contender, as `take_turns` gives them.
        outputs: by contender, in words, how its output compares with ours.
    """
    ours = spent["ours"]
    return [
        {
            "case": case,
            "against": name,
            "faster": median(theirs) / median(ours),
            "of_minima": min(theirs) / min(ours),
            "their_ms": 1000 * median(theirs),
            "our_ms": 1000 * median(ours),
            "rounds": len(ours),
            "output": outputs.get(name, ""),
        }
        for name, theirs in spent.items()
        if name != "ours"
    ]


def finish(benchmark: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table and write it to `benchmarks/results/<benchmark>.json`.

    Args:
        benchmark: its name.
        rows: of `ratios`.
    """
    case = max(len(text) for text in (benchmark, *(row["case"] for row in rows))) + 2
    against = max(len(row["against"]) for row in rows) + 2
    heads = f"{'faster':>9}{'of minima':>11}{'their ms':>11}{'our ms':>9}{'rounds':>8}  output"
    print(f"{benchmark:<{case}}{'against':<{against}}{heads}")
    for row in rows:
        print(
            f"{row['case']:<{case}}{row['against']:<{against}}{row['faster']:>8.1f}x{row['of_minima']:>10.1f}x"
            f"{row['their_ms']:>11.1f}{row['our_ms']:>9.2f}{row['rounds']:>8}  {row['output']}"
        )
    with complete(_RESULTS / f"{benchmark}.json") as path:
        path.write_text(json.dumps({"versions": _versions(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
