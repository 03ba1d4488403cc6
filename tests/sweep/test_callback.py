"""What a sweep leaves: on made-up folders, and through the command line."""

import csv
import itertools
import json
import random
import shlex
import subprocess
import sys

import cv2
import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from ihc2he.sweep.callback import SweepTables
from ihc2he.sweep.settings import importance, varied
from ihc2he.sweep.tables import mean_sd, write_tables


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def sweep(tmp_path):
    """Return a folder of `sweep(jobs)`: (overrides, status, {(metric, group): value} or None, value or None) each."""

    def write(jobs, metric=None, better="higher"):
        for number, (overrides, status, metrics, *value) in enumerate(jobs):
            folder = tmp_path / str(number)
            folder.mkdir()
            note = {"job": number, "overrides": overrides, "command": f"run {number}", "status": status}
            note |= {"metric": metric, "better": better, "value": value[0] if value else None}
            (folder / "job.json").write_text(json.dumps(note))
            if metrics is not None:
                lines = [f"{metric},{group},{value}\n" for (metric, group), value in metrics.items()]
                (folder / "test.csv").write_text("metric,group,value\n" + "".join(lines))
        write_tables(tmp_path)
        return tmp_path

    return write


def test_a_row_per_job_and_means_over_the_splits(sweep):
    folder = sweep(
        [
            ({"experiment": "x", "data.split": "1"}, "finished", {("bpq", ""): 0.6, ("bpq", "Colon"): 0.5}),
            ({"experiment": "x", "data.split": "2"}, "no memory, sorry", None),
            ({"experiment": "x", "data.split": "3"}, "finished", {("bpq", ""): 0.7, ("bpq", "Colon"): "nan"}),
        ]
    )
    assert read(folder / "sweep.csv") == [
        {"job": "0", "experiment": "x", "data.split": "1", "status": "finished", "bpq": "0.6", "bpq/Colon": "0.5"},
        {"job": "1", "experiment": "x", "data.split": "2", "status": "no memory, sorry", "bpq": "", "bpq/Colon": ""},
        {"job": "2", "experiment": "x", "data.split": "3", "status": "finished", "bpq": "0.7", "bpq/Colon": "nan"},
    ]
    total, colon = read(folder / "mean_sd.csv")
    assert float(total["mean"]) == pytest.approx(0.65)
    assert float(total["sd"]) == pytest.approx(0.05 * 2**0.5)
    assert total["n"] == "2"
    assert colon == {"metric": "bpq/Colon", "mean": "0.5", "sd": "", "n": "1"}


def test_a_sweep_without_tests_has_means_of_what_it_optimises(sweep):
    jobs = [({"lr": lr, "seed": seed}, "finished", None, float(lr + seed)) for lr in "12" for seed in "13"]
    folder = sweep([*jobs, ({"lr": "2", "seed": "5"}, "started", None)], metric="val/f1")
    one, two = read(folder / "mean_sd.csv")
    assert one == {"lr": "1", "metric": "val/f1", "mean": "12.0", "sd": "1.4142135623730951", "n": "2"}
    assert (two["lr"], two["mean"], two["n"]) == ("2", "22.0", "2")


def test_jobs_are_in_their_order(sweep):
    folder = sweep([({"lr": str(i)}, "finished", None) for i in range(11)])
    assert [row["job"] for row in read(folder / "sweep.csv")] == [str(i) for i in range(11)]


@pytest.mark.parametrize("settings", [[{"seed": "1"}], [{"model.tta": "true"}, {"model.tta": "false"}]])
def test_without_repetitions_there_are_no_means(sweep, settings):
    folder = sweep([(overrides, "finished", {("f1", ""): 1}) for overrides in settings])
    assert not (folder / "mean_sd.csv").exists()


def test_settings_are_told_apart_and_split_and_seed_are_repetitions_alike():
    jobs = [
        {"overrides": {"model.tta": tta, "seed": seed, "data.split": split}, "metrics": {"f1": value}}
        for tta, seed, split, value in (("true", "0", "1", 1), ("true", "1", "2", 3), ("false", "0", "1", 5))
    ]
    assert mean_sd(jobs) == [
        {"model.tta": "true", "metric": "f1", "mean": 2, "sd": pytest.approx(2**0.5), "n": 2},
        {"model.tta": "false", "metric": "f1", "mean": 5, "sd": None, "n": 1},
    ]


def of_rates(*values):
    return [({"lr": f"{i + 1}e-4", "batch": str(2**i)}, "finished", None, value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("better", "job", "which"),
    [("higher", 3, "highest"), ("lower", 0, "lowest"), ("closest to 0", 0, "one closest to 0")],
)
def test_the_best_job_is_ready_to_paste(sweep, better, job, which):
    folder = sweep(of_rates(0.25, float("nan"), None, 0.75), metric="val/f1", better=better)
    comment, command = (folder / "best.txt").read_text().splitlines()
    assert comment == f"# val/f1 {(0.25, 0.75)[job == 3]}, the {which} of 2 jobs of this sweep: job {job}"
    assert command == f"run {job}"
    assert [row["val/f1"] for row in read(folder / "sweep.csv")] == ["0.25", "nan", "", "0.75"]


@pytest.mark.parametrize("count", [2, 12, 30])
def test_numbers_and_names_that_vary_are_drawn_with_their_importance(sweep, count):
    long_name = "model.translators.recolour.an_extraordinarily_long_parameter_name"
    jobs = [
        ({"lr": f"{i + 1}e-4", "data.sampler": "ab"[i % 2], long_name: "true"[: i + 1]}, "finished", None, i / 7)
        for i in range(count)
    ]
    folder = sweep(jobs, metric="val/f1")
    assert cv2.imread(str(folder / "sweep.png")).std() > 10
    assert (folder / "importance.png").exists() == (count > 2)  # of two jobs each has settings of its own


def test_importance_is_the_share_between_levels_or_between_the_thirds_of_many_numbers():
    order = random.Random(0).sample(range(30), 30)
    settings = {
        "number": [f"{i}e-5" for i in order],
        "name": ["ab"[i % 2] for i in order],
        "half": ["low" if i < 15 else "high" for i in order],
        "own": [f"file{i}" for i in order],
    }
    found = importance(settings, [i // 10 for i in order])
    assert found == {"number": (1, 2 / 29), "name": (0, 1 / 29), "half": (pytest.approx(2 / 3), 1 / 29)}


def test_importance_by_chance_is_its_mean_over_all_orders():
    settings = {"name": ["a", "a", "b", "c"]}
    orders = list(itertools.permutations([1.0, 2.0, 4.0, 9.0]))
    shares = [importance(settings, order)["name"][0] for order in orders]
    assert sum(shares) / len(shares) == pytest.approx(importance(settings, orders[0])["name"][1])


def test_of_equal_values_nothing_is_important():
    assert importance({"name": ["a", "a", "b"]}, [1, 1, 1]) == {}


@pytest.mark.parametrize("values", [(None, None), (0.5,)])
def test_without_values_or_variation_there_is_no_picture(sweep, values):
    folder = sweep(of_rates(*values), metric="val/f1")
    assert not (folder / "sweep.png").exists()
    assert (folder / "best.txt").exists() == (values == (0.5,))


def test_what_not_every_job_has_is_a_level_of_its_own():
    overrides = [{"lr": "1e-4", "lr_d": "null", "n": "1"}, {"lr": "2e-4", "lr_d": "1e-4", "n": "1", "x": "1"}]
    assert varied([{"overrides": own} for own in overrides]) == {
        "lr": ["1e-4", "2e-4"], "lr_d": ["null", "1e-4"], "x": ["-", "1"],
    }  # fmt: skip


def test_it_does_not_slow_the_start():
    heavy = "{'torch', 'lightning', 'numpy', 'matplotlib'}"
    code = f"import sys, ihc2he.sweep.callback; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_splits_of_pannuke_in_one_multirun_where_one_job_fails(cli, tmp_path):
    small = ["debug=fast", "callbacks.panels=null", "optimized_metric=test/dice"]
    done = cli("-m", "experiment=smoke/hovernet_pannuke", "data.split=1,4,2", *small)
    assert done.status == 2
    assert "ihc2he: data.split=4: expected 1, 2 or 3." in done.err
    (folder,) = (tmp_path / "outputs" / "smoke" / "hovernet_pannuke").iterdir()
    rows = read(folder / "sweep.csv")
    assert [(row["data.split"], row["status"]) for row in rows] == [
        ("1", "finished"), ("4", "data.split=4: expected 1, 2 or 3."), ("2", "finished"),
    ]  # fmt: skip
    assert rows[1]["dice"] == ""
    best = (folder / "best.txt").read_text().splitlines()[0].removeprefix("# ")
    assert "Of 3 jobs: 2 finished, 1 failed. Job 1: data.split=4" in (folder / "report.html").read_text()
    assert "the highest of 2 jobs of this sweep: job " in best
    assert f"Sweep: 2 finished, 1 failed: {folder.relative_to(tmp_path) / 'sweep.csv'}; best: {best}\n" in done.out
    means = {row["metric"]: row for row in read(folder / "mean_sd.csv")}
    values = [float(rows[i]["dice"]) for i in (0, 2)]
    assert float(means["dice"]["mean"]) == pytest.approx(sum(values) / 2)
    assert float(means["dice"]["sd"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert means["dice"]["n"] == "2"
    assert {"bpq", "mpq", "f1/dead"} <= means.keys()


def test_a_single_run_has_no_tables(cli, tmp_path):
    assert cli("experiment=smoke/hovernet_pannuke", "data.split=4").status == 2
    assert not [file for file in tmp_path.rglob("*") if file.name in ("job.json", "sweep.csv")]


def test_the_best_command_of_a_multirun_tests_on_other_tiles_than_it_was_chosen_on(cli, tmp_path):
    (tmp_path / "my conf").mkdir()
    done = cli(
        "-m", "--config-dir", "my conf", "experiment=smoke/pipeline_endonuke", "stages=[validate]",
        "data.val_ids=[1-3]", "model.use.translators=[recolour]", "optimized_metric=val/f1/recolour+classical",
        "model.translators.recolour.h_gain=0.1,1.7", "++model.translators.recolour.dab_gain=0.2",
    )  # fmt: skip
    assert done.status == 0, done.err
    (folder,) = (tmp_path / "outputs" / "smoke" / "pipeline_endonuke").iterdir()
    values = [float(row["val/f1/recolour+classical"]) for row in read(folder / "sweep.csv")]
    number = values.index(max(values))
    comment, command = (folder / "best.txt").read_text().splitlines()
    assert f"the highest of 2 jobs of this sweep: job {number}" in comment
    assert json.loads((folder / "0" / "run.json").read_text())["better"] == "higher"
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ihc2he.train"]
    assert f"model.translators.recolour.h_gain={(0.1, 1.7)[number]}" in words
    assert not [file for file in folder.rglob("*") if file.name in ("test.csv", "results.csv")]
    assert cli(*words[3:], "stages=[test]", "hydra.run.dir=again").status == 0
    assert {row["name"] for row in read(tmp_path / "again" / "results.csv")} == {"0", "4", "5"}


@pytest.mark.parametrize(
    ("direction", "known", "better", "warned"),
    [
        (None, None, "higher", False), (None, "lower", "lower", False), ("minimize", None, "lower", False),
        ("minimize", "lower", "lower", False), ("Direction.maximize", "lower", "lower", True),
        ("minimize", "closest to 0", "closest to 0", True),
    ],
)  # fmt: skip
def test_the_card_of_the_metric_says_which_value_is_the_best(direction, known, better, warned, tmp_path, caplog):
    """A grid has no direction, and that of a search may be wrong."""
    if known:
        (tmp_path / "run.json").write_text(json.dumps({"better": known}))
    hydra = {
        "mode": RunMode.MULTIRUN, "sweeper": {"direction": direction} if direction else {}, "job": {"num": 0},
        "runtime": {"output_dir": str(tmp_path), "config_sources": []}, "overrides": {"task": ["a=1"]},
    }  # fmt: skip
    config = OmegaConf.create({"hydra": hydra, "optimized_metric": "val/he/fid"})
    SweepTables().on_job_start(config)
    assert json.loads((tmp_path / "job.json").read_text())["better"] == better
    assert ("the search goes the wrong way" in caplog.text) == warned


SPY = """
import json
from pathlib import Path
from lightning.pytorch import Callback

class Spy(Callback):
    def __init__(self, folder):
        self.folder = Path(folder)

    def on_train_start(self, trainer, pl_module):
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(rates))
"""


@pytest.mark.slow
def test_every_rank_of_a_job_has_the_learning_rates_of_that_job(command, tmp_path):
    (tmp_path / "spy.py").write_text(SPY)
    rates = (3.74e-3, 3.6e-4)
    done = command(
        "-m", "experiment=smoke/cyclegan_bci", "trainer=ddp_cpu", "debug=fast", "callbacks.panels=null",
        f"model.optimizer.lr={rates[0]},{rates[1]}", "hydra.sweep.dir=sweep",
        "+callbacks.spy._target_=spy.Spy", "+callbacks.spy.folder=${paths.output_dir}",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {"0", "1"}
    for job, rate in enumerate(rates):
        seen = [json.loads((tmp_path / "sweep" / str(job) / f"rank{rank}.json").read_text()) for rank in (0, 1)]
        assert seen == [[rate, rate]] * 2
        assert json.loads((tmp_path / "sweep" / str(job) / "run.json").read_text())["world_size"] == 2
    assert [row["status"] for row in read(tmp_path / "sweep" / "sweep.csv")] == ["finished", "finished"]


BAD = """
from lightning.pytorch import Callback

class Bad(Callback):
    def __init__(self, rank):
        self.rank = rank

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_rank == self.rank:
            raise ValueError(f"rank {self.rank} fails")
"""


@pytest.mark.slow
def test_after_a_job_of_which_a_rank_failed_the_next_one_starts_clean(command, tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    done = command(
        "-m", "experiment=smoke/cyclegan_bci", "trainer=ddp_cpu", "debug=fast", "callbacks.panels=null",
        "hydra.sweep.dir=sweep", "+callbacks.bad._target_=bad.Bad", "+callbacks.bad.rank=0,1,2",
    )  # fmt: skip
    assert done.status == 1
    first, second, third = (row["status"] for row in read(tmp_path / "sweep" / "sweep.csv"))
    assert first == "rank 0 fails"
    assert second not in ("started", "finished")  # what the first rank sees: a closed connection
    assert third == "finished"
