"""What the report of a sweep says first, on made-up folders."""

import json
import re

import pytest

from ihc2he.report.page import write_report
from ihc2he.report.sweep import answer
from ihc2he.sweep.tables import write_tables


@pytest.fixture
def sweep(tmp_path):
    """Return a folder of `sweep(jobs)`: overrides, value or None, and rows of `test.csv` or None, of each."""

    def write(jobs, metric="test/f1", better="higher", status="finished"):
        for number, (overrides, value, tested) in enumerate(jobs):
            folder = tmp_path / str(number)
            folder.mkdir()
            note = {"job": number, "overrides": overrides, "command": f"run {number}", "status": status}
            (folder / "job.json").write_text(json.dumps(note | {"metric": metric, "better": better, "value": value}))
            if tested:
                lines = [f"{name},{group},{number},{which}\n" for name, group, number, which in tested]
                (folder / "test.csv").write_text("metric,group,value,better\n" + "".join(lines))
        write_tables(tmp_path)
        return tmp_path

    return write


def seeds(**settings):
    return [
        ({"model.lr": lr, "seed": str(seed)}, value, None)
        for lr, values in settings.items()
        for seed, value in enumerate(values)
    ]


def test_a_difference_beyond_chance_is_paired_over_seeds(sweep):
    folder = sweep(seeds(a=[0.50, 0.60, 0.70], b=[0.40, 0.49, 0.61]))
    assert answer(folder) == [
        "lr=a has 0.100 more test/f1 than lr=b, the next of 2 settings (95 % interval 0.075 to 0.125 over 3 pairs of "
        "runs): 0.600 instead of 0.500.",
        "Of 6 jobs: 6 finished.",
    ]
    page = write_report(folder).read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["Settings", "Best command", "All jobs at once", "Means", "Jobs"]
    assert "# test/f1 0.7, the highest of 6 jobs of this sweep: job 2\nrun 2</pre>" in page
    assert "sd 0.100, n = 3" in page
    assert page.count('class="one"') == 6


def test_where_lower_is_better_the_lowest_is_the_best(sweep):
    first, *_ = answer(sweep(seeds(a=[5, 6], b=[4, 5.9]), "test/mae", "lower"))
    assert first.startswith("lr=b and lr=a cannot be told apart: test/mae 4.950, the lowest of 2 settings, and 5.500")


def test_less_is_said_without_a_sign(sweep):
    first, *_ = answer(sweep(seeds(a=[5, 6, 7], b=[4, 5.1, 6]), "test/mae", "lower"))
    assert first == (
        "lr=b has 0.967 less test/mae than lr=a, the next of 2 settings (95 % interval 0.823 to 1.110 over 3 pairs of "
        "runs): 5.033 instead of 6.000."
    )


def test_of_single_runs_chance_is_not_known_and_a_validation_is_no_test(sweep):
    jobs = [({"model.lr": "1"}, 0.5, None), ({"model.lr": "2"}, 0.7, None), ({"model.lr": "3"}, None, None)]
    first, chance, validation, ended = answer(sweep(jobs, "val/f1"))
    assert first == "lr=2 has val/f1 0.700, the best of 2 settings; next is lr=1 with 0.500."
    assert "not known whether that is more than chance" in chance
    assert "run the test once" in validation
    assert ended == "Of 3 jobs: 3 finished."


def test_the_tests_of_a_study_are_compared_by_f1_of_each_method(sweep):
    jobs = [
        ({"seed": str(seed)}, None, [("precision", "x", 0.1, "higher"), ("f1", "x", 0.8 + seed / 10, "higher"),
                                     ("f1", "y", 0.5, "higher"), ("f1/stroma", "x", 0.9, "higher")])
        for seed in range(2)
    ]  # fmt: skip
    first, ended = answer(sweep(jobs, None))
    assert first.startswith("x and y cannot be told apart: f1 0.850, the best of 2 settings, and 0.500")
    assert ended == "Of 2 jobs: 2 finished."


def test_runs_whose_seed_changes_nothing_do_not_say_what_chance_does(sweep):
    first, chance, *_ = answer(sweep(seeds(a=[0.6, 0.6, 0.6], b=[0.5, 0.5, 0.5])))
    assert first.startswith("lr=a has test/f1 0.600 (mean of 3, sd 0.000), the best of 2 settings; next is lr=b")
    assert chance == "All 3 pairs of runs differ by the same, so they do not say what chance does."


def test_a_setting_that_leads_by_seeds_of_its_own_is_not_called_better(sweep):
    first, chance, *_ = answer(sweep(seeds(a=[0.50, 0.61, 0.99], b=[0.60, 0.70])))
    assert first.startswith("lr=a has test/f1 0.700 (mean of 3")
    assert chance == "In the 2 pairs of runs that both have, it is the other way round."


def test_a_pair_less_does_not_change_what_is_compared(sweep):
    first, *_ = answer(sweep(seeds(a=[0.50, 0.60, 0.70], b=[0.40, 0.49, 0.61, 0.3])))
    assert first.endswith("over 3 pairs of runs): 0.600 instead of 0.500.")


def study(folder, arms):
    head = "study/arm,data.case_share,metric,difference,difference_low,difference_high\n"
    rows = [f"{arm},-,balanced_accuracy,{','.join(map(str, ends))}\n" for arm, ends in arms.items()]
    (folder / "study.csv").write_text(head + "".join(rows))
    return folder


def test_a_study_is_judged_by_its_own_intervals_over_cases(sweep):
    folder = sweep(seeds(a=[0.50, 0.60, 0.70], b=[0.40, 0.49, 0.61]))
    arms = {"augmented": ("", "", ""), "<more>": (0.02, -0.01, 0.05), "only": (-0.1, -0.15, -0.04)}
    first, chance, _ = answer(study(folder, arms))
    assert first == (
        "1 of 2 arms can be told apart from the reference in balanced accuracy: only -0.100 [-0.150, -0.040]."
    )
    assert "one in 20" in chance
    page = write_report(folder).read_text(encoding="utf-8")
    assert ">&lt;more&gt;</th>" in page
    assert "<h2>Arms</h2>" in page
    del arms["only"]
    assert answer(study(folder, arms))[0] == ("No arm of 1 can be told apart from the reference in balanced accuracy.")


def test_failed_jobs_are_counted_and_the_first_one_says_why(sweep):
    folder = sweep([({"model.lr": "1"}, None, None)], status="no <memory>, sorry")
    assert answer(folder) == [
        "No job has a value that could be compared.", "Of 1 jobs: 1 failed. Job 0: no <memory>, sorry",
    ]  # fmt: skip
    assert "no &lt;memory&gt;, sorry" in write_report(folder).read_text(encoding="utf-8")
