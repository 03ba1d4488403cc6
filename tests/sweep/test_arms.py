"""The comparison of the arms of a study: means over trainings, and paired differences over cases."""

import csv
import json

import pytest

from ihc2he.errors import DataError
from ihc2he.models.classification.evaluation import GradingEvaluation
from ihc2he.sweep.arms import FIRST, compare
from ihc2he.sweep.pictures import differences

KEYS = ["study/gan", "study/arm"]
REFERENCE = {"study/gan": "none", "study/arm": "augmented"}
CLASSES = ("0", "3+")


def job(folder, number, gan, arm, seed, right, tiles=12, cases=6, known=12):
    """A job whose tiles of the cases in `right` are graded correctly, and all others wrongly; rows of `results.csv`."""
    home = folder / str(number)
    home.mkdir(parents=True)
    overrides = {"experiment": "study_her2", "study/gan": gan, "study/arm": arm, "seed": str(seed)}
    note = {"job": number, "overrides": overrides, "command": "", "status": "finished"}
    (home / "job.json").write_text(json.dumps(note | {"metric": None, "better": "higher", "value": None}))
    rows = []
    for i in range(tiles):
        case, true = f"case{i % cases}", CLASSES[i % 2]
        found = true if case in right else CLASSES[1 - i % 2]
        rows.append({"name": f"{i:02d}", "group": true, "case": case if i < known else "", "found": found})
        rows[-1] |= {f"p {kind}": 0.9 if kind == found else 0.1 for kind in CLASSES}
    with (home / "results.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_an_arm_is_compared_with_the_reference_over_the_trainings_that_both_have(tmp_path):
    some, more, everything = ["case0", "case1"], [f"case{i}" for i in range(4)], [f"case{i}" for i in range(6)]
    job(tmp_path, 0, "none", "augmented", 0, some)
    job(tmp_path, 1, "none", "augmented", 1, more)
    job(tmp_path, 2, "sngan", "balanced", 0, more)
    job(tmp_path, 3, "sngan", "balanced", 1, everything)
    job(tmp_path, 4, "sngan", "balanced", 2, [])  # has no partner
    rows = {(row["study/arm"], row["metric"]): row for row in compare(tmp_path, KEYS, REFERENCE)}

    reference, arm = rows["augmented", FIRST], rows["balanced", FIRST]
    assert (reference["mean"], reference["trainings"]) == (pytest.approx(1 / 2), 2)
    assert (reference["difference"], reference["pairs"]) == (None, 0)
    assert (arm["mean"], arm["trainings"]) == (pytest.approx((2 / 3 + 1 + 0) / 3), 3)
    assert (arm["difference"], arm["pairs"]) == (pytest.approx(1 / 3), 2)
    assert arm["difference_low"] < arm["difference"] < arm["difference_high"]
    assert rows["augmented", "accuracy"]["mean"] == pytest.approx(1 / 2)

    differences(tmp_path / "study.png", [row for row in rows.values() if row["metric"] == FIRST], "augmented")
    assert (tmp_path / "study.png").stat().st_size > 1000


def test_equal_arms_differ_by_nothing(tmp_path):
    for number, (gan, arm) in enumerate([("none", "augmented"), ("sngan", "balanced")]):
        job(tmp_path, number, gan, arm, 0, ["case0", "case3"])
    row = compare(tmp_path, KEYS, REFERENCE)[-1]
    assert [row[key] for key in ("difference", "difference_low", "difference_high", "pairs")] == [0, 0, 0, 1]


def test_jobs_that_were_tested_on_other_tiles_are_refused(tmp_path):
    job(tmp_path, 0, "none", "augmented", 0, [])
    job(tmp_path, 1, "sngan", "balanced", 0, [], tiles=10)
    with pytest.raises(DataError, match=r"1.results.csv has 10 tiles, not the 12 of .*0.results.csv"):
        compare(tmp_path, KEYS, REFERENCE)


def test_trainings_that_share_a_generator_are_drawn_together(tmp_path):
    half, everything = ["case0", "case1", "case2"], [f"case{i}" for i in range(6)]
    for seed in range(6):
        job(tmp_path, seed, "sngan", "balanced", seed, half if seed < 3 else everything)
    apart, together = (compare(tmp_path, KEYS, REFERENCE, n)[0] for n in (1, 3))
    assert apart["mean"] == together["mean"] == pytest.approx(3 / 4)
    assert together["high"] == 1  # both draws are the better generator, which is as likely as not
    assert apart["high"] - apart["low"] < together["high"] - together["low"]


def test_two_jobs_of_one_seed_are_no_two_trainings(tmp_path):
    job(tmp_path, 0, "sngan", "balanced", 0, [])
    job(tmp_path, 1, "sngan", "balanced", 0, [])
    with pytest.raises(DataError, match=r"1: another job has the same study/gan, study/arm, data\.split, seed"):
        compare(tmp_path, KEYS, REFERENCE)


@pytest.mark.parametrize(("known", "unit", "units"), [(12, "case", 6), (9, "case or tile", 9), (0, "tile", 12)])
def test_a_study_draws_the_same_units_as_the_test_of_a_classifier(tmp_path, known, unit, units):
    rows = job(tmp_path, 0, "none", "augmented", 0, ["case0", "case3", "case4"], known=known)
    lines = {line["metric"]: line for line in GradingEvaluation(CLASSES).interval_rows(rows)}
    assert {(line["unit"], line["units"]) for line in lines.values()} == {(unit, units)}
    for row in compare(tmp_path, KEYS, REFERENCE):
        own = lines[row["metric"]]
        assert [row[key] for key in ("mean", "low", "high")] == pytest.approx([own["value"], own["low"], own["high"]])
        assert row["low"] < row["high"]


def test_a_single_case_has_no_interval(tmp_path):
    for number, (gan, arm) in enumerate([("none", "augmented"), ("sngan", "balanced")]):
        job(tmp_path, number, gan, arm, 0, ["case0"], cases=1)
    rows = compare(tmp_path, KEYS, REFERENCE)
    assert [rows[-1][key] for key in ("low", "difference", "difference_low", "pairs")] == [None, 0, None, 1]
    differences(tmp_path / "study.png", rows[-1:], "augmented")
