import base64
import re

import numpy as np
import pytest

from ihc2he.files import write_csv
from ihc2he.images.writing import write_png
from ihc2he.report.page import write_report

METHODS = ["none+classical", "cyclegan+classical", "none+hovernet"]


def value_row(metric, method, value, low, high, better="higher", n=181):
    return {
        "metric": metric, "method": method, "value": value, "low": low, "high": high, "n": n, "better": better,
        "protocol": f"<{metric}> pooled over tiles",
    }  # fmt: skip


def write_comparison(run_dir):
    rows = [
        value_row("f1", METHODS[0], 0.8239, 0.81, 0.8412),
        value_row("f1", METHODS[1], 0.79, 0.77, 0.8),
        value_row("f1", METHODS[2], "nan", "nan", "nan"),
        value_row("count_mae", METHODS[0], 12.345, 10, 15, "lower"),
        value_row("count_mae", METHODS[1], 9.5, 8, 11, "lower", n=180),
        value_row("f1_1um", METHODS[0], 0.4, 0.3, 0.5),
    ]
    write_csv(run_dir / "comparison.csv", rows)


def write_differences(run_dir):
    columns = ("metric", "method", "against", "difference", "low", "high", "blocks_low", "blocks_high")
    rows = [
        ("f1", METHODS[1], METHODS[0], -0.034, -0.05, -0.01, -0.09, 0.02),
        ("count_mae", METHODS[1], METHODS[0], 11.5, 2, 20, "nan", "nan"),
    ]
    rows = [dict(zip(columns, row, strict=True)) for row in rows]
    write_csv(run_dir / "differences.csv", rows)


def write_radius(run_dir):
    rows = [
        {"method": method, "radius_um": radius, "precision": 0.1 * radius, "recall": 0.1, "f1": 0.12 * radius}
        for method in METHODS
        for radius in (1, 3, 5)
    ]
    write_csv(run_dir / "radius.csv", rows)


def write_agreement(run_dir):
    write_csv(run_dir / "agreement.csv", [{"metric": "f1", "mean": 0.8567, "min": 0.7, "max": 0.9, "n": 21}])


def write_pages(run_dir):
    for name in ("test/02_b", "test/01_a", "worst/01_b"):
        write_png(run_dir / "images" / f"{name}.png", np.zeros((3000, 100, 3), np.uint8))


WRITERS = {
    "Over radius": write_radius,
    "Comparison": write_comparison,
    "Differences": write_differences,
    "Agreement of readers": write_agreement,
}


def page_of(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "could not be built" not in page
    return page


def titles(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def cells(page):
    """Return the rows of all tables but the forest plot: the text of their cells, where * stands for bold."""
    tables = re.sub(r"<table class=\"forest\">.*?</table>", "", page, flags=re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", tables, re.DOTALL)
    page_cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]+>", " ", re.sub("</?strong>", "*", cell)).split() for cell in row] for row in page_cells]


def flat(page):
    return [[" ".join(cell) for cell in row] for row in cells(page)]


def test_a_comparison_comes_before_the_table_of_the_test_and_replaces_what_is_meant_for_training(tmp_path):
    for write in (*WRITERS.values(), write_pages):
        write(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    write_csv(tmp_path / "results.csv", [{"name": "a", "group": METHODS[0], "f1": 0.5}])
    write_csv(tmp_path / "metrics.csv", [{"step": 0, "test/f1/none+classical": 0.5}])
    row = {"metric": "f1", "group": METHODS[0], "value": 0.5, "n": 1, "better": "higher", "protocol": "p"}
    write_csv(tmp_path / "test.csv", [row])
    shown, *folded = WRITERS
    expected = ["Methods", shown, *folded, "Pages of tiles", "Test", "Configuration"]
    page = page_of(tmp_path)
    assert titles(page) == expected
    assert re.findall(r"<summary><h2>(.*?)</h2>", page) == expected[2:]


@pytest.mark.parametrize("title", WRITERS)
def test_any_table_alone_makes_its_section(title, tmp_path):
    WRITERS[title](tmp_path)
    assert titles(page_of(tmp_path)) == ["Methods"] * (title == "Comparison") + [title]


def test_methods_are_rows_with_intervals_and_the_best_of_each_column_is_bold(tmp_path):
    write_comparison(tmp_path)
    page = page_of(tmp_path)
    assert flat(page) == [
        ["method", "f1 higher is better", "count_mae lower is better"],
        [METHODS[0], "*0.824* [0.810, 0.841]", "12.35 [10.00, 15.00]"],
        [METHODS[1], "0.790 [0.770, 0.800]", "*9.500* [8.000, 11.00]"],
        [METHODS[2], "-", "-"],
    ]
    assert "<li>f1: &lt;f1&gt; pooled over tiles (n = 181)</li>" in page
    assert "<li>count_mae: &lt;count_mae&gt; pooled over tiles (n = 180 to 181)</li>" in page


def test_of_a_bias_the_value_closest_to_zero_is_the_best(tmp_path):
    values = zip(METHODS, (-50, 2, -2), strict=True)
    write_csv(tmp_path / "comparison.csv", [value_row("count_bias", m, v, v, v, "closest to 0") for m, v in values])
    assert [row[1].split()[0] for row in flat(page_of(tmp_path))[1:]] == ["-50.00", "*2.000*", "*-2.000*"]


def test_other_metrics_are_compared_where_none_of_the_main_ones_is_there(tmp_path):
    write_csv(tmp_path / "comparison.csv", [value_row("own", METHODS[0], -1, -2, 0, better="")])
    assert flat(page_of(tmp_path)) == [["method", "own"], [METHODS[0], "-1.000 [-2.000, 0.000]"]]


def test_differences_are_bold_where_their_interval_excludes_zero(tmp_path):
    write_comparison(tmp_path)
    write_differences(tmp_path)
    rows = flat(page_of(tmp_path))
    both = f"{METHODS[1]} minus {METHODS[0]}"
    assert rows[-2:] == [
        [both, "f1 higher is better", "-0.034", "*[-0.050, -0.010]*", "[-0.090, +0.020]"],
        [both, "count_mae lower is better", "+11.50", "*[+2.000, +20.00]*", "-"],
    ]


def test_each_quantity_over_radius_has_a_figure_with_a_line_for_each_method(tmp_path):
    write_radius(tmp_path)
    page = page_of(tmp_path)
    assert re.findall(r'alt="(.*?)"', page) == [
        f"{title} by matching radius" for title in ("F1", "Precision", "Recall")
    ]
    svg = base64.b64decode(re.search(r"data:image/svg\+xml;base64,([^\"]*)", page).group(1)).decode()
    assert all(method in svg for method in METHODS)


def test_agreement_is_shown_with_its_extremes(tmp_path):
    write_agreement(tmp_path)
    assert flat(page_of(tmp_path))[1] == ["f1", "0.857", "0.700", "0.900", "21"]


def test_pages_come_in_the_order_of_their_numbers_and_keep_their_width(tmp_path):
    write_comparison(tmp_path)
    write_pages(tmp_path)
    page = page_of(tmp_path)
    assert titles(page) == ["Methods", "Comparison", "Pages of tiles"]
    assert re.findall("<h3>(.*?)</h3>", page) == ["Evenly spaced over the test", "Lowest F1"]
    assert re.findall("<figcaption>(.*?)</figcaption>", page) == ["01_a", "02_b", "01_b"]


def test_without_a_comparison_images_are_panels(tmp_path):
    write_pages(tmp_path)
    assert titles(page_of(tmp_path)) == ["Images"]
