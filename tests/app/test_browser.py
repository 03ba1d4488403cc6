"""The page in a real browser: Chromium without a window, driven by Playwright."""

import csv
import json
import re
import shutil
import threading
import time

import pytest

from ihc2he.app.work import Queue, Sessions

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
uvicorn = pytest.importorskip("uvicorn", reason='needs uvicorn: pip install "ihc2he[app]"')
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
WAIT_MS = 60_000
expect = sync_api.expect


class Server:
    """The page, which can be killed and started again at the same address."""

    def __init__(self, settings):
        self.settings, self.port = settings, 0
        self.start()

    def start(self):
        from ihc2he.app.server import create_app

        config = uvicorn.Config(
            create_app(self.settings), port=self.port, log_level="error", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def kill(self):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(20)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def server(settings):
    made = Server(settings)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def visit(browser, server):
    """Open the page for a user of its own; it must not log errors."""
    contexts, problems = [], []

    def run(width=1440, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **settings)
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.address)
        return page

    yield run
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def picture(tile_png, tmp_path_factory):
    path = tmp_path_factory.mktemp("dropped") / "tile.png"
    path.write_bytes(tile_png)
    return path


def opened(page, picture):
    """Open an image, state its pixel size, and wait for its nuclei."""
    page.locator("#file").set_input_files(picture)
    page.get_by_role("button", name=re.compile("^0.5")).click()
    expect(page.locator("#n")).to_have_text(re.compile("[0-9]"), timeout=WAIT_MS)
    return count(page)


def count(page):
    return int(page.locator("#n").inner_text().replace(",", ""))


def nuclei(page):
    """Return where nuclei are on the screen, from what the page has drawn."""
    return page.evaluate(
        """() => { const { left, top, scale } = ihc2he.viewer.view();
        const box = document.querySelector("#viewer").getBoundingClientRect();
        return ihc2he.nuclei.all.filter((one) => !one.gone && ihc2he.nuclei.at(one.x, one.y) === one)
            .map((one) => ({ id: one.id, x: one.x * scale + left + box.left, y: one.y * scale + top + box.top })); }"""
    )


def downloaded(page, kind):
    with page.expect_download() as waiting:
        page.locator(f"[data-kind={kind}]").click()
    return waiting.value


def test_upload_look_and_download(visit, picture, tmp_path):
    page = visit()
    n = opened(page, picture)
    assert n > 10
    download = downloaded(page, "csv")
    assert download.suggested_filename == "tile_nuclei.csv"
    download.save_as(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == n
    positive = 100 * sum(int(row["positive"]) for row in rows) / n
    assert page.locator("#percent").inner_text() == f"{positive:.1f} %"
    page.locator("#t0").fill("1.46")  # the others go with it
    expect(page.locator("#percent")).to_have_text("0.0 %")
    assert [page.locator(f"#t{i}").input_value() for i in range(3)] == ["1.46", "1.48", "1.5"]
    page.get_by_role("button", name="Reset").click()
    page.locator("#least").fill("1")
    expect(page.locator("#n")).to_have_text("0")
    page.get_by_role("button", name="Reset").click()
    drawn = "() => ihc2he.overlay.canvas.getContext('2d').getImageData(0, 0, 2000, 2000).data.some((value) => value)"
    assert page.evaluate(drawn)
    page.locator("#translator").select_option("recolour")
    expect(page.locator("#curtain-line")).to_be_visible(timeout=WAIT_MS)
    assert json.loads(downloaded(page, "geojson").path().read_text(encoding="utf-8"))["type"] == "FeatureCollection"
    page.locator("#map").check()
    expect(page.locator("#map-legend")).to_be_visible()


def test_a_part_of_a_slide_is_analysed(visit, picture):
    page = visit()
    expect(page.locator("#names li")).to_have_count(1)
    page.evaluate("() => { ihc2he.facts.region_px = 1000; }")  # so that the tile counts as a slide
    page.locator("#file").set_input_files(picture)
    page.get_by_role("button", name=re.compile("^0.5")).click()
    expect(page.locator("#analyse-go")).to_be_disabled()
    expect(page.locator("#analyse-text")).to_contain_text("Zoom in: at most 0.0")
    page.locator("[data-tool=region]").click()
    box = page.locator("#viewer").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - 200, middle[1] - 200)
    page.mouse.down()
    page.mouse.move(*middle)
    page.mouse.up()
    expect(page.locator("#n")).to_have_text(re.compile("[0-9]"), timeout=WAIT_MS)
    region = page.evaluate("() => ihc2he.nuclei.field.region")
    assert 20 < region["width"] < 60
    assert all(
        region["left"] <= x <= region["left"] + region["width"]
        for x in page.evaluate("() => ihc2he.nuclei.all.map((one) => one.x)")
    )
    expect(page.locator("#analyse-view")).to_be_visible()


def test_correct_by_mouse_and_save(visit, picture, settings):
    page = visit()
    n = opened(page, picture)
    first, second = nuclei(page)[:2]
    page.mouse.click(first["x"], first["y"])
    expect(page.locator("#chosen")).to_be_visible()
    page.get_by_role("button", name="spindle 3").click()
    page.locator("#chosen-remove").click()
    expect(page.locator("#n")).to_have_text(str(n - 1))
    page.locator("[data-tool=remove]").click()
    page.mouse.click(second["x"], second["y"])
    expect(page.locator("#n")).to_have_text(str(n - 2))
    page.locator("[data-tool=add]").click()
    page.mouse.click(first["x"], first["y"])
    expect(page.locator("#n")).to_have_text(str(n - 1))
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#n")).to_have_text(str(n - 2))
    page.mouse.click(first["x"], first["y"])
    expect(page.locator("#edits")).to_contain_text("1 added, 2 removed")
    if page.locator("#untyped").is_visible():
        page.locator("#untyped-all").select_option("1")
    page.get_by_role("button", name="Save as training tile").click()
    expect(page.locator("#command")).to_contain_text("experiment=nuclei_finetune")
    assert list((settings.corrections / "images").glob("tile_0_0_*.png"))
    page.reload()
    opened(page, picture)
    expect(page.locator("#tune")).to_be_visible()  # on what was saved earlier


def test_corrections_keep_their_order_and_are_not_dropped_unasked(visit, picture):
    page = visit()
    n = opened(page, picture)
    order = page.evaluate(
        """async () => { const { editing, nuclei } = ihc2he, [first, second] = nuclei.all;
        editing.remove(first);
        const adding = editing.add(first.x, first.y);
        for (let i = 0; i < 9; i++) await null; // the server is asked
        editing.remove(second);
        await adding;
        return nuclei.edits.map((edit) => edit.do); }"""
    )
    assert order == ["remove", "add", "remove"]
    page.evaluate("ihc2he.editing.remove(ihc2he.nuclei.all.at(-1))")
    expect(page.locator("#edits")).to_contain_text("1 added, 3 removed")
    assert page.evaluate("ihc2he.nuclei.pruned().map((edit) => edit.do)") == ["remove", "remove"]
    page.locator("#open-another").click()  # the question is answered with no
    expect(page.locator("#n")).to_have_text(str(n - 2))
    page.evaluate("ihc2he.nuclei.field.nuclei.x[0] += 1; ihc2he.recovery.recover(null)")
    expect(page.locator("#banner")).to_contain_text("finds other nuclei than those that you corrected")
    expect(page.locator("#edits")).to_contain_text("1 added, 3 removed")


def test_correct_by_keyboard(visit, picture):
    page = visit()
    n = opened(page, picture)
    page.get_by_role("application").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#chosen")).to_be_visible()
    before = page.locator("#chosen-text").inner_text()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#chosen-text")).not_to_have_text(before)
    page.keyboard.press("3")
    expect(page.locator("#types [aria-pressed=true]")).to_contain_text("spindle")
    page.keyboard.press("r")
    expect(page.locator("#n")).to_have_text(str(n - 1))
    page.keyboard.press("z")
    expect(page.locator("#n")).to_have_text(str(n))
    page.keyboard.press("Escape")
    expect(page.locator("#chosen")).to_be_hidden()
    page.keyboard.press("a")
    expect(page.locator("#cross")).to_be_visible()
    for _ in range(40):  # to a place without a nucleus
        if page.evaluate("() => !ihc2he.nuclei.at(...ihc2he.viewer.toImage(...ihc2he.editing.cross))"):
            break
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#edits")).to_contain_text("1 added")
    page.keyboard.press("Escape")
    page.locator("#open-another").focus()
    for _ in range(12):  # the tools, the image, and at last the numbers are reached
        page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement !== document.body")


def test_a_phone_shows_all_without_scrolling_sideways(visit, picture):
    page = visit(390, 844, has_touch=True)
    n = opened(page, picture)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    one = next(one for one in nuclei(page) if 20 < one["x"] < 370 and one["y"] > 130)
    page.touchscreen.tap(one["x"], one["y"])
    expect(page.locator("#chosen")).to_be_visible()
    page.locator("#chosen-remove").tap()
    expect(page.locator("#n")).to_have_text(str(n - 1))
    for part in ("#h-stain", "#save", "[data-kind=csv]"):
        page.locator(part).scroll_into_view_if_needed()
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_a_wrong_file_says_why_and_another_can_follow(visit, picture, tmp_path):
    page = visit()
    for name, content in (("notes.png", b"hello"), ("cut.png", picture.read_bytes()[:500])):
        (tmp_path / name).write_bytes(content)
        page.locator("#file").set_input_files(tmp_path / name)
        expect(page.locator("#start-error")).to_contain_text(f"{name}: ")
    n = opened(page, picture)
    expect(page.locator("#start-error")).to_be_hidden()
    page.locator("#file").set_input_files(tmp_path / "notes.png")
    expect(page.locator("#banner")).to_contain_text("notes.png: ")
    assert count(page) == n  # the image stays open


def test_two_users_do_not_meet(visit, picture, server):
    one, two = visit(), visit()
    n = opened(one, picture)
    two.get_by_role("button", name="sub/tile.png").click()
    two.get_by_role("button", name=re.compile("^0.5")).click()
    place = nuclei(one)[0]
    one.mouse.click(place["x"], place["y"])
    one.keyboard.press("r")
    expect(one.locator("#n")).to_have_text(str(n - 1))
    expect(two.locator("#n")).to_have_text(str(n), timeout=WAIT_MS)
    expect(two.locator("#edits")).to_contain_text("None yet")


def test_the_page_goes_on_after_the_server_was_killed(visit, picture, server, settings):
    page = visit()
    n = opened(page, picture)
    place = nuclei(page)[0]
    page.mouse.click(place["x"], place["y"])
    page.keyboard.press("r")
    page.evaluate("() => { document.querySelector('#tuning').hidden = false; }")  # as if one were running
    server.kill()
    settings.sessions, settings.queue, settings.run = Sessions(30), Queue(), "another"
    page.locator("[data-kind=csv]").click()
    expect(page.locator("#banner")).to_contain_text("The server does not answer")
    server.start()
    expect(page.locator("#banner")).to_contain_text("with your 1 correction", timeout=WAIT_MS)
    expect(page.locator("#tuning-text")).to_contain_text("ended with the server")
    expect(page.locator("#n")).to_have_text(str(n - 1))
    expect(page.locator("#edits")).to_contain_text("1 removed")
    with page.expect_download():
        page.locator("[data-kind=csv]").click()


def test_nothing_is_loaded_from_elsewhere(visit, server):
    asked = []
    page = visit()
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(page.locator("#names li")).to_have_count(1)
    assert asked
    assert all(url.startswith((server.address, "data:", "blob:")) for url in asked)
