"""What the report of slides says first, on made-up folders."""

import json
import re

import numpy as np
import pytest

from ihc2he.callbacks.slides import SUMMARY
from ihc2he.files import write_csv
from ihc2he.images.writing import write_png
from ihc2he.report import slides
from ihc2he.report.page import write_report


def row(slide, kind, nuclei, positive, stain="", region="all tissue"):
    own = {"slide": slide, "stain": stain, "region": region, "class": kind, "nuclei": nuclei, "positive": positive}
    own |= {"percent_positive": f"{100 * positive / nuclei:.2f}" if nuclei else "", "h_score": "50.4" if nuclei else ""}
    return own | {"area_mm2": "0.25"}


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes the results of slides, by name their nuclei and positive ones."""

    def write(counts, stain=""):
        rows = []
        for name, (nuclei, positive) in counts.items():
            rows += [row(name, "stroma", nuclei, positive, stain), row(name, "all", nuclei, positive, stain)]
            rows.append(row(name, "all", 1, 1, stain, "1 tumour"))
            result = {"files": ["overlay.png", "density.png", "hot_spot_1.png"], "hot_spots": []}
            result["hot_spots"].append({"x_um": 10.0, "y_um": 20.0, "nuclei": 4, "positive": 1})
            (tmp_path / name).mkdir()
            (tmp_path / name / "slide.json").write_text(json.dumps(result))
            for file in result["files"]:
                write_png(tmp_path / name / file, np.zeros((40, 60, 3), np.uint8))
        nuclei, positive = (sum(both[i] for both in counts.values()) for i in (0, 1))
        rows += [row("all slides", "stroma", nuclei, positive), row("all slides", "all", nuclei, positive)]
        write_csv(tmp_path / "summary.csv", rows, SUMMARY)
        return tmp_path

    return write


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


def test_one_slide_is_counted_in_a_sentence_and_shown(folder):
    where = folder({"a": (1200, 300)})
    page = page_of(where)
    assert slides.answer(where) == ["1,200 nuclei on a, 0.25 mm² of tissue: 25.0 % are positive, H\u2011score 50."]
    assert re.findall("<h2>(.*?)</h2>", page) == ["Slides", "Counts"]
    assert re.findall('alt="(.*?)"', page) == [
        "Nuclei and hot spots (overlay.png)",
        "Nuclei per mm² of tissue, from few (violet) to many (yellow) (density.png)",
        "Hot spot 1 (hot_spot_1.png)",
    ]  # fmt: skip
    assert "10, 20" in page


def test_slides_are_compared_and_what_was_not_read_comes_first(folder):
    where = folder({"a": (100, 30), "b": (300, 10)})
    write_csv(where / "failed.csv", [{"slide": "c", "window": "", "error": "broken", "path": "c.svs"}])
    page = page_of(where)
    said = slides.answer(where)
    assert said[0].startswith("400 nuclei on 2 slides")
    assert said[1] == "Left out, because it could not be read: 1 slide or part of one, see below."
    assert re.findall("<h2>(.*?)</h2>", page) == ["Not read", "Positivity", "Slides", "Counts"]
    assert "<li>c: broken</li>" in page
    assert re.search("<td[^>]*>30.00 %</td>", page)


def test_images_are_counted_like_slides(tmp_path):
    rows = [{"image": "a", "class": "all"}, {"image": "all images", "class": "all"}]
    rows = [own | {"nuclei": 7, "percent_positive": "14.29", "h_score": "14.3", "area_mm2": "0.01"} for own in rows]
    (tmp_path / "predictions").mkdir()
    write_csv(tmp_path / "predictions" / "summary.csv", rows)
    write_csv(tmp_path / "predictions" / "failed.csv", [{"name": "b", "path": "b.png", "error": "broken"}])
    first, failed = slides.answer(tmp_path)
    assert first == "7 nuclei on a, 0.01 mm²: 14.3 % are positive, H\u2011score 14."
    assert failed == "Left out, because it could not be read: 1 image or part of one, see below."
    page = page_of(tmp_path)
    assert re.findall("<h2>(.*?)</h2>", page) == ["Not read", "Counts"]
    assert "<li>b: broken</li>" in page


def test_of_he_nothing_is_positive(folder):
    assert slides.answer(folder({"a": (100, 30)}, "HE")) == ["100 nuclei on a, 0.25 mm² of tissue."]


def test_slides_without_nuclei_have_no_percentage(folder):
    where = folder({"a": (0, 0), "b": (0, 0)})
    assert slides.answer(where) == ["0 nuclei on 2 slides, 0.25 mm² of tissue."]
    assert "Positivity" not in page_of(where)


def test_pictures_end_where_the_page_gets_too_heavy(folder, monkeypatch):
    monkeypatch.setattr(slides, "BUDGET", 1)
    page = page_of(folder({"a": (10, 3), "b": (10, 1)}))
    assert page.count('(overlay.png)" width') == 1
    assert "Pictures of the first 1 of 2 slides; those of all are in their folders." in page


def test_images_show_their_overlays_and_their_shares_side_by_side(tmp_path):
    rows = [
        {"image": name, "class": "all", "nuclei": nuclei, "positive": positive, "area_mm2": "0.1",
         "percent_positive": f"{100 * positive / nuclei:.1f}", "h_score": "50"}
        for name, nuclei, positive in (("a", 40, 10), ("b/c", 60, 60), ("all images", 100, 70))
    ]  # fmt: skip
    write_csv(tmp_path / "predictions" / "summary.csv", rows)
    for name in ("a", "b/c"):
        file = tmp_path / "predictions" / "overlay" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(file, np.zeros((40, 60, 3), np.uint8))
    page = page_of(tmp_path)
    assert slides.answer(tmp_path) == ["100 nuclei on 2 images, 0.1 mm²: 70.0 % are positive, H\u2011score 50."]
    assert re.findall("<h2>(.*?)</h2>", page) == ["Positivity", "Nuclei", "Counts"]
    assert re.findall('<img[^>]*alt="(.*?)"', page) == ["a", "c"]
    assert "25.0 %" in page


def test_a_page_of_thousands_of_slides_is_light(tmp_path):
    rows = [row(f"slide {i}", kind, 9, 3) for i in range(3000) for kind in ("stroma", "all")]
    write_csv(tmp_path / "summary.csv", [*rows, row("all slides", "all", 27000, 9000)], SUMMARY)
    lost = [{"slide": f"lost {i}", "window": "", "error": "broken " * 20, "path": ""} for i in range(3000)]
    write_csv(tmp_path / "failed.csv", lost)
    parts = {section.title: section.build(tmp_path) for section in slides.SECTIONS if section.title != "Slides"}
    assert sum(len(part or "") for part in parts.values()) < 600_000
    assert "5,501 more are in summary.csv." in parts["Counts"]
    assert "2,500 more are in failed.csv." in parts["Not read"]
    assert parts["Positivity"] is None
