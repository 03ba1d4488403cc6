"""Runs cases: each in a child of one warm process, through the entry point's own function, with limits, and judges it.

A case starts from a good run (a scenario), changes its input, and has to end in a clear message, in a counted skip, or
in a result that is proven to be right. Anything else is a defect.
"""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

SECONDS = 120  # a good run takes 1 to 3 on a quiet core
MEMORY = 6 * 2**30  # bytes of address space beyond what the parent has
MARKER = "OWNED"  # what hostile input tries to leave in the working directory
CLEAR, SKIP, HARMLESS, DEFECT = OUTCOMES = ("clear error", "counted skip", "harmless, proven", "defect")
REMEDY = re.compile(
    r"\b(expected|pass|give|choose|check|delete|remove|leave|export|download|copy|mend|use|did you mean|rename|set|"
    r"continue|repeat|save|quote|fill|start|install|there is no|has no|cannot read|such as|write|complete|has to|"
    r"have to|take|could not be converted to|is not a|not found|cannot merge|is not optional|no match|requires|"
    r"recursive interpolation|cannot be read as|see|"
    r"cannot assign|cannot convert|unrecognized arguments)\b|known: ",
    re.IGNORECASE,
)
SKIPPED = re.compile(r"left out \d+|\d+ images are left out|left out [^\n]*\d")


@dataclass(frozen=True)
class Change:
    """What a mutation has done to the copy of a scenario's input.

    Attributes:
        arguments: added to the scenario's command line, so that they win.
        names: the message has to contain one of them.
        valid: why the changed input is right by definition; "" where it is not.
        twin: makes, of a fresh copy, the plain input that has to give the same result; it returns arguments.
    """

    arguments: Sequence[str] = ()
    names: Sequence[str] = ()
    valid: str = ""
    twin: Callable[[], Sequence[str]] | None = None


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        kind: of input, a row of the table.
        family: of mutations.
        scenario: the good run that it starts from.
        mutate: changes files of the working directory.
        number: tells variants of a family apart, and seeds them.
        detail: tells them apart too, such as a file.
    """

    kind: str
    family: str
    scenario: str
    mutate: Callable[[np.random.Generator], Change]
    number: int = 0
    detail: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind} / {self.family} / {self.scenario} / {self.detail}{self.number}"


@dataclass(frozen=True)
class Scenario:
    """A good run: a command line, and the input that is copied into its working directory."""

    arguments: Sequence[str]
    files: Sequence[str] = ()


@dataclass
class Ending:
    """How one run ended."""

    status: int | None  # None: it raised something that the command line does not expect
    error: str = ""  # class of what it ended with
    message: str = ""
    output: str = ""
    digest: dict[str, str] = field(default_factory=dict)
    change: dict[str, Any] = field(default_factory=dict)
    twin: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass
class Verdict:
    """What became of a case."""

    case: Case
    outcome: str
    why: str
    ending: Ending


def generator(case: Case, seed: int) -> np.random.Generator:
    """Return the case's own source of randomness."""
    return np.random.default_rng([seed, crc32(case.name.encode())])


# ------------------------------------------------------------------ one run, in a child


def furnish(scenario: Scenario, world: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in scenario.files:
        source, target = world / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)


def _main(arguments: Sequence[str]) -> Ending:
    """Return how the command line ends in this process."""
    from ihc2he import explain, train

    seen: list[Exception] = []
    leave = train._exit

    def note(error: Exception) -> None:
        seen.append(error)
        leave(error)

    train._exit = note  # type: ignore[assignment]
    # argparse takes no values behind options that stand behind values
    sys.argv = ["ihc2he", *sorted(arguments, key=lambda argument: not argument.startswith("--"))]
    try:
        train.main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        error = seen[0] if seen else None
        return Ending(status, type(error).__name__ if error else "", explain.one_line(error) if error else "")
    except BaseException as error:
        return Ending(None, type(error).__name__, "".join(traceback.format_exception(error)))
    return Ending(0)


def digest(folder: Path, given: Sequence[str] = ()) -> dict[str, str]:
    """Return what tells the results of two runs apart: weights, tables, predictions, and the tile stores they built.

    Args:
        folder: the working directory of the run.
        given: what was there before it; a store in it is no result.
    """
    import hashlib

    import h5py
    import torch

    def of(*parts: bytes) -> str:
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    found = {}
    for path in sorted((folder / "out").rglob("*")):
        key = path.relative_to(folder / "out").as_posix()
        if path.name == "last.ckpt":
            state = torch.load(path, weights_only=True)["state_dict"]
            found[key] = of(*(v.contiguous().numpy().tobytes() for v in state.values()))
        elif path.name == "test.csv":
            found[key] = of(_without(path, "checkpoint").encode())
        elif path.name in ("results.csv", "failed.csv", "nuclei.csv") or path.suffix == ".geojson":
            found[key] = of(path.read_bytes())
    for path in sorted(folder.rglob("tiles.h5")):
        if path.relative_to(folder).parts[0] in given:
            continue
        with h5py.File(path, "r", locking=False) as file:
            arrays = [
                (f"{group}/{name}{data.shape}{data.dtype}".encode(), data[()].tobytes())
                for group in sorted(set(file) - {"source", "rows", "skipped"})
                for name, data in sorted(file[group].items())
            ]
        found[path.relative_to(folder).as_posix()] = of(*(part for pair in arrays for part in pair))
    return found


def _without(path: Path, column: str) -> str:
    """Return the rows of a table without a column, such as one that names files of the run."""
    with path.open(newline="", encoding="utf-8") as stream:
        return repr([{key: value for key, value in row.items() if key != column} for row in csv.DictReader(stream)])


def _child(case: Case, scenario: Scenario, world: Path, folder: Path, seed: int) -> None:
    """Run a case and leave `ending.json`; never returns."""
    status = 1
    try:
        os.setsid()  # so that what it starts can be ended with it
        folder.mkdir(parents=True)
        out = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, limit))
        ending = _run_case(case, scenario, world, folder, seed)
        sys.stdout.flush()
        sys.stderr.flush()
        text = json.dumps(ending.__dict__, default=str)
        (folder / "ending.part").write_text(text)
        (folder / "ending.part").rename(folder / "ending.json")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _run_case(case: Case, scenario: Scenario, world: Path, folder: Path, seed: int) -> Ending:
    home = folder / "run"
    furnish(scenario, world, home)
    os.chdir(home)
    change = case.mutate(generator(case, seed))
    started = time.perf_counter()
    ending = _main([*scenario.arguments, *change.arguments])
    ending.seconds = time.perf_counter() - started
    ending.change = {"arguments": list(change.arguments), "names": list(change.names), "valid": change.valid}
    if ending.status == 0:
        ending.digest = digest(home, scenario.files)
    if ending.status == 0 and change.twin is not None:
        second = folder / "twin"
        furnish(scenario, world, second)
        os.chdir(second)
        plain = _main([*scenario.arguments, *change.twin()])
        ending.twin = digest(second, scenario.files) if plain.status == 0 else {"failed": plain.message}
        os.chdir(home)
    return ending


def _address_space() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            return int(line.split()[1]) * 1024
    return 0


def in_child(work: Callable[[], None], seconds: float = 600) -> None:
    """Run a function in a child, so that nothing of it stays in this process; raise where it fails."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    if ended[1]:
        msg = "preparing an input failed; its traceback is above"
        raise RuntimeError(msg)


# ------------------------------------------------------------------ all of them


def run_cases(
    cases: Sequence[Case], scenarios: Mapping[str, Scenario], world: Path, work: Path, seed: int, workers: int = 1
) -> Iterator[Verdict]:
    """Yield what becomes of each case, in the order in which they end.

    Args:
        cases: what to run.
        scenarios: by name.
        world: folder with the good inputs.
        work: folder for the runs; those of defects stay.
        seed: of the mutations.
        workers: children at a time.
    """
    good = {name: scenarios[name] for name in sorted({case.scenario for case in cases})}
    untouched = [Case("good", "none", name, lambda rng: Change()) for name in good]
    baseline: dict[str, dict[str, str]] = {}
    for case, ending, folder in _endings(untouched, scenarios, world, work / "good", seed, workers):
        if ending.status != 0:
            msg = f"the unchanged scenario {case.scenario} failed: {ending.error} {ending.message}\n{ending.output}"
            raise RuntimeError(msg)
        baseline[case.scenario] = ending.digest
        shutil.rmtree(folder, ignore_errors=True)
    for case, ending, folder in _endings(cases, scenarios, world, work / "cases", seed, workers):
        outcome, why = judge(ending, baseline[case.scenario], folder / "run")
        if outcome != DEFECT:
            shutil.rmtree(folder, ignore_errors=True)
        yield Verdict(case, outcome, why, ending)


def _endings(
    cases: Sequence[Case], scenarios: Mapping[str, Scenario], world: Path, work: Path, seed: int, workers: int
) -> Iterator[tuple[Case, Ending, Path]]:
    shutil.rmtree(work, ignore_errors=True)
    todo, running = list(enumerate(cases)), {}
    while todo or running:
        while todo and len(running) < workers:
            number, case = todo.pop(0)
            folder = work / f"{number:04d}"
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                _child(case, scenarios[case.scenario], world, folder, seed)
            running[pid] = (case, folder, time.monotonic() + SECONDS)
        time.sleep(0.01)
        for pid, (case, folder, deadline) in list(running.items()):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                del running[pid]
                yield case, _ending(folder, status, time.monotonic() > deadline), folder


def _ending(folder: Path, status: int, late: bool) -> Ending:
    output = (folder / "output.txt").read_text(errors="replace") if (folder / "output.txt").is_file() else ""
    note = folder / "ending.json"
    if note.is_file():
        ending = Ending(**json.loads(note.read_text()))
    elif late:
        ending = Ending(None, "hang", f"not finished after {SECONDS} s")
    else:
        ending = Ending(None, "crash", f"the process ended with {os.waitstatus_to_exitcode(status)}: {output[-1500:]}")
    ending.output = output
    return ending


def judge(ending: Ending, baseline: Mapping[str, str], home: Path) -> tuple[str, str]:
    """Return the outcome of a run, and why it is that."""
    if list(home.rglob(MARKER)):
        return DEFECT, "code of the input was executed"
    if ending.status is None:
        return DEFECT, f"{ending.error}: {ending.message[-600:]}"
    if half := [path for path in home.rglob("*.part*") if path.is_file()]:
        return DEFECT, f"a half-written file is left: {half[0].name}"
    if ending.status != 0:
        return _judged_message(ending)
    if SKIPPED.search(ending.output):
        return SKIP, SKIPPED.search(ending.output)[0]  # type: ignore[index]
    if ending.twin is not None:
        if ending.twin == ending.digest:
            return HARMLESS, "equals the plain equivalent"
        return DEFECT, f"differs from its plain equivalent: {_differences(ending.digest, ending.twin)}"
    if ending.digest == baseline and baseline:
        return HARMLESS, "equals the unchanged run"
    if ending.change["valid"]:
        return HARMLESS, ending.change["valid"]
    return DEFECT, f"accepted, and the result differs: {_differences(ending.digest, baseline)}"


def _differences(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    return ", ".join(sorted(key for key in {*one, *other} if one.get(key) != other.get(key))) or "nothing to compare"


def _judged_message(ending: Ending) -> tuple[str, str]:
    said = [line for line in ending.output.splitlines() if line.startswith("ihc2he: ")]
    text, names = ending.message or (said[-1] if said else ""), ending.change["names"]
    shown = text.replace("\n", " ")[:500]
    if ending.status not in (1, 2) or not text:
        return DEFECT, f"ended with {ending.status} and without a message"
    if "Traceback" in text or "Traceback" in ending.output:
        return DEFECT, f"a traceback is shown: {shown} {ending.output[-500:]}"
    if names and not any(name in text for name in names):
        return DEFECT, f"the message names none of {list(names)}: {shown}"
    if not REMEDY.search(text):
        return DEFECT, f"the message says neither what was expected nor what to do: {shown}"
    return CLEAR, shown
