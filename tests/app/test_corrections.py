"""Corrections of a page: what they change, what is saved of them, and the training on them."""

import json
import shlex

import numpy as np
import pytest
from omegaconf import OmegaConf

pytest.importorskip("starlette", reason='needs starlette: pip install "ihc2he[app]"')

from starlette.testclient import TestClient

from ihc2he.app.__main__ import serve
from ihc2he.app.analysis import Networks
from ihc2he.app.server import create_app
from ihc2he.app.settings import Settings
from ihc2he.app.tuning import command, uses
from ihc2he.arguments import keyword_arguments
from ihc2he.build import build
from ihc2he.data.nuclei import NucleiDataModule
from ihc2he.files import write_csv
from ihc2he.images.labels import read_labels
from ihc2he.nuclei.decoders.base import Decoder
from ihc2he.weights import BUILTIN

PLAIN = {"edits": [], "thresholds": [0.2, 0.4, 0.6], "least_score": 0}


def free_place(nuclei, size=160):
    """Return a place without a nucleus."""
    places = np.argwhere(np.ones((size, size), bool))[:, ::-1] + 0.5
    centres = np.stack([nuclei["x"], nuclei["y"]], 1)
    away = np.abs(places[:, None] - centres).max(2).min(1)
    return places[away.argmax()].tolist()


def test_corrections_change_the_numbers(served, field, table):
    key, shown = field
    nuclei = shown["nuclei"]
    first, second, n = nuclei["id"][0], nuclei["id"][1], len(nuclei["id"])
    x, y = free_place(nuclei)
    edits = [
        {"do": "remove", "id": first},
        {"do": "type", "id": second, "type": 2},
        {"do": "add", "type": 3, "x": x, "y": y},
    ]
    added = served.post(f"/api/fields/{key}/edits", json={"edits": edits, "known": n}).json()
    assert added["id"] == [n + 1]
    assert np.hypot(added["x"][0] - x, added["y"][0] - y) < 6
    assert 0.2 < added["area"][0] / np.median(nuclei["area"]) < 3.1
    rows = {row["id"]: row for row in table(served, key, edits=edits)}
    assert len(rows) == n
    assert str(first) not in rows
    assert rows[str(second)]["type"] == shown["classes"][2]["name"]
    assert rows[str(n + 1)]["type"] == shown["classes"][3]["name"]
    assert float(rows[str(n + 1)]["score"]) == 1
    gone = [*edits, {"do": "remove", "id": n + 1}]
    assert served.post(f"/api/fields/{key}/edits", json={"edits": gone}).json()["id"] == []
    usual = int(np.argsort(nuclei["area"])[n // 2])
    again = [{"do": "remove", "id": nuclei["id"][usual]}]
    again += [{"do": "add", "type": 1, "x": nuclei["x"][usual], "y": nuclei["y"][usual]}]
    back = served.post(f"/api/fields/{key}/edits", json={"edits": again}).json()  # where the network saw a nucleus
    assert back["area"][0] == pytest.approx(nuclei["area"][usual], rel=0.6)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({}, "expected a list"),
        ([{"do": "fly"}], "is no correction"),
        ([{"do": "remove", "id": "1"}], "is no correction"),
        ([{"do": "type", "id": 1, "type": 1.5}], "is no correction"),
        ([{"do": "add", "type": 1, "x": float("nan"), "y": 1}], "is no correction"),
        ([{"do": "type", "id": 1, "type": 9}], "expected 0 to 4"),
        ([{"do": "remove", "id": 99999}], "no nucleus 99999"),
        ([{"do": "remove", "id": 1}, {"do": "remove", "id": 1}], "no nucleus 1"),
        ([{"do": "add", "type": 1, "x": -3, "y": 1}], "outside of what was analysed"),
    ],
)
def test_wrong_corrections_are_refused(served, field, edits, message):
    answer = served.post(f"/api/fields/{field[0]}/edits", content=json.dumps({"edits": edits}))
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def test_a_nucleus_is_not_added_on_another(served, field):
    nuclei = field[1]["nuclei"]
    edit = {"do": "add", "type": 1, "x": nuclei["x"][0], "y": nuclei["y"][0]}
    assert "on another nucleus" in served.post(f"/api/fields/{field[0]}/edits", json={"edits": [edit]}).json()["error"]


def test_corrections_are_saved_as_a_folder_that_training_reads(served, settings, field, tmp_path):
    key, shown = field
    nuclei = shown["nuclei"]
    edits = [{"do": "type", "id": number, "type": 1} for number in nuclei["id"][1:]]
    edits += [{"do": "remove", "id": nuclei["id"][0]}]
    untyped = {"do": "type", "id": nuclei["id"][1], "type": 0}
    refused = served.post(f"/api/fields/{key}/corrections", json=PLAIN | {"edits": [*edits, untyped]})
    assert "have no type" in refused.json()["error"]
    for _ in range(2):  # the same field replaces its tile
        done = served.post(f"/api/fields/{key}/corrections", json=PLAIN | {"edits": edits}).json()
    folder = settings.corrections
    assert done["saved"] == 1
    assert {path.name for path in folder.iterdir()} == {"images", "instances", "types", "tiles.csv", "corrections.json"}
    labels = read_labels(folder / "instances" / f"{done['name']}.png")
    assert np.unique(labels).tolist() == list(range(len(nuclei["id"])))
    assert "experiment=nuclei_finetune" in done["command"]
    assert f"data.root={folder}" in done["command"]
    data = NucleiDataModule(
        root=str(folder), store=str(tmp_path / "store"), mpp=0.5, classes=settings.networks.segmenter.classes,
        target_mpp=0.5, crop_size=64, batch_size=1, eval_batch_size=1, num_workers=0, seed=0,
        decoder=settings.networks.segmenter.node,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert len(data.records["train"]) == 1
    (folder / "corrections.json").write_text('{"classes": ["other"]}', encoding="utf-8")
    refused = served.post(f"/api/fields/{key}/corrections", json=PLAIN | {"edits": edits})
    assert "Choose another out=" in refused.json()["error"]
    (folder / "corrections.json").write_text(json.dumps({"classes": data.classes}), encoding="utf-8")
    assert served.post(f"/api/fields/{key}/corrections", json=PLAIN | {"edits": edits}).status_code == 200


def test_the_command_names_settings_that_exist(settings, monkeypatch, tmp_path):
    from hydra import compose, initialize_config_dir

    from ihc2he.config import config_dir, register
    from ihc2he.typed import as_typed

    register()
    strange = tmp_path / "Läsionen (1), it's [x]=a b"
    strange.mkdir()
    write_csv(strange / "tiles.csv", [{"um_per_px": "0.5"}])
    arguments = command(strange, settings.networks)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        overrides = [one for one in as_typed(arguments[2:]) if not one.startswith("hydra.")]
        cfg = compose("train", [*overrides, "experiment_name=x", "paths.output_dir=x"])
        predict, page = (shlex.split(line)[3:] for line in uses(strange, tmp_path, "0.5"))
        used = compose("train", [*as_typed(predict), "experiment_name=x", "paths.output_dir=x"])
    assert used.model.segmenters.centres.weights == str(strange)
    assert keyword_arguments(serve, page, "ihc2he.app") == {"weights": str(strange), "out": str(tmp_path)}
    assert cfg.stages == ["fit"]
    assert list(cfg.data.classes) == settings.networks.segmenter.classes
    node = OmegaConf.to_container(cfg.model.decoder, resolve=True)
    assert build(node, Decoder) == settings.networks.segmenter.decoder
    assert cfg.data.root == str(strange)
    monkeypatch.chdir(BUILTIN.parent)
    assert f"model.init={BUILTIN}" in command(strange, Networks(BUILTIN.name))


@pytest.mark.slow
def test_fine_tuning_runs_beside_the_page_and_is_compared(served, field):
    import time

    key, shown = field
    edits = [{"do": "type", "id": number, "type": 1} for number in shown["nuclei"]["id"]]
    assert served.post(f"/api/fields/{key}/corrections", json=PLAIN | {"edits": edits}).status_code == 200
    assert served.post("/api/tuning").status_code == 202
    assert "running already" in served.post("/api/tuning").json()["error"]
    while (now := served.get("/api/tuning").json())["state"] == "running":
        time.sleep(0.5)
    assert now["state"] == "done", now
    assert (now["done"], now["total"]) == (1, 1)
    job = served.post("/api/tuning/comparison").json()["job"]
    while (state := served.get(f"/api/jobs/{job}").json())["state"] in ("waiting", "running"):
        time.sleep(0.2)
    assert state["state"] == "done", state
    found = state["result"]
    now = served.get("/api/start").json()["tuning"]
    assert now["comparison"] == found
    assert all(now["weights"] in line for line in now["uses"])
    assert found["corrected"] == len(edits)
    assert 0.5 < found["before"]["f1"] <= 1  # nothing but types was changed, on recoloured tissue
    assert 0 <= found["after"]["f1"] <= 1
    assert 0 < found["before"]["types"] < 1  # all of them were made type 1
    assert Networks(now["weights"]).segmenter.classes == served.get("/api/start").json()["classes"]


def test_without_out_nothing_is_saved(networks, tile_png, analysed):
    with TestClient(create_app(Settings(networks)), base_url="http://localhost:1") as client:
        image = client.post("/api/images?name=a.png", content=tile_png).json()
        key = analysed(client, image["id"])
        assert "start it with out=FOLDER" in client.post(f"/api/fields/{key}/corrections", json=PLAIN).json()["error"]
        assert "start it with out=FOLDER" in client.post("/api/tuning").json()["error"]
        assert client.get("/api/files").json() == []
        assert "path=FOLDER" in client.post("/api/images/open", json={"file": "a.png"}).json()["error"]
