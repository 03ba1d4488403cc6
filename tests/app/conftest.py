"""The page with the weights in the box, and a small simulated tile."""

import csv
import io
import time

import pytest

from ihc2he.images.writing import as_png

ADDRESS = "http://127.0.0.1:8501"


@pytest.fixture(scope="session")
def networks():
    from ihc2he.app.analysis import Networks

    return Networks()


@pytest.fixture(scope="session")
def tile():
    from ihc2he.app.sample import draw_sample

    return draw_sample(160).image[:160, :160]


@pytest.fixture(scope="session")
def tile_png(tile):
    return as_png(tile)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tile_png):
    made = tmp_path_factory.mktemp("images")
    (made / "sub").mkdir()
    (made / "sub" / "tile.png").write_bytes(tile_png)
    (made / ".hidden.png").write_bytes(tile_png)
    (made / "notes.txt").write_text("no image", encoding="utf-8")
    outside = made.with_name("outside.png")
    outside.write_bytes(tile_png)
    (made / "link.png").symlink_to(outside)
    return made


@pytest.fixture(scope="module")
def settings(networks, folder, tmp_path_factory):
    from ihc2he.app.settings import Settings

    small = ("trainer.max_epochs=1", "data.samples_per_epoch=8", "data.num_workers=0", "trainer=cpu")
    return Settings(networks, path=folder, out=tmp_path_factory.mktemp("out"), tuning=small)


@pytest.fixture(scope="module")
def served(settings):
    from starlette.testclient import TestClient

    from ihc2he.app.server import create_app

    with TestClient(create_app(settings), base_url=ADDRESS) as client:
        yield client


def finished(client, job, seconds=120):
    """Return the last state of a job."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = client.get(f"/api/jobs/{job}").json()
        if now["state"] not in ("waiting", "running"):
            return now
        time.sleep(0.02)
    raise AssertionError(now)


@pytest.fixture(scope="session")
def analysed():
    """Return the id of the field that an analysis makes."""

    def run(client, image, **asked):
        answer = client.post(f"/api/images/{image}/fields", json={"mpp": 0.5, "translator": "none", **asked})
        assert answer.status_code == 202, answer.text
        done = finished(client, answer.json()["job"])
        assert done["state"] == "done", done
        return done["result"]

    return run


@pytest.fixture(scope="module")
def image(served, tile_png):
    """An uploaded tile."""
    return served.post("/api/images?name=tile.png", content=tile_png).json()


@pytest.fixture(scope="module")
def field(served, image, analysed):
    """The id of its field, and what a page gets of it."""
    made = analysed(served, image["id"], translator="recolour")
    return made, served.get(f"/api/fields/{made}").json()


@pytest.fixture(scope="session")
def table():
    """Return `table(served, key, **asked)`, the rows of the CSV file of a field."""
    plain = {"edits": [], "thresholds": [0.2, 0.4, 0.6], "least_score": 0}

    def rows(served, key, **asked):
        answer = served.post(f"/api/fields/{key}/files/csv", json=plain | asked)
        assert answer.status_code == 200, answer.text
        return list(csv.DictReader(io.StringIO(answer.text)))

    return rows
