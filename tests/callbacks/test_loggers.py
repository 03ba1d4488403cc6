import csv
import json
import logging
import struct

import cv2
import numpy as np
import pytest

from ihc2he.callbacks.loggers import Csv, TensorBoard, Wandb
from ihc2he.callbacks.panels import ImagePanels
from ihc2he.errors import ConfigError


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


def records(path):
    """Yield the records of a .wandb file: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        rest = 32768 - position % 32768
        if rest < 7:  # too short for a record's header: filled with zeros
            position += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_an_offline_run_of_wandb_holds_losses_metrics_pictures_and_configuration(toy, tiles, trainer, tmp_path):
    import wandb

    logger = Wandb(str(tmp_path), tags=["demo"], name="smoke")
    logger.log_hyperparams({"model": {"lambda_cycle": 10.0}})
    trainer(ImagePanels(str(tmp_path / "images"), n_images=2), logger=logger, max_epochs=2).fit(
        toy(scores=(0.25, 0.75)), tiles
    )
    wandb.finish()
    wandb.teardown()  # ends the process that writes the file; until then it may be empty

    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    found = list(records(next(folder.glob("*.wandb"))))
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["train/loss_g"] for row in history if "train/loss_g" in row] == [0, -3, -6, -9]
    assert [row["val/score"] for row in history if "val/score" in row] == [0.25, 0.75]
    steps = [row["trainer/global_step"] for row in history if "panels/val_01.count" in row or "panels/val_01" in row]
    assert steps == [2, 4]
    assert len(list(folder.glob("files/media/images/panels/*.png"))) == 4
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, list(run.tags)) == ("ihc2he", "smoke", ["demo"])
    config = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in found
        for item in (*record.config.update, *record.run.config.update)
    }
    assert config["model"] == {"lambda_cycle": 10.0}


def test_the_id_of_a_wandb_run_follows_from_its_folder(tmp_path):
    again = [Wandb(str(tmp_path / folder), offline=True).version for folder in ("a", "a", "b")]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize(("logged_in", "lines"), [(True, 0), (False, 1)])
def test_wandb_works_offline_where_nobody_is_logged_in(tmp_path, monkeypatch, caplog, logged_in, lines):
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda **options: logged_in)
    with caplog.at_level(logging.INFO, "ihc2he"):
        logger = Wandb(str(tmp_path))
    assert logger._wandb_init["mode"] == ("online" if logged_in else "offline")
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
