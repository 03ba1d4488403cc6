import base64
import csv
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ihc2he.errors import DataError
from ihc2he.report import curves
from ihc2he.report import page as report
from ihc2he.report.page import write_report
from ihc2he.report.pictures import shrunk, within

PROTOCOL = "data range 1, the whole tile, mean over images"


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_config(run_dir):
    text = "experiment_name: cyclegan_bci\nseed: 1\nmodel:\n  _target_: ihc2he.models.CycleGAN\n  note: <b>&\n"
    (run_dir / "config.yaml").write_text(text)


def write_run(run_dir):
    facts = {
        "status": "finished",
        "git_commit": "91831d0",
        "device": "NVIDIA H100",
        "versions": {"torch": "2.6.0", "lightning": "2.6.4"},
        "seconds": {"fit": 5412.25, "test": 318.5},
        "warnings": ["Inversion alarm: <nuclei> are brighter than their surroundings in 31% of the made H&E."],
    }
    (run_dir / "run.json").write_text(json.dumps(facts))


def write_metrics(run_dir, steps=3000):
    rng = np.random.default_rng(0)
    columns = ["epoch", "step", "lr-Adam", "lr-Adam-1", "train/loss_g", "train/loss_cycle_ihc", "train/loss_cycle_he"]
    columns += ["train/loss_d_he", "train/loss_d_ihc", "val/he/ssim", "val/he/ssim/0", "val/he/ssim/3+", "val/he/psnr"]
    rows = []
    for step in range(steps):
        row = dict.fromkeys(columns, "")
        row |= {"epoch": step // 500, "step": step}
        for name in columns[4:9]:
            row[name] = 3 * np.exp(-step / 800) + 0.3 + 0.2 * rng.random()
        rows.append(row)
        if step % 500 == 499:
            rows.append(dict.fromkeys(columns, "") | {"step": step, "lr-Adam": 2e-4, "lr-Adam-1": 2e-4 - step * 5e-8})
            values = dict(zip(columns[9:], 0.3 + step / 1e4 + 0.02 * rng.random(4), strict=True))
            rows.append(dict.fromkeys(columns, "") | {"step": step} | values)
    rows[10]["train/loss_g"] = "nan"
    write_csv(run_dir / "metrics.csv", rows)


def write_test(run_dir):
    sizes = {"": 977, "0": 38, "1+": 235, "2+": 446, "3+": 258}
    keys = ("metric", "group", "value", "n", "better", "protocol")
    rows = []
    for metric, better in (("he/psnr", "higher"), ("he/ssim", "higher"), ("he/mdsi", "lower"), ("ihc/psnr", "higher")):
        for i, (group, n) in enumerate(sizes.items()):
            missing = (metric, group) == ("he/ssim", "0")
            rows.append((metric, group, 20.125 + i, n - missing, better, PROTOCOL))
    rows.append(("he/fid", "", 45.81, 977, "lower", "Inception, N = 977"))
    rows = [dict(zip(keys, row, strict=True)) for row in rows]
    write_csv(run_dir / "test.csv", rows)


def write_results(run_dir, n=100, metric="he/ssim"):
    rng = np.random.default_rng(1)
    order = rng.permutation(n)
    rows = [
        {"name": f"{i:05d}_test_3+.png", "group": "3+", "he/psnr": 20 + i / 10, metric: i / 1000, "ihc/psnr": 18.5}
        for i in order
    ]
    if n > 50:
        rows[3][metric] = ""
    write_csv(run_dir / "results.csv", rows)


def write_images(run_dir, stage="test", n=14):
    folder = run_dir / "images" / stage
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    for i in range(n):
        panel = cv2.resize(
            rng.integers(80, 255, (8, 32, 3), dtype=np.uint8), (2048, 512), interpolation=cv2.INTER_CUBIC
        )
        cv2.imwrite(str(folder / f"step{i:06d}.png"), panel)


WRITERS = {
    "Curves": write_metrics,
    "Images": write_images,
    "Test": write_test,
    "Worst and best images": write_results,
    "Run": write_run,
    "Configuration": write_config,
}


def page_of(run_dir):
    return write_report(run_dir).read_text(encoding="utf-8")


def titles(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def rows_of(page):
    """Return the text of every cell of every table row."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[re.sub(r"\s*<[^>]+>\s*", " ", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return the page of a run that has left everything."""
    run_dir = tmp_path_factory.mktemp("full")
    for write in WRITERS.values():
        write(run_dir)
    return page_of(run_dir)


def test_a_whole_run_has_all_sections_in_order(full):
    assert titles(full) == list(WRITERS)
    assert "<title>cyclegan_bci</title>" in full


@pytest.mark.parametrize("title", WRITERS)
def test_any_file_alone_makes_its_section(title, tmp_path):
    WRITERS[title](tmp_path)
    page = page_of(tmp_path)
    assert titles(page) == [title]
    assert "could not be built" not in page


def test_an_empty_run_says_so(tmp_path):
    page = page_of(tmp_path)
    assert titles(page) == []
    assert "This run has no results yet." in page
    assert f"<title>{tmp_path.name}</title>" in page


def test_the_page_needs_nothing_from_elsewhere(full):
    sources = re.findall(r'(?:src|href)="(.*?)"', full) + re.findall(r"url\((.*?)\)", full)
    assert len(sources) > 20
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script" not in full


def test_what_a_run_has_left_is_escaped(full):
    assert "&lt;nuclei&gt;" in full
    assert "<nuclei>" not in full
    assert "note: &lt;b&gt;&amp;" in full


def test_warnings_stand_at_the_top(full):
    assert full.index('role="alert"') < full.index("Inversion alarm") < full.index("<main>")


def test_a_run_without_warnings_has_no_box(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    assert 'role="alert"' not in page_of(tmp_path)


def test_groups_are_columns_of_the_test_table(full):
    rows = rows_of(full)
    assert ["metric", "all n = 977", "0 n = 38", "1+ n = 235", "2+ n = 446", "3+ n = 258", "protocol"] in rows
    assert ["he/mdsi lower is better", "20.12", "21.12", "22.12", "23.12", "24.12", PROTOCOL] in rows
    assert ["he/ssim higher is better", "20.12", "21.12 n = 37", "22.12", "23.12", "24.12", PROTOCOL] in rows
    assert ["he/fid lower is better", "45.81", "-", "-", "-", "-", "Inception, N = 977"] in rows


def test_the_worst_ten_and_the_best_five_images_are_shown(full):
    names = [row[0] for row in rows_of(full) if row[0].endswith(".png")]
    missing = {f"{i:05d}_test_3+.png" for i in range(100)} - set(names)
    assert len(names) == 15
    assert len(missing) == 85
    assert names[:9] == sorted(names[:9])
    assert names[0] in ("00000_test_3+.png", "00001_test_3+.png")
    assert names[10:] == sorted(names[10:], reverse=True)
    assert "99 of 100 images have a finite value" in full


def test_the_table_of_the_test_says_of_which_weights_it_is(tmp_path):
    row = {"metric": "own", "group": "", "value": 1, "n": 3, "better": "higher", "protocol": ""}
    write_csv(tmp_path / "test.csv", [row])
    assert "epoch" not in page_of(tmp_path)
    write_csv(tmp_path / "test.csv", [row | {"checkpoint": "checkpoints/last.ckpt", "epoch": 1, "step": 20}])
    (tmp_path / "test_best_epoch000_step10.csv").touch()
    page = page_of(tmp_path)
    assert (
        "Of checkpoints/last.ckpt: epoch 1 (from 0), step 20. Tests of other weights: test_best_epoch000_step10.csv."
        in page
    )


def test_few_images_are_all_shown_once(tmp_path):
    write_results(tmp_path, n=4)
    names = [row[0] for row in rows_of(page_of(tmp_path))[1:]]
    assert names == [f"{i:05d}_test_3+.png" for i in range(4)]


def test_where_lower_is_better_the_worst_is_the_highest(tmp_path):
    write_csv(tmp_path / "results.csv", [{"name": name, "he/mdsi": v} for name, v in (("a", 0.2), ("b", 0.5))])
    page = page_of(tmp_path)
    assert "By he/mdsi (lower is better)" in page
    assert [row[0] for row in rows_of(page)[1:]] == ["b", "a"]


@pytest.mark.parametrize(
    ("better", "order", "said"),
    [("closest to 0", "cba", "closest to 0 is better"), ("lower", "bac", "lower is better"),
     ("", "cab", "assuming that higher is better")],
)  # fmt: skip
def test_the_table_of_the_test_says_in_which_direction_images_are_ranked(better, order, said, tmp_path):
    write_csv(tmp_path / "test.csv", [{"metric": "own", "group": "", "value": 1, "n": 3, "better": better}])
    write_csv(tmp_path / "results.csv", [{"name": n, "own": v} for n, v in (("a", 2), ("b", 2.5), ("c", -50))])
    page = page_of(tmp_path)
    assert f"By own ({said})" in page
    assert [row[0] for row in rows_of(page)[-3:]] == [*order]


def test_columns_without_a_number_are_passed_over(tmp_path):
    write_csv(tmp_path / "results.csv", [{"name": "a", "scanner": "S60", "he/ssim": "nan", "he/psnr": 20.0}])
    page = page_of(tmp_path)
    assert "By he/psnr (higher is better); 1 of 1 images" in page
    assert rows_of(page) == [["name", "group", "he/psnr"], ["a", "", "20.00"]]


@pytest.mark.parametrize("text", ['{"status": ', "[1]"])
def test_facts_that_cannot_be_read_are_a_warning(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    page = page_of(tmp_path)
    assert "run.json cannot be read" in page
    assert titles(page) == []


def test_curves_are_grouped_and_thinned(full):
    section = full[full.index("<h2>Curves") : full.index("<h2>Images")]
    captions = re.findall(r'alt="Curves of (.*?)"', section)
    assert captions == [
        "train/loss_cycle", "train/loss_d", "train/loss_g", "val/he/psnr", "val/he/ssim", "learning rate",
    ]  # fmt: skip
    assert re.findall("<h3>(.*?)</h3>", section) == ["Losses", "Validation", "Learning rates"]
    assert len(section) < 400_000


def test_values_that_are_not_finite_are_counted_in_the_legend():
    steps = np.array([[0.0, 1.0], [1.0, np.nan], [2.0, np.inf], [3.0, 2.0]])
    svg = base64.b64decode(curves._line_figure("train/loss_g", {"train/loss_g": steps}).uri.partition(",")[2]).decode()
    assert "loss_g (2 of 4 not finite)" in svg


def test_a_table_cut_short_by_a_killed_run_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss_g,val/x\n0,1,0.5,\n0,2,0.4,\n0,3,1e-")
    page = page_of(tmp_path)
    assert titles(page) == ["Curves"]
    assert "could not be built" not in page


def test_only_the_newest_images_are_shown_and_shrunk(full):
    section = full[full.index("<h2>Images") : full.index("<h2>Test")]
    captions = re.findall("<figcaption>(.*?)</figcaption>", section)
    assert captions == [f"step{i:06d}" for i in range(13, 1, -1)]
    assert "The newest 12 of 14." in section
    webp = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]*)", section).group(1))
    assert cv2.imdecode(np.frombuffer(webp, np.uint8), cv2.IMREAD_COLOR).shape == (288, 1152, 3)


def test_a_broken_file_is_named_and_costs_only_its_section(tmp_path):
    write_test(tmp_path)
    write_images(tmp_path, n=1)
    (tmp_path / "images" / "test" / "half.png").write_bytes(b"\x89PNG")
    (tmp_path / "config.yaml").write_text("a: [")
    page = page_of(tmp_path)
    assert titles(page) == ["Images", "Test", "Configuration"]
    assert "half.png is not a readable image" in page
    assert f"<title>{tmp_path.name}</title>" in page


def test_nested_facts_have_dotted_names(full):
    assert ["versions.torch", "2.6.0"] in rows_of(full)
    assert ["seconds.fit", "5412.25"] in rows_of(full)


def test_a_report_replaces_the_last_one_and_leaves_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(report, "macros", lambda: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    monkeypatch.undo()
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


class Checker(HTMLParser):
    """Notes tags that are not closed in their order, and attributes by tag."""

    VOID = ("meta", "link", "img")

    def __init__(self, page):
        super().__init__()
        self.open, self.wrong, self.found = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # of SVG
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_well_formed_and_its_pictures_have_texts_and_sizes(full):
    checker = Checker(full)
    assert (checker.open, checker.wrong) == ([], [])
    ids = [attrs["id"] for _, attrs in checker.found if "id" in attrs]
    assert len(ids) == len(set(ids)) == len(WRITERS)
    assert {attrs["href"] for tag, attrs in checker.found if tag == "a"} == {f"#{name}" for name in ids}
    images = [attrs for tag, attrs in checker.found if tag == "img"]
    assert len(images) > 18
    assert all(image["alt"] and image["loading"] == "lazy" for image in images)
    assert all(int(image["width"]) and int(image["height"]) for image in images)


def test_tables_are_folded_below_what_is_shown(full):
    folded = ["Test", "Worst and best images", "Run", "Configuration"]
    assert re.findall(r"<summary><h2>(.*?)</h2></summary>", full) == folded
    assert titles(full)[-4:] == folded


def test_pictures_keep_within_their_bytes(tmp_path):
    write_images(tmp_path, n=4)
    paths = sorted((tmp_path / "images" / "test").glob("*.png"))
    size = len(shrunk(paths[0]).uri)
    html = within(int(2.2 * size), paths)
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == ["step000000", "step000001"]
    assert "2 more are in images/test: step000002.png, step000003.png." in html
    assert within(0, paths[:1]).count("<img") == 1


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder: a report is written from the folder of a run"):
        write_report(tmp_path / "nowhere")
