import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ihc2he import train
from ihc2he.errors import ConfigError
from ihc2he.loggers import dashboard

FEATURES = """
from torch import nn

class Means(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))
"""  # small enough for FID on a few tiles
SHOWN = {key for panels in dashboard.SECTIONS.values() for panel in panels for key in panel.keys}
KINDS = {"lines": "LinePlot", "bars": "BarPlot", "pictures": "MediaBrowser", "table": "WeavePanelSummaryTable"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a smoke run of each family; the pipeline uses what the two others have trained."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "dashboard_features.py").write_text(FEATURES)

    def run(name, *arguments):
        own = [f"experiment=smoke/{name}", "logger=wandb", f"hydra.run.dir={folder / name}", *arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.syspath_prepend(folder)
            patch.setenv("WANDB_DATA_DIR", str(folder / "wandb_data"))
            patch.setattr(train, "FULL_ERROR", True)
            patch.setattr(sys, "argv", ["ihc2he", *own])
            train.main()
        return folder / name

    features = "model.features={_target_: dashboard_features.Means}"
    cyclegan = run("cyclegan_bci", features, "callbacks.panels.n_images=2")
    hovernet = run("hovernet_pannuke", "callbacks.panels.n_images=2")
    pipeline = run(
        "pipeline_endonuke",
        "model.use={translators: [none, cyclegan], segmenters: [hovernet]}",
        f"model.translators.cyclegan.weights={cyclegan / 'bundles' / 'g_ihc2he'}",
        f"model.segmenters.hovernet.weights={hovernet / 'bundles' / 'segmenter'}",
    )
    import wandb

    wandb.finish()
    wandb.teardown()
    return SimpleNamespace(cyclegan=cyclegan, hovernet=hovernet, pipeline=pipeline)


def logged(runs):
    """Return the keys that runs have really logged: those with a value, not only a column; and of what is no scalar."""
    keys = set()
    for folder in vars(runs).values():
        with (folder / "metrics.csv").open(newline="") as stream:
            keys |= {key for row in csv.DictReader(stream) for key, value in row.items() if value}
        (files,) = folder.glob("wandb/offline-run-*/files/media")
        for file in files.rglob("*.*"):
            if file.suffix in (".png", ".json"):
                home = file.relative_to(files / file.relative_to(files).parts[0])
                keys.add(re.sub(r"_\d+_[0-9a-f]+\..*", "", home.as_posix()))
    return keys


def stands_for(shown, key):
    return shown == key or (shown.endswith("*") and key.startswith(shown[:-1]))


def test_every_key_of_the_dashboard_is_logged(runs):
    keys = logged(runs)
    dead = {shown for shown in SHOWN if not any(stands_for(shown, key) for key in keys)}
    assert dead == {"throughput/gpu_memory_gb"}  # needs a GPU


def test_every_loss_of_a_training_has_its_panel(runs):
    keys = {key for key in logged(runs) if key.startswith(("train/", "throughput/", "lr-"))}
    assert len(keys) > 15
    assert [key for key in keys if not any(stands_for(shown, key) for shown in SHOWN)] == []


def flat(summary):
    """Return the columns that W&B makes of a summary."""
    return {
        f"{key}.{kept}" if kept else key
        for key, value in summary.items()
        for kept in (value if isinstance(value, dict) else [None])
    }


def test_every_column_of_the_table_of_runs_is_in_a_summary(runs, offline_runs):
    columns = [flat(offline_runs(folder)[0].summary) for folder in vars(runs).values()]
    assert set(dashboard.COLUMNS) <= set.union(*columns)


def test_the_worst_tiles_are_shown_with_pictures(runs, offline_runs):
    for folder in vars(runs).values():
        (found,) = offline_runs(folder)
        rows = found.tables["worst_tiles"]["data"]
        assert rows
        assert rows[0][0]["_type"] == "image-file"


def test_wandb_knows_what_the_pipeline_has_read(runs, offline_runs):
    (found,) = offline_runs(runs.pipeline)
    assert found.config["inputs"] == json.loads((runs.pipeline / "run.json").read_text())["inputs"]
    assert found.tables["worst_tiles"]["data"][0][2] == "cyclegan+hovernet"


def test_run_json_leads_from_the_pipeline_to_the_tile_stores(runs):
    records = {name: json.loads((folder / "run.json").read_text()) for name, folder in vars(runs).items()}
    stores = {}
    for used in records["pipeline"]["inputs"]:
        maker = json.loads((Path(used["made_by"]) / "run.json").read_text())
        assert used["hash"] in [made["hash"] for made in maker["outputs"] if made["kind"] == "bundle"]
        stores[Path(used["path"]).name] = [source["kind"] for source in maker["inputs"]]
    assert stores == {"g_ihc2he": ["store"], "segmenter": ["store"]}


# ---------------------------------------------------------------------- the workspace


def test_the_workspace_has_the_documented_sections_and_panels():
    pytest.importorskip("wandb_workspaces")
    made = dashboard.workspace("me", "ihc2he")
    assert (made.entity, made.project) == ("me", "ihc2he")
    shown = {section.name: section.panels for section in made.sections}
    assert list(shown) == ["Losses", "Image quality", "Segmentation", "Throughput", "Panels", "Worst tiles"]
    (spec,) = [made._to_model().model_dump_json(by_alias=True)]
    for name, panels in dashboard.SECTIONS.items():
        assert [type(panel).__name__ for panel in shown[name]] == [KINDS[panel.kind] for panel in panels]
        for panel in panels:
            for key in panel.keys:
                assert key.rstrip("*") in spec


def test_the_page_names_every_section_and_every_loss():
    page = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for name, panels in dashboard.SECTIONS.items():
        (row,) = (row for row in rows if row.startswith(f"| {name} |"))
        for key in (key for panel in panels for key in panel.keys):
            last = re.split("[/+]", key)[-1]  # the page leaves out what the names of a row share
            family = re.sub(r"loss_(cycle|identity|g|d|np|hv|nc)_.*", r"loss_\1_*", last)
            assert family.rstrip("*") in row, (name, key)


def test_the_dashboard_needs_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert dashboard.main(["me/ihc2he"]) == 2
    assert capsys.readouterr().err == (
        "ihc2he: Making the dashboard needs the package wandb-workspaces: pip install 'ihc2he[dashboard]'\n"
    )


class View:
    """A workspace that is not sent anywhere."""

    entity, project, url = "me", "ihc2he", "https://wandb.ai/me/ihc2he?nw=1"

    def __init__(self, error=None):
        self.error, self.saved = error, 0

    def save(self):
        self.saved += 1
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("logged_in", "error", "status", "out", "err"),
    [
        (True, None, 0, "https://wandb.ai/me/ihc2he?nw=1\n", ""),
        (False, None, 2, "", "ihc2he: Nobody is logged in to W&B: run `wandb login`, or set WANDB_API_KEY.\n"),
        (
            True,
            ValueError("not found"),
            1,
            "",
            "ihc2he: W&B did not accept the view of me/ihc2he (ValueError: not found). Does the project exist?\n",
        ),
    ],
)
def test_the_view_is_saved_or_the_reason_is_said(monkeypatch, capsys, logged_in, error, status, out, err):
    view = View(error)
    monkeypatch.setattr(dashboard, "workspace", lambda entity, project: view)
    monkeypatch.setattr("wandb.login", lambda **options: logged_in)
    assert dashboard.main(["me/ihc2he"]) == status
    assert view.saved == logged_in
    assert capsys.readouterr() == (out, err)


@pytest.mark.parametrize("arguments", [["ihc2he"], ["me/"], ["/ihc2he"], ["a/b/c"], ["me/ihc2he", "more"]])
def test_what_is_no_project_is_refused(arguments, capsys):
    assert dashboard.main(arguments) == 2
    assert "Expected ENTITY/PROJECT, such as me/ihc2he, found" in capsys.readouterr().err


def test_help_says_what_it_does(capsys):
    assert dashboard.main(["--help"]) == 0
    assert "python -m ihc2he.dashboard ENTITY/PROJECT" in capsys.readouterr().out
    assert dashboard.main([]) == 2


def test_the_package_is_not_imported_before_it_is_needed():
    assert "wandb_workspaces" not in Path(dashboard.__file__).read_text().partition("def ")[0]
    with pytest.raises(ConfigError):
        dashboard._target(["x"])
