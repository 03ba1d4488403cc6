"""The addresses of the page, without a browser."""

import asyncio
import io

import numpy as np
import pytest
import tifffile

pytest.importorskip("starlette", reason='needs starlette: pip install "ihc2he[app]"')

from starlette.requests import Request
from starlette.testclient import TestClient

from ihc2he.app import images
from ihc2he.app.analysis import Region, analyse
from ihc2he.app.server import Page, create_app
from ihc2he.app.settings import Settings
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.decoding import samples_of
from ihc2he.images.source import ArraySource
from ihc2he.images.writing import as_png
from ihc2he.nuclei.counts import counted
from ihc2he.nuclei.geojson import read_geojson

PLAIN = {"edits": [], "thresholds": [0.2, 0.4, 0.6], "least_score": 0}


# ---------------------------------------------------------------- images


def test_an_image_is_opened_with_its_pixel_size_and_in_tiles(served, image, tile):
    assert (image["width"], image["height"], image["mpp"], image["levels"]) == (160, 160, None, 8)
    answer = served.get(f"/api/images/{image['id']}/tiles/8/0_0.jpg")
    seen = samples_of(answer.content).rgb8()
    assert np.abs(seen.astype(int) - tile).mean() < 6
    assert samples_of(served.get(f"/api/images/{image['id']}/tiles/7/0_0.jpg").content).rgb8().shape == (80, 80, 3)
    for place in ("8/1_0", "9/0_0", "0/0_1"):
        assert served.get(f"/api/images/{image['id']}/tiles/{place}.jpg").status_code == 404


def test_a_large_image_has_smaller_copies_and_its_tiffs_pixel_size(served):
    pixels = np.zeros((2100, 3001, 3), np.uint8)
    pixels[:, 1500:] = 200
    content = io.BytesIO()
    tifffile.imwrite(
        content, pixels, resolution=(1e4 / 0.25, 1e4 / 0.25), resolutionunit="CENTIMETER", compression="zlib"
    )
    image = served.post("/api/images?name=large.tif", content=content.getvalue()).json()
    assert image["mpp"] == pytest.approx(0.25)
    seen = samples_of(served.get(f"/api/images/{image['id']}/tiles/8/0_0.jpg").content).rgb8()
    assert seen.shape == (132, 188, 3)
    assert seen[:, :90].max() < 20
    assert seen[:, 98:].min() > 180
    last = samples_of(served.get(f"/api/images/{image['id']}/tiles/12/11_8.jpg").content).rgb8()
    assert last.shape == (2100 - 8 * 256 + 1, 3001 - 11 * 256 + 1, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "a.png: the file is empty"),
        ("notes.txt", b"hello", "notes.txt: the content is not a PNG, JPEG or TIFF"),
        ("cut.png", as_png(np.zeros((40, 40, 3), np.uint8))[:60], "cut.png: "),
        ("../../etc/x.tif", b"II*\0\0\0\0\0", "x.tif: "),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_alone(served, name, content, message):
    answer = served.post("/api/images", params={"name": name}, content=content)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(message)
    assert "/tmp" not in answer.json()["error"]


def test_uploads_are_bounded_in_bytes_time_and_pixels(networks, tile_png, monkeypatch):
    small = Settings(networks, upload_mb=len(tile_png) / 2 / 2**20)
    with TestClient(create_app(small), base_url="http://localhost:1") as client:
        known = client.post("/api/images?name=a.png", content=tile_png)
        streamed = client.post("/api/images?name=a.png", content=iter([tile_png[:9], tile_png[9:]]))
        assert [one.status_code for one in (known, streamed)] == [422, 422]
        assert "Open it from a folder instead" in known.json()["error"] == streamed.json()["error"]
        small.upload_mb = 9
        monkeypatch.setattr(images, "UPLOAD_PX", 1000)
        assert "160 x 160 px are more than" in client.post("/api/images?name=a.png", content=tile_png).json()["error"]


def test_a_picture_below_the_folder_counts_as_memory(tile_png, tmp_path):
    (tmp_path / "tile.png").write_bytes(tile_png)
    source = images.Locked(images.open_below(tmp_path, "tile.png"))
    assert images.Opened("id", "tile.png", source, images.Layers(source)).nbytes == 160 * 160 * 3


def test_a_long_name_is_cut_to_what_a_disk_takes(served, tile_png):
    name = "細胞" * 60 + ".png"
    answer = TestClient(served.app, base_url=str(served.base_url)).post(
        "/api/images", params={"name": name}, content=tile_png
    )
    assert answer.json()["name"] == name[-60:]


def test_a_slow_upload_ends(networks):
    async def receive():
        await asyncio.sleep(9)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"name=a.png"}
    with pytest.raises(DataError, match=r"a.png: the upload took longer than 0.01 s"):
        asyncio.run(Page(Settings(networks, upload_s=0.01)).upload(Request(scope, receive)))


def test_only_images_below_the_folder_are_opened(served, folder):
    assert served.get("/api/files").json() == ["sub/tile.png"]
    assert images.listed(folder, out=folder / "sub") == []  # tiles and masks that the page has saved
    assert served.post("/api/images/open", json={"file": "sub/tile.png"}).json()["name"] == "tile.png"
    for name in (
        "../outside.png",
        "link.png",
        ".hidden.png",
        "notes.txt",
        "sub",
        str(folder / "sub" / "tile.png") + "x",
    ):
        answer = served.post("/api/images/open", json={"file": name})
        assert answer.status_code == 422
        assert "no such image below the folder" in answer.json()["error"]


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:8501", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "evil.example:8501"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_requests_through_other_pages_are_refused(served, headers, status):
    assert served.get("/api/start", headers=headers).status_code == status
    assert "frame-ancestors 'none'" in served.get("/").headers["content-security-policy"]


def test_other_addresses_need_the_token(networks):
    app = create_app(Settings(networks, host="0.0.0.0", token="secret"))
    with TestClient(app, base_url="http://server:8501") as client:
        assert client.get("/").status_code == client.get("/api/start").status_code == 403
        assert client.get("/?token=wrong").status_code == client.get("/?token=ä").status_code == 403
        assert client.get("/?token=secret").status_code == 200
        assert client.get("/api/start").status_code == 200


def test_one_session_does_not_see_the_others(served, settings, image, field):
    other = TestClient(served.app, base_url=str(served.base_url))
    assert other.get(f"/api/images/{image['id']}/tiles/8/0_0.jpg").status_code == 404
    assert "no longer there" in other.get(f"/api/fields/{field[0]}").json()["error"]
    assert len(settings.sessions) >= 2


def test_pages_at_two_ports_do_not_take_each_others_sessions(served, networks, image):
    with TestClient(create_app(Settings(networks)), base_url="http://127.0.0.1:8502") as other:
        other.cookies = served.cookies  # as a browser, which has one jar for all ports
        keys = [next(value for name, value in other.cookies.items() if name.endswith("_8501"))]
        assert other.get("/api/start").status_code == 200
        keys.append(next(value for name, value in other.cookies.items() if name.endswith("_8502")))
    assert keys[0] != keys[1]
    assert served.get(f"/api/images/{image['id']}/tiles/8/0_0.jpg").status_code == 200


# ---------------------------------------------------------------- analyses


def test_a_pixel_size_is_needed(served, image):
    for mpp in (None, 0, "0.5", -1, 1e9):
        answer = served.post(f"/api/images/{image['id']}/fields", json={"mpp": mpp})
        assert answer.status_code == 422
        assert "The pixel size" in answer.json()["error"]
    assert served.post(f"/api/images/{image['id']}/fields", content=b"[]").status_code == 422
    endless = b'{"mpp": 0.5, "region": {"left": Infinity, "top": NaN, "width": 1, "height": 1}}'
    assert "Expected 4 numbers" in served.post(f"/api/images/{image['id']}/fields", content=endless).json()["error"]
    unknown = served.post(f"/api/images/{image['id']}/fields", json={"mpp": 0.5, "translator": "x"})
    assert "no translator" in unknown.json()["error"]


@pytest.mark.parametrize(
    ("mpp", "side", "message"),
    [
        (2.5, 9, r"At 2\.5 um/px no nucleus .* need 0\.5, and at most 2 can"),
        (0.125, 1, r"smaller than a px of 0\.5 um"),
    ],
)
def test_what_cannot_be_analysed_is_refused(networks, tile, mpp, side, message):
    with pytest.raises(ConfigError, match=message):
        analyse(networks, ArraySource(tile), mpp, "none", Region(0, 0, side, side), lambda *_: None)


def test_what_the_page_counts_is_what_the_files_say(served, field, table):
    key, shown = field
    nuclei, rows = shown["nuclei"], table(served, key)
    assert len(rows) == len(nuclei["id"]) > 10
    assert [row["id"] for row in rows] == [str(number) for number in nuclei["id"]]
    np.testing.assert_allclose([float(row["x_px"]) + 0.5 for row in rows], nuclei["x"], atol=0.01)
    counts = counted(np.array(nuclei["type"]), np.array(nuclei["dab"]), [kind["name"] for kind in shown["classes"][1:]])
    assert counts["all"].positive == sum(int(row["positive"]) for row in rows) > 0
    least = float(np.median(nuclei["score"]))
    assert len(table(served, key, least_score=least)) == sum(score >= least for score in nuclei["score"]) < len(rows)
    assert sum(int(row["positive"]) for row in table(served, key, thresholds=[5, 6, 7])) == 0
    wrong = served.post(f"/api/fields/{key}/files/csv", json=PLAIN | {"thresholds": [0.4, 0.2, 0.6]})
    assert "three rising" in wrong.json()["error"]


def test_files_open_elsewhere(served, field, tmp_path):
    key, shown = field
    geojson = tmp_path / "a.geojson"
    geojson.write_bytes(served.post(f"/api/fields/{key}/files/geojson", json=PLAIN).content)
    classes = [kind["name"] for kind in shown["classes"][1:]]
    assert len(read_geojson(geojson, (160, 160), classes).types_n) == len(shown["nuclei"]["id"])
    picture = samples_of(served.post(f"/api/fields/{key}/files/png", json=PLAIN).content).rgb8()
    assert picture.shape[1] == 400
    assert samples_of(served.post(f"/api/fields/{key}/files/he", json=PLAIN).content).rgb8().shape == (160, 160, 3)
    assert samples_of(served.get(f"/api/fields/{key}/tiles/8/0_0.jpg").content).rgb8().shape == (160, 160, 3)
    assert served.post(f"/api/fields/{key}/files/exe", json=PLAIN).status_code == 422


def test_a_region_lies_where_it_is_in_the_image(served, tile, analysed):
    whole = np.full((600, 700, 3), 240, np.uint8)
    whole[200:520, 300:620] = np.repeat(np.repeat(tile, 2, 0), 2, 1)
    image = served.post("/api/images?name=fine.png", content=as_png(whole)).json()
    region = {"left": 300, "top": 200, "width": 320, "height": 320}
    shown = served.get(f"/api/fields/{analysed(served, image['id'], mpp=0.25, region=region)}").json()
    assert (shown["region"], shown["size"], shown["mpp"], shown["he"]) == (region, [160, 160], 0.5, False)
    x, y = np.array(shown["nuclei"]["x"]), np.array(shown["nuclei"]["y"])
    assert len(x) > 10
    assert min(x.min() - 300, y.min() - 200) >= 0
    assert max(x.max() - 620, y.max() - 520) <= 0
    assert whole[y.astype(int), x.astype(int)].mean() < whole[200:520, 300:620].mean() - 30  # nuclei are dark
    corners = np.array(shown["nuclei"]["corners"]).reshape(-1, 2)
    assert (corners % 2 == 0).all()
    outside = served.post(f"/api/images/{image['id']}/fields", json={"mpp": 0.25, "region": region | {"left": 500}})
    state = served.get(f"/api/jobs/{outside.json()['job']}")
    while state.json()["state"] in ("waiting", "running"):
        state = served.get(f"/api/jobs/{outside.json()['job']}")
    assert "not inside of the image" in state.json()["error"]
