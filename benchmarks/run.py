"""Runs all benchmarks and collects their results in one table of ratios, one JSON file and one picture.

    OMP_NUM_THREADS=1 python benchmarks/run.py [only=NAME,NAME] [--write-docs] [SCRIPT.NAME=VALUE ...]

Set the size of a benchmark with, for example, `growth.tiles=100` (see the first lines of each script). `only=` runs
some of them and adds earlier results of the others; `only=none` runs none. `--write-docs` updates the tables between
the markers of docs/benchmarks.md, and the picture. It includes results of benchmarks/gpu.py, but does not run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from timing import Row, argument, described, results, table

from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.files import write_text

SCRIPTS = (
    "cyclegan_step", "hovernet_step", "loading", "painting", "hv_targets", "postprocessing", "panoptic", "keypoints",
    "prediction", "growth", "overlap", "startup", "memory",
)  # fmt: skip
HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
BEGIN, END = "<!-- written by benchmarks/run.py -->", "<!-- end -->"
OURS, THEIRS = "#0072B2", "#D55E00"  # of two colours that colour-blind readers can tell apart


def run(script: str) -> None:
    """Run a script with the options of this one, in a process of its own.

    Raises:
        SystemExit: where it fails, naming it.
    """
    print(f"\n== {script}", flush=True)
    env = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run([sys.executable, "-W", "ignore", HERE / f"{script}.py", *sys.argv[1:]], env=env, check=False)
    if done.returncode:
        sys.exit(f"benchmarks/{script}.py failed with status {done.returncode}.")


def joined() -> dict[str, Any]:
    """Return what each benchmark has left in the folder of results, by its name."""
    paths = {name: results() / f"{name}.json" for name in (*SCRIPTS, "gpu")}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def all_rows(found: dict[str, Any]) -> list[Row]:
    """Return the ratios of all benchmarks."""
    return [row for own in found.values() for row in own["rows"]]


def markdown(found: dict[str, Any]) -> str:
    """Return the tables of the documentation."""
    sections = {"prediction": _rates, "growth": _growth, "memory": _peaks, "overlap": _overlap, "gpu": _gpu}
    heads = ["case", "compared with", "ratio", "lowest ratio", "theirs", "ours", "output"]
    lines = [*_grid(heads, map(_cells, all_rows(found)))]
    for name, section in sections.items():
        if name in found:
            lines += ["", *section(found[name])]
    loads = [own["environment"]["load"] for own in found.values()]
    common = {"threads": 1, "load": f"{min(loads)} to {max(loads)}"}  # the load when each script ended
    lines += ["", *dict.fromkeys(f"{described(own['environment'] | common)}." for own in found.values())]
    return "\n".join(lines)


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cells(row: Row) -> list[str]:
    costs = [f"{_short(row[side])} {row['unit']}" for side in ("theirs", "ours")]
    return [row["case"], row["against"], _times(row["ratio"]), _times(row["least"]), *costs, row["output"]]


def _rates(found: dict[str, Any]) -> Iterable[str]:
    stages = list(found["rates"][0]["shares"])
    rows = [
        [
            *(row["method"], _short(row["tiles_per_s"]), _short(row["mm2_per_s"])),
            f"{row['tiles']} of {row['side']} px in {row['command_line_s']:.1f} s",
            *(f"{row['shares'][stage]:.0%}" for stage in stages),
        ]
        for row in found["rates"]
    ]
    return _grid(["prediction", "tiles/s", "mm2/s", "command line", *stages], rows)


def _growth(found: dict[str, Any]) -> Iterable[str]:
    rows = [
        [
            *(row["over"], f"{row['sizes'][0]} to {row['sizes'][-1]}", f"{_short(1000 * row['s_for_one_more'])} ms"),
            *(f"{row['fixed_s']:.2f} s", f"{row['r2']:.4f}", f"{row['last_step']:.2f}"),
        ]
        for row in found["growth"]
    ]
    heads = ["growth with", "sizes", "each one costs", "fixed cost", "R2 of the line", "slope at the end / of the line"]
    return _grid(heads, rows)


def _peaks(found: dict[str, Any]) -> Iterable[str]:
    peaks = ", ".join(f"{entry['mb']:.0f} MB for {entry['tiles']} tiles" for entry in found["prediction_mb"])
    return [f"Peak memory of a prediction of 256-px tiles, above that after the imports: {peaks}."]


def _overlap(found: dict[str, Any]) -> Iterable[str]:
    times = ", ".join(f"{what} {ms:.1f} ms" for what, ms in found["per_tile_ms"].items())
    share = f"{found['overlapped']:.0%} of the tiles began while workers were busy"
    return [f"Prediction with a simulated device instead of the networks, per tile: {times}; {share}."]


def _gpu(found: dict[str, Any]) -> Iterable[str]:
    rows = [
        [
            *(row["case"], _short(row["images_per_s"])),
            _short(row["published_images_per_s"]) if row["published_images_per_s"] else "",
            *(_short(row["tflops"]), f"{row['share_of_ceiling']:.0%}"),
        ]
        for row in found["rates"]
    ]
    yield from _grid(["on the GPU", "images/s", "published", "TFLOP/s", "of the bf16 ceiling"], rows)
    if whole := found.get("prediction"):
        yield from ("", f"cyclegan+hovernet, {whole['tiles']} tiles from files to files: {whole['wall_s']:.0f} s.")


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the ratios as bars on a logarithmic axis, from the least to the most of the rounds, and the growth."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = all_rows(found)[::-1]
    growth = found.get("growth", {}).get("growth", [])
    figure, panels = plt.subplot_mosaic(
        [["bars", f"growth{i}"] for i in range(len(growth))] or [["bars"]],
        figsize=(13, 1.5 + 0.26 * max(len(rows), 10)), width_ratios=[1.4, 1] if growth else None, layout="constrained",
    )  # fmt: skip
    bars = panels["bars"]
    bars.barh(range(len(rows)), [row["ratio"] - 1 for row in rows], left=1, color=OURS)
    for i, row in enumerate(rows):
        bars.plot([row["least"], row["most"]], [i, i], color="black", linewidth=1)
        bars.annotate(f" {_times(row['ratio'])}", (max(row["ratio"], row["most"], 1), i), va="center", fontsize=8)
    bars.set_yticks(range(len(rows)), [f"{row['case']} ({row['against']})" for row in rows], fontsize=8)
    bars.set(xscale="log", ylim=(-0.6, len(rows) - 0.4), xlabel="theirs / ours: time, or memory")
    bars.margins(x=0.12)
    bars.axvline(1, color="black", linewidth=0.8)
    for i, row in enumerate(growth):
        axes = panels[f"growth{i}"]
        ends = [0, row["sizes"][-1]]
        axes.plot(ends, [row["fixed_s"] + row["s_for_one_more"] * end for end in ends], color=THEIRS, linewidth=1)
        axes.plot(row["sizes"], row["cpu_s"], "o", color=OURS)
        axes.set(xlabel=row["over"], ylabel="CPU s", ylim=(0, None), title=f"R2 of the line {row['r2']:.4f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_docs(found: dict[str, Any]) -> None:
    """Put tables and picture into the documentation.

    Raises:
        SystemExit: where the markers are missing.
    """
    page = DOCS / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{page}: expected the lines '{BEGIN}' and '{END}', between which the tables go.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    draw(found, DOCS / "images" / "benchmarks.png")
    write_text(page, f"{before}{BEGIN}\n{markdown(found)}\n{END}{after}")


def chosen() -> list[str]:
    """Return the scripts that `only=` names, or all.

    Raises:
        ConfigError: for a name that is none of them.
    """
    names = argument("only", ",".join(SCRIPTS)).split(",")
    for name in names:
        if name not in (*SCRIPTS, "none"):
            msg = f"only={name}: there is no such benchmark.{did_you_mean(name, SCRIPTS)}"
            raise ConfigError(msg)
    return [name for name in names if name != "none"]


if __name__ == "__main__":
    try:
        scripts = chosen()
    except ConfigError as error:
        sys.exit(str(error))
    for script in scripts:
        run(script)
    found = joined()
    print(f"\n{table(all_rows(found))}")
    draw(found, results() / "benchmarks.png")
    write_text(results() / "benchmarks.json", json.dumps(found, indent=1) + "\n")
    print(f"\nWritten: {results() / 'benchmarks.json'} and benchmarks.png beside it.")
    if "--write-docs" in sys.argv:
        write_docs(found)
