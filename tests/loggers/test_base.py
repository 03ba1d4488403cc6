import csv
import logging
import math
import socket
from collections import Counter

import cv2
import numpy as np
import pytest
from lightning.pytorch.callbacks import LearningRateMonitor

from ihc2he.callbacks.panels import ImagePanels
from ihc2he.callbacks.throughput import Throughput
from ihc2he.errors import ConfigError
from ihc2he.loggers.base import Csv, TensorBoard, Wandb, forget_rows


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_resumed_run_goes_on_in_the_same_csv_with_new_columns(tmp_path):
    for first, key in ((0, "lr-Adam"), (2, "val/he/psnr")):
        logger = Csv(str(tmp_path), flush_logs_every_n_steps=1)
        logger.log_metrics({"train/loss_g": 0.5 + first}, first)
        logger.log_metrics({key: 0.25}, first + 1)
        logger.finalize("success")
    assert read_csv(tmp_path / "metrics.csv") == [
        {"step": "0", "lr-Adam": "", "train/loss_g": "0.5", "val/he/psnr": ""},
        {"step": "1", "lr-Adam": "0.25", "train/loss_g": "", "val/he/psnr": ""},
        {"step": "2", "lr-Adam": "", "train/loss_g": "2.5", "val/he/psnr": ""},
        {"step": "3", "lr-Adam": "", "train/loss_g": "", "val/he/psnr": "0.25"},
    ]


def test_csv_leaves_the_other_files_of_a_run_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    logger = Csv(str(tmp_path))
    logger.log_hyperparams({"seed": 2})
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.csv"]


def test_an_offline_run_of_wandb_holds_losses_metrics_pictures_and_configuration(
    toy, tiles, trainer, tmp_path, offline_runs
):
    logger = Wandb(str(tmp_path), tags=["demo"], name="smoke", group="sweep_1")
    logger.log_hyperparams({"model": {"lambda_cycle": 10.0}, "inputs": [{"kind": "store", "hash": "1"}]})
    trainer(ImagePanels(str(tmp_path / "images"), n_images=2), logger=logger, max_epochs=2).fit(
        toy(scores=(0.25, 0.75)), tiles
    )
    (found,) = offline_runs()
    assert [row["train/loss_g"] for row in found.history if "train/loss_g" in row] == [0, -3, -6, -9]
    assert [row["val/score"] for row in found.history if "val/score" in row] == [0.25, 0.75]
    pictures = [row for row in found.history if "panels/val_01.filenames" in row]
    assert [row["trainer/global_step"] for row in pictures] == [1, 3]
    assert [row["panels/val_01.captions"] for row in pictures] == [["a/1.png"], ["a/1.png"]]
    assert len(list(found.folder.glob("files/media/images/panels/*.png"))) == 4
    run = found.run
    assert (run.project, run.display_name, list(run.tags), run.run_group) == ("ihc2he", "smoke", ["demo"], "sweep_1")
    assert found.config["model"] == {"lambda_cycle": 10.0}
    assert found.config["inputs"] == [{"kind": "store", "hash": "1"}]
    assert found.status == 0


def test_all_loggers_show_the_same_keys_steps_and_values(toy, tiles, trainer, tmp_path, offline_runs):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = [Csv(str(tmp_path)), Wandb(str(tmp_path)), TensorBoard(str(tmp_path))]
    for logger in loggers:
        logger.log_hyperparams({"seed": 1, "model": {"classes": ["a"]}, "inputs": [{"kind": "store"}]})
    watched = [LearningRateMonitor(), Throughput(), ImagePanels(str(tmp_path / "images"), n_images=1)]
    runner = trainer(*watched, logger=loggers, max_epochs=4, log_every_n_steps=2, check_val_every_n_epoch=2)
    module = toy(scores=(0.5, 0.25, 0.5, math.nan))
    runner.fit(module, tiles)
    runner.test(module, tiles)

    written = Counter()
    for row in read_csv(tmp_path / "metrics.csv"):
        written.update((key, row["step"], row[key]) for key in row if row[key] and key != "step")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = Counter(
        (key, str(event.step), str(np.float32(event.value)))
        for key in events.Tags()["scalars"]
        for event in events.Scalars(key)
    )
    assert shown == Counter(dict_of(written, lambda text: str(np.float32(text))))
    (found,) = offline_runs()
    sent = Counter()
    for row in found.history:
        step = str(row.pop("trainer/global_step"))
        plain = {key: value for key, value in row.items() if not key.startswith(("_", "panels/"))}
        sent.update((key, step, str(float(value))) for key, value in plain.items())
    expected = Counter(dict_of(written, lambda text: str(float(text))))
    assert sent == expected
    keys = {key for key, _, _ in sent}
    assert keys == {
        "epoch", "lr-SGD", "train/loss_g", "val/score", "test/he/psnr", "test/he/psnr/3+",
        "throughput/images_per_second", "throughput/data_wait",
    }  # fmt: skip
    assert [step for key, step, _ in sorted(sent) if key == "train/loss_g"] == ["1", "3", "5", "7"]
    assert [(step, value) for key, step, value in sorted(sent) if key == "val/score"] == [("3", "0.25"), ("7", "nan")]


def dict_of(written, as_text):
    return {(key, step, as_text(value)): count for (key, step, value), count in written.items()}


def test_wandb_keeps_the_best_value_of_a_metric_and_of_its_groups(tmp_path, offline_runs):
    logger = Wandb(str(tmp_path))
    logger.summaries |= {"val/f1": "max", "val/mdsi": "min"}
    for step, value in enumerate((math.nan, 0.5, 0.75, math.nan, 0.25)):
        keys = ("val/f1", "val/f1/3+", "val/mdsi", "train/loss", "throughput/data_wait")
        logger.log_metrics(dict.fromkeys(keys, value), step)
    (found,) = offline_runs()
    kept = {key: found.summary.get(key) for key in ("val/f1", "val/f1/3+", "val/mdsi", "train/loss")}
    assert kept == {"val/f1": {"max": 0.75}, "val/f1/3+": {"max": 0.75}, "val/mdsi": {"min": 0.25}, "train/loss": 0.25}
    assert found.summary["throughput/data_wait"] == {"mean": 0.5}
    assert sum("train/loss" in row for row in found.history) == 5  # a loss that is no number any more shows


def test_jobs_of_one_process_are_runs_of_their_own(tmp_path, offline_runs):
    """As in a sweep, where nobody ends the run of a job before the next begins."""
    for job in ("0", "1"):
        logger = Wandb(str(tmp_path / job), group="sweep")
        logger.log_metrics({"job": float(job)}, 0)
        logger.finalize("success")
    first, second = offline_runs()
    assert [first.summary["job"], second.summary["job"]] == [0, 1]
    assert (first.run.run_group, first.status, second.status) == ("sweep", 0, 0)
    assert first.run.run_id != second.run.run_id


def test_a_failed_run_is_shown_as_failed(toy, tiles, trainer, tmp_path, offline_runs):
    class Fails(toy):
        def training_step(self, batch, batch_idx):
            self.log("train/loss_g", 1.0)
            if self.current_epoch:
                raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        trainer(logger=Wandb(str(tmp_path))).fit(Fails(), tiles)
    (found,) = offline_runs()
    assert found.status == 1


def test_a_mode_of_the_environment_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert Wandb(str(tmp_path)).arguments["mode"] == "disabled"


def test_the_id_of_a_wandb_run_follows_from_its_folder(tmp_path):
    again = [Wandb(str(tmp_path / folder), offline=True).version for folder in ("a", "a", "b")]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize(("logged_in", "lines"), [(True, 0), (False, 1)])
def test_wandb_works_offline_where_nobody_is_logged_in(tmp_path, monkeypatch, caplog, logged_in, lines):
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda **options: logged_in)
    monkeypatch.setattr("ihc2he.loggers.base._answers", lambda url: True)
    with caplog.at_level(logging.INFO, "ihc2he"):
        logger = Wandb(str(tmp_path))
    assert logger.arguments["mode"] == ("online" if logged_in else "offline")
    assert sum("nobody is logged in" in record.getMessage() for record in caplog.records) == lines


def test_tensorboard_gets_scalars_and_pictures(toy, tiles, trainer, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    panels = ImagePanels(str(tmp_path / "images"), n_images=1)
    runner = trainer(panels, logger=TensorBoard(str(tmp_path)), max_epochs=1)
    runner.fit(toy(scores=(0.25,)), tiles)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0})
    events.Reload()
    assert [event.value for event in events.Scalars("val/score")] == [0.25]
    (event,) = events.Images("panels/val_00")
    (file,) = tmp_path.glob("images/val/*.png")
    logged, written = (
        cv2.imdecode(np.frombuffer(png, np.uint8), 1) for png in (event.encoded_image_string, file.read_bytes())
    )
    assert np.array_equal(logged, written)


def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(ConfigError, match=r"logger=tensorboard needs TensorBoard: pip install 'ihc2he\[tensorboard\]'"):
        TensorBoard(str(tmp_path))


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,x\n0,0,1.0\n0,1,2")
    logger = Csv(str(tmp_path))
    logger.log_metrics({"epoch": 0, "x": 2.0}, step=1)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,step,x", "0,0,1.0", "0,1,2.0"]


def test_rows_that_a_continued_run_logs_again_are_dropped(tmp_path):
    file = tmp_path / "metrics.csv"
    forget_rows(file, 3)
    assert not file.exists()
    file.write_text("epoch,step,train/loss_g\n0,2,0.5\n0,3,0.25\n,,\n0,10,\n")
    forget_rows(file, 3)
    assert file.read_text().splitlines() == ["epoch,step,train/loss_g", "0,2,0.5"]


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch, caplog):
    """There is a key, but no network: the run is kept here, within seconds."""
    import wandb

    with socket.socket() as deaf:  # takes the connection and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setattr(wandb, "login", lambda **options: True)
        monkeypatch.setattr("ihc2he.loggers.base.server", lambda: url)
        monkeypatch.setattr("ihc2he.loggers.base._PATIENCE_S", 0.5)
        with caplog.at_level(logging.INFO, "ihc2he"):
            logger = Wandb(str(tmp_path))
    assert logger.arguments["mode"] == "offline"
    assert f"W&B: {url} does not answer within 0.5 s, so the run is kept offline" in caplog.text


def test_a_run_that_wandb_refuses_goes_on_offline(tmp_path, monkeypatch, caplog, offline_runs):
    import wandb

    real = wandb.init

    def refuse(**arguments):
        if arguments["mode"] == "online":
            msg = "the key is wrong"
            raise wandb.errors.AuthenticationError(msg)
        return real(**arguments)

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "init", refuse)
    logger = Wandb(str(tmp_path), offline=False)
    logger.log_metrics({"a": 1.0}, 0)
    assert "W&B: the key is wrong, so the run is kept offline" in caplog.text
    (found,) = offline_runs()
    assert [row["a"] for row in found.history if "a" in row] == [1.0]


def test_an_error_of_the_server_is_an_answer(monkeypatch):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from ihc2he.loggers.base import _answers

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as found:  # knows no HEAD: 501
        Thread(target=found.handle_request, daemon=True).start()
        assert _answers(f"http://127.0.0.1:{found.server_port}")
    assert not _answers("http://127.0.0.1:9")
