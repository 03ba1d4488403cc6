"""What the benchmarks share: contenders take turns, and leave rows of ratios in a table and as JSON.

Options are `name=value` on the command line, or `script.name=value` for one script only; others are ignored.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from ihc2he.files import write_text

_TESTS = Path(__file__).parents[1] / "tests"
_PACKAGES = ("numpy", "scipy", "scikit-image", "opencv-python-headless", "torch", "lightning", "monai")
_MIN_ROUNDS = 3  # after the one to warm up

Value = TypeVar("Value", int, str)
Row = dict[str, Any]


def argument(name: str, default: Value) -> Value:
    """Return the value of `name=value` on the command line, of the default's type.

    Args:
        name: what stands before the equals sign.
        default: the value where it is not given.
    """
    given = dict(text.partition("=")[::2] for text in sys.argv[1:])
    return type(default)(given.get(f"{Path(sys.argv[0]).stem}.{name}", given.get(name, default)))


def results() -> Path:
    """Return the folder of the JSON files: `benchmarks/results/`, or what `results=FOLDER` says."""
    return Path(argument("results", str(Path(__file__).parent / "results")))


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


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds that a call costs this process; other load disturbs them less than those on the wall."""
    started = time.process_time()
    call()
    return time.process_time() - started


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    measure: Callable[[Callable[[], object]], float] = cpu_seconds,
    least: int = _MIN_ROUNDS,
) -> dict[str, list[float]]:
    """Return what each call costs in each round.

    Args:
        calls: contenders by name; each runs once per round, in an order that is reversed from round to round.
        seconds: rounds go on for so long, after the one to warm up, which is left out.
        measure: runs a call and returns its cost.
        least: rounds, however long they take.
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    order, until = list(calls), time.perf_counter() + seconds
    while len(spent[order[0]]) <= least or time.perf_counter() < until:
        for name in order:
            spent[name].append(measure(calls[name]))
        order.reverse()
    return {name: values[1:] for name, values in spent.items()}


def ratios(
    case: str, spent: Mapping[str, Sequence[float]], outputs: Mapping[str, str] | None = None, unit: str = "ms"
) -> list[Row]:
    """Return a row of the table for each contender other than `ours`.

    Args:
        case: what was measured.
        spent: cost in each round by contender, in seconds where the unit is ms.
        outputs: by contender, in words, how its output compares with ours.
        unit: of the costs in the table.
    """
    scale = 1000 if unit == "ms" else 1
    ours = spent["ours"]
    rows = []
    for name, theirs in spent.items():
        if name == "ours":
            continue
        each = [their / our for their, our in zip(theirs, ours, strict=True)]
        rows.append(
            {
                "case": case, "against": name, "ratio": median(each), "least": min(each), "most": max(each),
                "of_minima": min(theirs) / min(ours), "theirs": scale * median(theirs), "ours": scale * median(ours),
                "unit": unit, "rounds": len(each), "output": (outputs or {}).get(name, ""),
            }
        )  # fmt: skip
    return rows


def finish(benchmark: str, rows: Sequence[Row], **more: Any) -> None:
    """Print what was found and write it to `<benchmark>.json`; arguments as for `save`."""
    content = save(benchmark, rows, **more)
    print(f"{benchmark}: {described(content['environment'])}")
    if rows:
        print(table(rows))


def save(benchmark: str, rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """Write what was found to `<benchmark>.json`, and return it.

    Args:
        benchmark: its name.
        rows: of `ratios`.
        more: further findings, plain values by name.
    """
    content = {"benchmark": benchmark, "environment": environment(), "rows": list(rows), **more}
    write_text(results() / f"{benchmark}.json", json.dumps(content, indent=1) + "\n")
    return content


def composed(experiment: str, *overrides: str) -> dict[str, Any]:
    """Return `data` and `model` of an experiment's configuration as plain values.

    Args:
        experiment: its name.
        overrides: as on the command line.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from ihc2he import config

    config.register()
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}", *overrides])
    return {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("data", "model")}


def table(rows: Sequence[Row]) -> str:
    """Return rows of `ratios` as text: the median of the rounds' ratios, the least of them, and the ratio of minima."""
    case, against = (max(len(row[key]) for row in [{key: key}, *rows]) + 2 for key in ("case", "against"))
    heads = f"{'ratio':>8}{'least':>8}{'of minima':>11}{'theirs':>10}{'ours':>10}{'rounds':>8}  output"
    lines = [f"{'case':<{case}}{'against':<{against}}{heads}"]
    for row in rows:
        lines.append(
            f"{row['case']:<{case}}{row['against']:<{against}}{row['ratio']:>7.1f}x{row['least']:>7.1f}x"
            f"{row['of_minima']:>10.1f}x{row['theirs']:>7.4g} {row['unit']}{row['ours']:>7.4g} {row['unit']}"
            f"{row['rounds']:>8}  {row['output']}"
        )
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Return what the figures depend on: processor, GPU, threads, load, versions."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": None,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def described(where: Mapping[str, Any]) -> str:
    """Return an environment as one line."""
    gpu = f", {where['gpu']}" if where["gpu"] else ""
    threads = f", torch {where['torch']}, threads: {where['threads']}" if "threads" in where else ""
    return f"{where['processor']}, {where['cores']} cores{gpu}, load {where['load']}, Python {where['python']}{threads}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
