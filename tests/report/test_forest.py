import re
from math import nan

from ihc2he.report.forest import Line, forest


def test_marks_are_at_their_values_and_read_aloud():
    lines = [Line("a <b>", 0.5, 0.4, 0.6, cells=["x"]), Line("c", 1.0, ones=[0.9, 1.0]), Line("d", nan)]
    html = forest("caption", ["name", "text"], lines, reference=0.5)
    assert "a &lt;b&gt;" in html
    ticks = [float(text) for text in re.findall(r"<text [^>]*>(.*?)</text>", html)]
    assert ticks[0] <= 0.4
    assert ticks[-1] >= 1

    def at(value):
        return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    assert [float(x) for x in re.findall(r'class="dot" cx="(.*?)%"', html)] == [at(0.5), at(1)]
    assert re.findall(r'class="bar" x1="(.*?)%" x2="(.*?)%"', html) == [(str(at(0.4)), str(at(0.6)))]
    assert [float(x) for x in re.findall(r'class="one" cx="(.*?)%"', html)] == [at(0.9), at(1)]
    assert html.count(f'class="zero" x1="{at(0.5)}%"') == 3
    assert re.findall(r'aria-label="(.*?)"', html)[1:] == ["0.500, 0.400 to 0.600", "1.000", "no value"]


def test_equal_values_have_an_axis():
    html = forest("caption", ["name"], [Line("a", 0.0), Line("b", 0.0)])
    assert len(set(re.findall(r'class="dot" cx="(.*?)%"', html))) == 1
