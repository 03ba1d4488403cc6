import numpy as np
import pytest

from ihc2he.nuclei.colours import colour_of
from ihc2he.nuclei.table import nuclei_table
from ihc2he.report.drawing import INVENTED, MATCHED, MISSED, draw_matches, draw_outlines, fitted, legend, write


def white(side):
    return np.full((side, side, 3), 255, np.uint8)


def has(picture, colour):
    return (picture == colour).all(-1)


@pytest.mark.parametrize(
    ("shape", "size"), [((50, 100), (200, 400)), ((600, 500), (600, 500)), ((3000, 500), (1000, 167))]
)
def test_pictures_are_brought_within_limits(shape, size):
    image = np.zeros((*shape, 3), np.uint8)
    picture, factor = fitted(image, 400, 1000)
    assert picture.shape == (*size, 3)
    assert factor == pytest.approx(size[0] / shape[0])
    assert not np.shares_memory(picture, image)


@pytest.mark.parametrize("factor", [1, 4])
def test_an_outline_runs_through_the_rim_of_its_nucleus(factor):
    inst_hw = np.zeros((40, 40), np.int32)
    inst_hw[10:20, 10:20] = 1
    picture = white(40 * factor)
    draw_outlines(picture, nuclei_table(inst_hw, np.array([2]), np.ones(1), mpp=1), factor)
    rows, columns = np.nonzero((picture < 160).any(-1))
    middle = (np.array([10, 19]) + 0.5) * factor - 0.5  # of the outermost pixels
    assert [rows.min(), rows.max()] == pytest.approx(middle, abs=1.5)
    assert [columns.min(), columns.max()] == pytest.approx(middle, abs=1.5)
    assert np.abs(np.median(picture[rows, columns], 0) - colour_of(2)).max() < 32
    inside = np.s_[12 * factor : 18 * factor, 12 * factor : 18 * factor]
    assert (picture[inside] == 255).all()


def test_each_mark_lies_at_its_place_in_its_colour():
    picture = white(120)
    draw_matches(picture, np.array([[5, 5]]), np.array([[15, 5]]), np.array([[5.0, 15.0]]), 6)
    for colour, (x, y) in ((MATCHED, (32.5, 32.5)), (MISSED, (92.5, 32.5)), (INVENTED, (32.5, 92.5))):
        rows, columns = np.nonzero(has(picture, colour))
        assert (columns.mean(), rows.mean()) == pytest.approx((x, y), abs=1)
    assert has(picture, MATCHED)[32, 32]
    assert not has(picture, MISSED)[30:36, 90:96].any()  # a ring leaves its middle free


def test_a_legend_takes_the_lines_it_needs_and_names_unknown_types_only_where_there_are_some():
    classes = ["epithelium", "stroma", "other"]
    wide, narrow = (legend(width, classes, counts=[0, 1, 2, 3], marks=True) for width in (900, 200))
    assert wide.shape == (22, 900, 3)
    assert narrow.shape[0] > 22
    assert narrow.shape[0] % 22 == 0
    for strip in (wide, narrow):
        assert all(has(strip, colour).any() for colour in (*map(colour_of, (1, 2, 3)), MATCHED, MISSED, INVENTED))
        assert has(strip, colour_of(0)).sum() < 50  # nothing but greys of the letters
    assert has(legend(900, classes, counts=[4, 1, 2, 3]), colour_of(0)).sum() > 100


def test_text_ends_where_it_says():
    strip = np.full((22, 300, 3), 255, np.uint8)
    end = write(strip, "tile é 1", 10, 0)
    dark = np.nonzero((strip < 128).any(-1))[1]
    assert 10 <= dark.min() < 14
    assert end - 4 <= dark.max() <= end
