"""Runs a case through the real command line, as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

from .harness import MARKER, SECONDS, Case, Scenario, furnish, generator, in_child


def through_the_shell(
    case: Case, scenarios: Mapping[str, Scenario], world: Path, work: Path, seed: int
) -> tuple[bool, str]:
    """Return whether `python -m ihc2he.train` ends a case as a user should see it, and what it said."""
    scenario = scenarios[case.scenario]
    folder = work / "shell" / f"{crc32(case.name.encode()):08x}"
    shutil.rmtree(folder, ignore_errors=True)
    note = folder.with_suffix(".json")

    def prepare() -> None:
        furnish(scenario, world, folder)
        os.chdir(folder)
        change = case.mutate(generator(case, seed))
        note.write_text(json.dumps([*scenario.arguments, *change.arguments]))

    in_child(prepare)
    arguments = json.loads(note.read_text())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ihc2he.train", *sorted(arguments, key=lambda text: not text.startswith("--"))],
            cwd=folder, capture_output=True, text=True, timeout=2 * SECONDS, check=False, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"not finished after {2 * SECONDS} s"
    lines = [line for line in done.stderr.splitlines() if line.startswith("ihc2he: ")]
    good = done.returncode in (1, 2) and len(lines) == 1 and "Traceback" not in done.stderr + done.stdout
    if list(folder.rglob(MARKER)):
        return False, "code of the input was executed"
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    return good, f"status {done.returncode}: {lines[0] if lines else done.stderr[-600:]}"
