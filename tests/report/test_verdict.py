"""What the report of a comparison says first: never more than the interval allows."""

import re

import numpy as np
import pytest

from ihc2he.files import write_csv
from ihc2he.metrics.bootstrap import Counts, differences, draw, intervals
from ihc2he.metrics.ratios import detection_ratios
from ihc2he.report.page import write_report
from ihc2he.report.verdict import Comparison, sentences

TRUE = 40  # keypoints of each tile


def values(sums):
    return detection_ratios(sums["tp"], sums["pred"], sums["true"])


def counts_of(tps):
    names = tuple(f"{i:02d}" for i in range(len(tps)))
    return Counts(names, {"tp": np.array(tps), "pred": np.full(len(tps), TRUE), "true": np.full(len(tps), TRUE)})


@pytest.fixture
def compare(tmp_path):
    """Return a folder of `compare(tps, roles, blocks)`: matches of each method on each tile, of as many found."""

    def write(tps, roles=None, blocks=None, model="{}", tables=True):
        n = len(next(iter(tps.values())))
        blocks = blocks or [""] * n
        drawn = [draw({name: name for name in counts_of([0] * n).names})]
        if len(set(blocks)) > 1:
            drawn.append(draw(dict(zip(counts_of([0] * n).names, blocks, strict=True))))
        rows, tiles = [], []
        for method, tp in tps.items():
            found = [intervals(counts_of(tp), values, one)["f1"] for one in drawn]
            row = {"metric": "f1", "method": method, "role": (roles or {}).get(method, "translation")}
            row |= {"value": found[0].value, "low": found[0].low, "high": found[0].high}
            row |= {"blocks_low": found[-1].low, "blocks_high": found[-1].high} if len(drawn) > 1 else {}
            rows.append(row | {"n": n, "better": "higher", "protocol": "<f1>"})
            tiles += [
                {"name": f"{i:02d}", "group": method, "recall": k / TRUE, "n_true": TRUE, "n_found": TRUE, "block": own}
                for i, (k, own) in enumerate(zip(tp, blocks, strict=True))
            ]  # fmt: skip
        write_csv(tmp_path / "comparison.csv", rows)
        if tables:
            write_csv(tmp_path / "results.csv", tiles)
        (tmp_path / "config.yaml").write_text(f"model: {model}\n")
        return tmp_path

    return write


NONE = {"none+a": "none"}
GOOD, BAD = [36, 35, 37, 36, 34, 38], [30, 28, 31, 30, 27, 32]
UNSURE = [36, 27, 33, 29, 28, 29]  # on average more than BAD


def test_a_clear_difference_is_said_with_its_paired_interval(compare):
    folder = compare({"none+a": BAD, "gan+a": GOOD}, NONE)
    found = Comparison(folder)
    drawn = draw({name: name for name in counts_of(BAD).names})
    expected = differences(counts_of(GOOD), counts_of(BAD), values, drawn)["f1"]
    assert found.difference("gan+a", "none+a") == (*expected, "6 tiles")
    first, basis = sentences(found)
    assert first == (
        f"gan+a found {expected.value:.3f} more F1 than none+a (95 % interval {expected.low:.3f} to "
        f"{expected.high:.3f} over 6 tiles): 0.900 instead of 0.742."
    )
    assert basis == "Measured on 6 tiles with 240 keypoints."


def test_a_difference_whose_interval_includes_0_is_not_claimed(compare):
    found = Comparison(compare({"none+a": BAD, "gan+a": UNSURE}, NONE))
    assert found.methods == ["gan+a", "none+a"]
    assert not found.difference("gan+a", "none+a").is_clear
    assert sentences(found)[0].startswith("gan+a and none+a cannot be told apart: F1 0.758 and 0.742, a difference of")


def test_tiles_of_a_single_block_are_said_to_resemble_each_other(compare):
    folder = compare({"none+a": BAD, "gan+a": GOOD}, NONE, blocks=[*"xxxxxx"])
    assert "They are all of one block and resemble each other" in sentences(Comparison(folder))[-1]
    assert "blocks of them" not in write_report(folder).read_text(encoding="utf-8")


def test_the_wider_interval_counts_so_that_blocks_can_withdraw_a_claim(compare):
    better = [k + d for k, d in zip(BAD, (9, 9, 9, -1, 2, 2), strict=True)]
    alone = Comparison(compare({"none+a": BAD, "gan+a": better}, NONE)).difference("gan+a", "none+a")
    folder = compare({"none+a": BAD, "gan+a": better}, NONE, blocks=[*"xxxyzz"])
    in_blocks = Comparison(folder).difference("gan+a", "none+a")
    assert alone.is_clear
    assert not in_blocks.is_clear
    assert in_blocks.over == "3 blocks"
    *_, basis = sentences(Comparison(folder))
    assert "in 3 blocks of neighbouring tiles. Intervals over so few blocks are rough." in basis


def test_all_methods_are_placed_and_the_choice_on_the_same_tiles_is_said(compare):
    tps = {"none+a": BAD, "gan+a": GOOD, "none+b": [k - 1 for k in GOOD], "true+a": [39] * 6, "gan+b": UNSURE}
    found = Comparison(compare(tps, {**NONE, "none+b": "none", "true+a": "ceiling"}))
    assert found.methods[0] == "true+a"
    assert found.candidates == ["gan+a", "none+b", "gan+b", "none+a"]
    first, others, basis = sentences(found)
    assert first.startswith("gan+a found 0.158 more F1 than none+a (95 % interval")
    assert others == "gan+a is above none+b and gan+b."
    assert "The best of 4 methods was picked on these same tiles" in basis
    assert "With the true H&E, which only simulated tissue has, F1 is 0.975 (true+a)" in basis


def test_where_the_reference_is_the_best_it_is_compared_with_the_next(compare):
    found = Comparison(compare({"none+a": GOOD, "gan+a": BAD}, NONE))
    assert sentences(found)[0].startswith("none+a found 0.158 more F1 than gan+a, the next best, (95 % interval")


def test_the_reference_is_the_one_that_the_configuration_names(compare):
    tps = {"none+a": BAD, "gan+a": GOOD, "gan+b": UNSURE}
    assert Comparison(compare(tps, NONE)).reference == "none+a"
    assert Comparison(compare(tps, NONE, model="{against: [gan+b]}")).reference == "gan+b"
    assert Comparison(compare(tps)).reference == "none+a"


@pytest.mark.parametrize("settings", [{"model": "{resamples: 0}"}, {"tables": False}])
def test_without_an_interval_nothing_is_claimed(settings, compare):
    found = Comparison(compare({"none+a": BAD, "gan+a": GOOD}, NONE, **settings))
    assert sentences(found)[0] == (
        "gan+a has an F1 of 0.900 and none+a of 0.742; there is no interval of the difference."
    )


def test_a_single_method_has_its_value(compare):
    assert re.fullmatch(
        r"none\+a found nuclei with an F1 of 0\.742 \(95 % interval 0\.\d+ to 0\.\d+ over 6 tiles\)\.",
        sentences(Comparison(compare({"none+a": BAD}, NONE)))[0],
    )


def test_the_page_opens_with_the_sentence_and_the_forest_plot(compare):
    tps = {"none+a": BAD, "gan+a": GOOD, "gan+b": UNSURE, "true+a": [39] * 6}
    folder = compare(tps, NONE | {"true+a": "ceiling"})
    write_csv(folder / "chosen.csv", [{"method": "gan+a", "setting": "least_heat", "value": 0.4, "val_f1": 0.9}])
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.index("gan+a found 0.158 more F1 than none+a") < page.index("<h2>Methods") < page.index("<details>")
    assert "Chosen before, on validation tiles that are not among these: least_heat." in page
    forest = page[page.index('<table class="forest">') : page.index("</table>")]
    assert re.findall(r'<th scope="row">(.*?)(?:<small>.*?)?</th>', forest) == ["true+a", "gan+a", "gan+b", "none+a"]
    assert re.findall(r'class="(best|aside)"', forest) == ["aside", "best"]
    assert re.findall(r"<small>(more|less|no difference can be told)</small>", forest) == [
        "more", "more", "no difference can be told",
    ]  # fmt: skip
    assert 'aria-label="0.900, ' in forest
