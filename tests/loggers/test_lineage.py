import json
import logging

import numpy as np
import pytest
import torch
from torch import nn

from ihc2he.callbacks.bundles import Bundles
from ihc2he.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from ihc2he.data.store import Record, write_store
from ihc2he.datainfo import DataInfo
from ihc2he.loggers.base import Wandb
from ihc2he.loggers.lineage import hash_files, hash_store, inputs, outputs
from ihc2he.models.bundle import save_bundle


class Data:
    """A DataModule as far as lineage asks."""

    def __init__(self, store_path):
        self.store_path = store_path
        self.info = DataInfo(mpp=0.5, store=store_path)


@pytest.fixture
def store(tmp_path):
    """Return `store(name, content, settings)`, which writes a tile store of one raw file; its path."""

    def write(name, content=b"1", settings=None):
        raw = tmp_path / f"{name}.raw"
        raw.write_bytes(content)
        path = tmp_path / "stores" / name / "tiles.h5"
        record = Record({"ihc": np.zeros((4, 4, 3), np.uint8)}, {"name": "a"})
        write_store(path, ["a"], lambda job: record, {"ihc/a": raw}, settings or {"mpp": 0.5})
        return path

    return write


@pytest.fixture
def train(toy, tiles, trainer):
    """Return `train(folder, *loggers)`, which leaves the folder of a finished training."""

    def run(folder, *loggers):
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        keeper = BestCheckpoint(str(folder / "checkpoints"), "val/score", "max")
        kept = (keeper, LastCheckpoint(str(folder / "checkpoints")), Bundles(str(folder / "bundles")))
        trainer(*kept, logger=list(loggers)).fit(toy(scores=(0.5, 0.75, 0.25)), tiles)
        return folder

    return run


def cfg(folder, ckpt_path=None, **model):
    return {"paths": {"output_dir": str(folder)}, "ckpt_path": ckpt_path, "model": model}


def test_run_json_leads_from_a_pipeline_to_the_tile_store(train, store, tmp_path):
    """As a reader follows it: bundle of the pipeline's run, run that made it, store of that run."""
    run = train(tmp_path / "cyclegan" / "1")
    data = Data(store("bci"))
    (run / "run.json").write_text(json.dumps({"inputs": inputs(cfg(run), data), "outputs": outputs(run)}))

    weights = {"cyclegan": {"weights": str(run / "bundles" / "net")}, "unused": {"weights": str(run / "no")}}
    model = {"translators": weights, "use": {"translators": "cyclegan"}}
    fused = model | {"use": {"translators": []}, "fuse": ["none", "cyclegan"]}
    assert inputs(cfg(tmp_path / "pipeline" / "1", **fused), data=None) == inputs(
        cfg(tmp_path / "p", **model), data=None
    )
    (used,) = inputs(cfg(tmp_path / "pipeline" / "1", **model), data=None)
    assert (used["kind"], used["made_by"]) == ("bundle", str(run))

    training = json.loads((run / "run.json").read_text())
    assert used["hash"] in [found["hash"] for found in training["outputs"] if found["kind"] == "bundle"]
    (source,) = training["inputs"]
    assert source == {
        "kind": "store",
        "path": str(data.store_path),
        "hash": hash_store(data.store_path),
        "made_by": None,
    }


def test_a_training_leaves_its_bundles_and_its_checkpoints(train, tmp_path):
    run = train(tmp_path / "run")
    (run / "checkpoints" / ".last.1.part.ckpt").write_bytes(b"half")
    (run / "bundles" / ".net.tmp").mkdir()
    assert [(found["kind"], found["path"].removeprefix(f"{run}/")) for found in outputs(run)] == [
        ("bundle", "bundles/net"),
        ("checkpoint", "checkpoints/best_epoch001.ckpt"),
        ("checkpoint", "checkpoints/last.ckpt"),
    ]
    assert {found["made_by"] for found in outputs(run)} == {str(run)}


def test_what_a_run_reads_is_found_wherever_the_configuration_names_it(tmp_path):
    for name in ("a", "b", "unused"):
        save_bundle(nn.PReLU(), tmp_path / name, {"module": {"_target_": "torch.nn.PReLU"}, "name": name})
    torch.save({}, tmp_path / "official.tar")
    torch.save({"x": torch.ones(1)}, tmp_path / "other.ckpt")
    model = {
        "translators": {
            "cyclegan": {"weights": [str(tmp_path / "a"), str(tmp_path / "b")]},
            "none": {},
            "other": {"weights": str(tmp_path / "unused")},
        },
        "segmenters": {"hovernet": {"weights": None}, "classical": {"mpp": 0.5}},
        "use": {"translators": ["cyclegan", "none"], "segmenters": ["hovernet", "classical"]},
        "encoder": {"weights": "imagenet"},
        "weights": str(tmp_path / "official.tar"),
        "ensemble": [str(tmp_path / "a")],
    }
    found = inputs(cfg(tmp_path / "run", str(tmp_path / "other.ckpt"), **model), None)
    assert [(entry["kind"], entry["path"].removeprefix(f"{tmp_path}/")) for entry in found] == [
        ("checkpoint", "other.ckpt"),
        ("bundle", "a"),
        ("bundle", "b"),
        ("checkpoint", "official.tar"),
    ]
    assert len({entry["hash"] for entry in found}) == 4


@pytest.mark.parametrize("ckpt_path", [None, "last", "auto", "RUN/checkpoints/last.ckpt"])
def test_a_run_that_goes_on_is_no_input_of_itself(train, tmp_path, ckpt_path):
    run = train(tmp_path / "run")
    path = ckpt_path and ckpt_path.replace("RUN", str(run))
    assert inputs(cfg(run, path), Data(tmp_path / "no_store.h5")) == []


def test_a_folder_of_bundles_to_start_from_stands_for_each_of_them(train, tmp_path):
    run = train(tmp_path / "run")
    save_bundle(nn.PReLU(), run / "bundles" / "other", {"module": {"_target_": "torch.nn.PReLU"}})
    found = inputs(cfg(tmp_path / "later", init=str(run / "bundles")), None)
    assert [(entry["kind"], entry["path"]) for entry in found] == [
        ("bundle", str(run / "bundles" / name)) for name in ("net", "other")
    ]
    assert {entry["made_by"] for entry in found} == {str(run)}


def test_a_store_is_known_by_its_source_and_settings(store):
    first = hash_store(store("a"))
    assert hash_store(store("b")) == first  # elsewhere, and built at another time
    assert hash_store(store("c", content=b"2")) != first
    assert hash_store(store("d", settings={"mpp": 0.25})) != first


def test_a_bundle_is_known_by_its_content(tmp_path):
    """Also when it has been moved; not by its model card, which people edit."""
    folder = save_bundle(nn.PReLU(), tmp_path / "net", {"module": {"_target_": "torch.nn.PReLU"}, "mpp": 0.5})
    model = {"weights": str(folder)}
    (first,) = inputs(cfg(tmp_path / "run", **model), None)
    (folder / "README.md").write_text("Ours.")
    folder.rename(tmp_path / "moved")
    (moved,) = inputs(cfg(tmp_path / "run", weights=str(tmp_path / "moved")), None)
    assert moved["hash"] == first["hash"]
    save_bundle(nn.PReLU(), folder, {"module": {"_target_": "torch.nn.PReLU"}, "mpp": 0.25})
    (other,) = inputs(cfg(tmp_path / "run", **model), None)
    assert other["hash"] != first["hash"]


def test_a_changed_file_has_another_hash(tmp_path):
    file = tmp_path / "last.ckpt"
    file.write_bytes(b"one")
    first = hash_files(file)
    file.write_bytes(b"two!")
    assert hash_files(file) != first


def test_bundles_from_the_hub_are_known_by_what_was_loaded(tmp_path, monkeypatch):
    cached = save_bundle(nn.PReLU(), tmp_path / "snapshot", {"module": {"_target_": "torch.nn.PReLU"}})
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda source, **options: str(cached))
    (found,) = inputs(cfg(tmp_path / "run", weights="owner/name"), None)
    (same,) = inputs(cfg(tmp_path / "run", weights=str(cached)), None)
    assert found == {"kind": "bundle", "path": "owner/name", "hash": same["hash"], "made_by": None}


# ---------------------------------------------------------------------- W&B


def test_an_offline_run_of_wandb_logs_bundles_and_references_to_checkpoints(train, tmp_path, offline_runs):
    run = tmp_path / "run"
    logger = Wandb(str(run))
    train(run, logger)
    logger.finalize("success")  # as the runner does once more
    (found,) = offline_runs()

    (bundle,) = found.artifacts["model"]
    known = {(entry["kind"], entry["path"]): entry["hash"] for entry in outputs(run)}
    metadata = json.loads(bundle.metadata)
    assert bundle.name == "net"
    assert metadata["hash"] == known["bundle", str(run / "bundles" / "net")]
    assert (metadata["role"], metadata["mpp"], metadata["metrics"]) == ("translator", 0.46, {"val/score": 0.75})
    files = {entry.path: entry.local_path for entry in bundle.manifest.contents}
    assert files == {
        name: str(run / "bundles" / "net" / name) for name in ("README.md", "config.json", "model.safetensors")
    }

    best, last = found.artifacts["checkpoint"]
    assert best.name == last.name == f"checkpoint-{found.run.run_id}"
    assert [set(best.aliases), set(last.aliases)] == [{"latest", "best"}, {"latest", "last"}]
    assert [entry.ref for entry in best.manifest.contents] == [(run / "checkpoints/best_epoch001.ckpt").as_uri()]
    assert json.loads(last.metadata)["hash"] == known["checkpoint", str(run / "checkpoints" / "last.ckpt")]


def test_checkpoints_are_sent_where_that_is_asked_for(train, tmp_path, offline_runs):
    run = tmp_path / "run"
    train(run, Wandb(str(run), log_checkpoints=True))
    (found,) = offline_runs()
    best, _ = found.artifacts["checkpoint"]
    (entry,) = best.manifest.contents
    assert (entry.ref, entry.local_path) == ("", str(run / "checkpoints" / "best_epoch001.ckpt"))


class Service:
    """A run of W&B that is online, as far as lineage asks; it remembers what it is told."""

    def __init__(self):
        self.config, self.used, self.logged = {}, [], []
        self.config = self

    def update(self, *args, **options):
        pass

    def use_artifact(self, artifact, aliases):
        self.used.append(artifact)

    def log_artifact(self, artifact, aliases):
        self.logged.append(artifact)


def test_an_online_run_declares_what_it_reads(train, store, tmp_path, monkeypatch):
    run = train(tmp_path / "cyclegan" / "1")
    path = store("bci_sim")
    model = {"weights": str(run / "bundles" / "net"), "ensemble": [str(run / "checkpoints" / "last.ckpt")]}
    found = inputs(cfg(tmp_path / "pipeline", **model), Data(path))

    monkeypatch.delenv("WANDB_MODE")
    consumer, producer = Wandb(str(tmp_path / "pipeline"), offline=False), Wandb(str(run), offline=False)
    consumer._run, producer._run = Service(), Service()
    for _ in range(2):  # as before each stage
        consumer.log_hyperparams({"seed": 1, "inputs": found})
    producer.finalize("success")

    used = {artifact.type: artifact for artifact in consumer._run.used}
    assert len(consumer._run.used) == 3
    assert used["dataset"].name == "bci_sim"
    assert {entry.ref for entry in used["dataset"].manifest.entries.values() if entry.ref} == {path.as_uri()}
    assert used["dataset"].metadata["hash"] == hash_store(path)
    made = {(artifact.type, artifact.name, artifact.digest) for artifact in producer._run.logged}
    # Name and content agree, by which W&B knows it as the version that the training has logged.
    for kind in ("model", "checkpoint"):
        assert (kind, used[kind].name, used[kind].digest) in made


def test_another_store_at_the_same_place_is_another_version(store, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    digests = set()
    for content in (b"1", b"2"):
        logger = Wandb(str(tmp_path / "run"), offline=False)
        logger._run = Service()
        logger.log_hyperparams({"inputs": inputs(cfg(tmp_path / "run"), Data(store("bci", content=content)))})
        digests |= {artifact.digest for artifact in logger._run.used}
    assert len(digests) == 2


def test_a_service_that_refuses_costs_a_warning_and_no_training(train, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE")
    run = train(tmp_path / "run")
    logger = Wandb(str(run), offline=False)
    logger._run = Service()
    logger._run.log_artifact = None  # calling it is an error
    with caplog.at_level(logging.WARNING, "ihc2he"):
        logger.finalize("success")
    first = next(message for message in caplog.messages if message.startswith("W&B"))
    assert first.startswith(f"W&B did not accept the bundle {run}/bundles/net (")
    assert first.endswith("run.json lists it.")
