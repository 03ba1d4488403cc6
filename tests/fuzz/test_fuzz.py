"""That the harness finds what it is there to find; the full run is `make fuzz`."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import harness
from fuzzing.harness import CLEAR, DEFECT, HARMLESS, MARKER, SKIP, Case, Change, Ending, Scenario, judge
from fuzzing.report import all_cases, sampled

GOOD = {"run/test.csv": "aa"}


def ending(status=0, message="", output="", digest=GOOD, twin=None, names=(), valid=""):
    change = {"arguments": [], "names": list(names), "valid": valid}
    return Ending(status, "DataError", message, output, dict(digest), change, twin)


@pytest.mark.parametrize(
    ("run", "outcome", "why"),
    [
        (ending(1, "a.png: empty. Copy it again.", names=["a.png"]), CLEAR, "a.png"),
        (ending(1, "it is empty. Copy it again.", names=["a.png"]), DEFECT, "names none of"),
        (ending(1, "a.png: oh.", names=["a.png"]), DEFECT, "neither what was expected"),
        (ending(1, "", names=["a.png"]), DEFECT, "without a message"),
        (ending(1, "a.png: empty. Copy it.", output="Traceback (most"), DEFECT, "traceback"),
        (ending(None, "ValueError: x"), DEFECT, "ValueError"),
        (ending(0), HARMLESS, "equals the unchanged run"),
        (ending(0, digest={"run/test.csv": "bb"}), DEFECT, "the result differs: run/test.csv"),
        (ending(0, digest={"run/test.csv": "bb"}, valid="as documented"), HARMLESS, "as documented"),
        (ending(0, digest={"run/test.csv": "bb"}, twin={"run/test.csv": "bb"}), HARMLESS, "plain equivalent"),
        (ending(0, digest={"run/test.csv": "bb"}, twin={"run/test.csv": "cc"}), DEFECT, "plain equivalent"),
        (ending(0, output="WARNING left out 2 lines"), SKIP, "left out 2"),
    ],
)
def test_an_ending_is_judged(tmp_path, run, outcome, why):
    found, said = judge(run, GOOD, tmp_path)
    assert (found, why in said) == (outcome, True), said


def test_executed_code_and_half_files_are_defects_however_the_run_ended(tmp_path):
    (tmp_path / ".x.7.part.csv").touch()
    assert judge(ending(0), GOOD, tmp_path)[0] == DEFECT
    assert judge(ending(1, "a.png: empty. Copy it again."), GOOD, tmp_path)[0] == DEFECT
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / MARKER).touch()
    assert judge(ending(1, "a.png: empty. Copy it again."), GOOD, tmp_path) == (
        DEFECT,
        "code of the input was executed",
    )


def test_a_case_that_hangs_or_crashes_does_not_stop_the_harness(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 1)

    def hang(rng):
        time.sleep(60)
        return Change()

    def crash(rng):
        import os

        os.abort()

    cases = [Case("k", "hang", "none", hang), Case("k", "crash", "none", crash)]
    found = harness._endings(cases, {"none": Scenario(())}, tmp_path, tmp_path / "work", 0, 2)
    assert Counter((case.family, end.error) for case, end, _ in found) == {("hang", "hang"): 1, ("crash", "crash"): 1}


def test_there_are_500_cases_of_all_kinds_and_each_has_a_name():
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases) >= 500
    assert min(Counter(case.kind for case in cases).values()) >= 40
    drawn = sampled(cases, 600, 0)
    assert len(drawn) == 600
    assert {(case.kind, case.family) for case in drawn} == {(case.kind, case.family) for case in cases}


def test_a_few_cases_run_and_none_is_a_defect(tmp_path):
    script = Path(__file__).parent / "run.py"
    arguments = ["--quick", "--cases", "15", "--shell", "0", "--seed", "8", "--work", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "15 cases with seed 8, 0 defects" in done.stdout
