"""The command line of the harness, and the table that it leaves."""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from . import arrays, bundles, checkpoints, configurations, images, labels, slides
from .good import SCENARIOS, build_world
from .harness import CLEAR, DEFECT, OUTCOMES, Case, Verdict, run_cases
from .shell import through_the_shell

DOCS = Path(__file__).parents[3] / "docs" / "robustness.md"
BEGIN, END = "<!-- table: written by `make fuzz` -->", "<!-- end of the table -->"
UNTRAINED = ("CycleGAN, fit", "EndoNuke", "points", "prediction", *slides.SCENARIOS.values(), "slide, regions")
KINDS = (configurations, images, slides, labels, arrays, checkpoints, bundles)


def all_cases() -> list[Case]:
    """Return every case, in the order of the table."""
    return [case for kind in KINDS for case in kind.cases()]


def sampled(cases: Sequence[Case], n: int, seed: int) -> list[Case]:
    """Return some of the cases in random order: one of each family of a kind, and others up to a number."""
    order = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
    first = {(case.kind, case.family): case for case in reversed(order)}
    ranked = list(dict.fromkeys(case.name for case in [*first.values(), *order]))
    chosen = set(ranked[: max(n, len(first))])
    return [case for case in order if case.name in chosen]


def warm_up() -> None:
    """Import what the children need, so that they need not."""
    import albumentations  # noqa: F401
    import piq  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import skimage.segmentation  # noqa: F401
    import torch

    import ihc2he.callbacks.panels
    import ihc2he.callbacks.predictions
    import ihc2he.callbacks.slides
    import ihc2he.data.bci
    import ihc2he.data.endonuke
    import ihc2he.data.nuclei
    import ihc2he.data.pannuke
    import ihc2he.data.points
    import ihc2he.data.slides
    import ihc2he.data.unpaired
    import ihc2he.models.pipeline.slides
    import ihc2he.models.segmentation.hovernet.module
    import ihc2he.models.translation.cyclegan.module
    import ihc2he.report.tiles
    import ihc2he.runner  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is here is shared with the children as it is


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases, print what is wrong and the table; exit with 1 where any case is a defect."""
    parser = argparse.ArgumentParser(description="600 malformed inputs, and how each of them ends.")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument(
        "--cases", type=int, default=600, help="how many are chosen at random; every family at least once"
    )
    parser.add_argument("--all", action="store_true", help="all cases, about 1,900")
    parser.add_argument("--quick", action="store_true", help="any --cases of those that need no trained model")
    parser.add_argument("--shell", type=int, default=20, help="how many also go through the real command line")
    parser.add_argument("--workers", type=int, default=2, help="children at a time")
    parser.add_argument("--work", type=Path, help="folder for the runs; correct inputs already in it are used again")
    parser.add_argument("--write-docs", action="store_true", help=f"update the table in {DOCS.name}")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    work = options.work or Path(tempfile.mkdtemp(prefix="ihc2he_fuzz_"))
    warm_up()
    build_world(work / "world", models=not options.quick)
    cases = [case for case in all_cases() if options.only in case.name]
    if options.quick:
        untrained = [case for case in cases if case.scenario in UNTRAINED]
        cases = sampled(untrained, len(untrained), options.seed)[: options.cases]
    elif not options.all:
        cases = sampled(cases, options.cases, options.seed)
    verdicts = []
    for verdict in run_cases(cases, SCENARIOS, work / "world", work, options.seed, options.workers):
        verdicts.append(verdict)
        if verdict.outcome == DEFECT or options.verbose:
            print(f"{verdict.outcome.upper()} {verdict.case.name} {verdict.ending.change.get('arguments', '')}\n"
                  f"    {verdict.why}", flush=True)  # fmt: skip
    print(f"\n{table(verdicts)}\n")
    bad = sum(verdict.outcome == DEFECT for verdict in verdicts)
    chosen = _drawn(verdicts, options.shell, options.seed)
    failed = 0
    for case in chosen:
        good, said = through_the_shell(case, SCENARIOS, work / "world", work, options.seed)
        failed += not good
        if not good or options.verbose:
            print(f"{'ok' if good else 'DEFECT'}, command line: {case.name}\n    {said}", flush=True)
    minutes = (time.perf_counter() - started) / 60
    line = (
        f"{len(verdicts)} cases with seed {options.seed}, {bad} defects; {len(chosen)} of them also run "
        f"through `python -m ihc2he.train`, {failed} defects."
    )
    print(f"{line} {minutes:.1f} minutes. Defects are kept in {work}.")
    if options.write_docs:
        write_docs(f"{table(verdicts)}\n\n{line}")
    gc.unfreeze()
    sys.exit(bool(bad or failed))


def _drawn(verdicts: Iterable[Verdict], n: int, seed: int) -> list[Case]:
    """Return cases that ended in a message, as many of each kind as possible."""
    groups: dict[str, list[Case]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.case.name):
        if verdict.outcome == CLEAR:
            groups.setdefault(verdict.case.kind, []).append(verdict.case)
    rng = np.random.default_rng(seed)
    order = [[group[i] for i in rng.permutation(len(group))] for group in groups.values()]
    return [case for i in range(n) for case in (group[i] for group in order if i < len(group))][:n]


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the outcomes by kind of input as a table in Markdown."""
    rows = [["kind of input", "mutations", "cases", *OUTCOMES], ["---"] * (3 + len(OUTCOMES))]
    kinds = dict.fromkeys(case.kind for case in all_cases())
    total: Counter[str] = Counter()
    for kind in kinds:
        of_kind = [verdict for verdict in verdicts if verdict.case.kind == kind]
        if of_kind:
            counts = Counter(verdict.outcome for verdict in of_kind)
            total += counts
            families = dict.fromkeys(verdict.case.family for verdict in sorted(of_kind, key=lambda v: v.case.family))
            rows.append([kind, "; ".join(families), str(len(of_kind)), *(str(counts[name]) for name in OUTCOMES)])
    rows.append(["**all**", "", str(len(verdicts)), *(str(total[name]) for name in OUTCOMES)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_docs(text: str) -> None:
    """Replace the table of the page."""
    page = DOCS.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
