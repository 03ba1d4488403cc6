"""Nothing of a run is touched before what continues it is accepted; what a start has not made it does not delete."""

import json
import logging

import pytest

from ihc2he import folders

SMOKE = "experiment=smoke/cyclegan_bci"
RUN = (SMOKE, "debug=fast", "hydra.run.dir=here")


def contents(folder):
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "train.log")}
    return {str(path.relative_to(folder)): data for path, data in kept.items()}


@pytest.mark.parametrize(
    ("was", "now", "bound", "said"),
    [
        ({"seed": 1}, {"seed": 2}, ["seed=1, not 2"], []),
        ({"model": {"lambda_cycle": 10.0}}, {"model": {"lambda_cycle": 5.0}}, ["model.lambda_cycle=10.0, not 5.0"], []),
        ({"data": {"split": 1}}, {"data": {"split": 2}}, ["data.split=1, not 2"], []),
        ({"data": {"root": "a"}}, {"data": {"root": "/mnt/a"}}, [], ["data.root=a, not /mnt/a"]),
        ({"model": {"init": "a"}}, {"model": {"init": "b"}}, [], ["model.init=a, not b"]),
        ({"model": {"n_epochs": 1}}, {"model": {"n_epochs": 2}}, [], ["model.n_epochs=1, not 2"]),
        ({"trainer": {"max_epochs": 1}}, {"trainer": {"max_epochs": 2}}, [], ["trainer.max_epochs=1, not 2"]),
        ({"data": {}}, {"data": {"added": True}}, [], ["data.added=None, not True"]),  # by a later version
        ({"ckpt_path": None, "out": "a", "stages": ["fit"]}, {"ckpt_path": "last", "out": "b", "stages": []}, [], []),
        (
            {"paths": {"output_dir": "/a/run"}, "callbacks": {"last": {"dirpath": "/a/run/checkpoints"}}},
            {"paths": {"output_dir": "/b/run"}, "callbacks": {"last": {"dirpath": "/b/run/checkpoints"}}},
            [],
            [],
        ),
        (
            {"model": {"_target_": "ihc2he.models.cyclegan.module.CycleGAN"}},
            {"model": {"_target_": "ihc2he.models.translation.cyclegan.module.CycleGAN"}},
            [],
            [],
        ),
    ],
)
def test_what_differs_binds_or_is_only_said(was, now, bound, said):
    found = folders.differences(was, now)
    assert [str(difference) for difference in found if difference.binds] == bound
    assert [str(difference) for difference in found if not difference.binds] == said


@pytest.mark.slow
def test_a_run_is_left_alone_by_what_is_refused_and_keeps_its_record_when_it_is_judged(cli, tmp_path):
    assert cli(*RUN).status == 0
    here = tmp_path / "here"
    before = contents(here)

    seed = cli(*RUN, "ckpt_path=auto", "seed=2")
    assert seed.status == 2
    assert "here: this run was started with seed=42, not 2" in seed.err
    assert "ckpt_path=here/checkpoints/last.ckpt" in seed.err.replace(str(tmp_path) + "/", "")
    model = cli(*RUN, "ckpt_path=auto", "model.generator.width=12")
    assert model.status == 2
    assert "holds another model" in model.err
    assert contents(here) == before

    (tmp_path / "here" / "test.csv").unlink()
    judged = cli(*RUN, "ckpt_path=auto", "stages=[test]", "data.eval_batch_size=2")
    assert judged.status == 0, judged.err
    after = contents(here)
    assert after["config.yaml"] == before["config.yaml"]
    assert after["metrics.csv"].startswith(before["metrics.csv"].splitlines()[0])
    assert "test.csv" in after
    record, trained = json.loads(after["run.json"]), json.loads(before["run.json"])
    (test,) = record.pop("afterwards")
    assert record == trained
    assert (test["status"], set(test["seconds"])) == ("finished", {"test"})
    assert "data.eval_batch_size=1, not 2" in test["changed"]

    more = cli(*RUN, "ckpt_path=auto", "trainer.max_epochs=2", "stages=[fit]")
    assert more.status == 0, more.err
    assert "trainer.max_epochs=1, not 2" in more.out + more.err
    record = json.loads((here / "run.json").read_text())
    assert [set(part["seconds"]) for part in record["earlier"]] == [{"fit", "test"}]
    assert set(record["seconds"]) == {"fit"}

    other = cli(SMOKE, "debug=fast", "hydra.run.dir=other", "stages=[fit]", "seed=2", "trainer.max_epochs=3",
                f"ckpt_path={here / 'checkpoints' / 'last.ckpt'}")  # fmt: skip
    assert other.status == 0, other.err
    assert "seed=42, not 2" in other.out + other.err
    crossed = cli(*RUN, f"ckpt_path={tmp_path / 'other' / 'checkpoints' / 'last.ckpt'}")
    assert crossed.status == 2
    assert "here has another run than ckpt_path=" in crossed.err


def test_a_start_that_fails_deletes_only_what_it_has_made(cli, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "train.log").write_text("of yesterday\n")
    (mine / "scan.log").write_text("of a scanner\n")
    (tmp_path / "empty").mkdir()
    for name in ("mine", "empty", "new"):
        assert cli(SMOKE, "trainer.precision=17", f"hydra.run.dir={name}").status == 2
    assert {path.name for path in mine.iterdir()} == {"train.log", "scan.log"}
    assert (mine / "train.log").read_text().startswith("of yesterday\n")
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_a_record_that_cannot_be_read_is_said(tmp_path, caplog):
    assert folders.earlier_record(tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    assert folders.earlier_record(tmp_path) is None
    assert "run.json cannot be read" in caplog.text


def test_what_is_logged_after_a_failed_start_opens_no_file_of_it(cli, tmp_path):
    done = cli("experiment=smoke/cyclegan_bci", "model.metrics=[psnrr]", "hydra.run.dir=run")
    assert done.status == 2
    logging.getLogger("ihc2he").warning("still here")
    assert not (tmp_path / "run" / "train.log").exists()
