import numpy as np
import pytest

from ihc2he.nuclei.colours import INVENTED, MATCHED, MISSED, colour_of
from ihc2he.nuclei.drawing import LINE_PX, draw_matches, draw_outlines, fitted, legend, overlay, write


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
    draw_outlines(picture, inst_hw, np.array([2]))
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


IMAGE = np.full((40, 90, 3), 200, np.uint8)


def test_rims_have_the_colour_of_their_type_and_the_rest_is_the_image():
    inst_hw = np.zeros((40, 90), np.int32)
    inst_hw[5:15, 5:15], inst_hw[5:15, 15:25], inst_hw[30:40, 80:90] = 3, 8, 9
    picture = overlay(IMAGE, inst_hw, np.array([2, 1, 0]), ["a", "b"])[:40]
    assert picture[5, 8].tolist() == picture[10, 14].tolist() == list(colour_of(2))
    assert picture[10, 15].tolist() == list(colour_of(1))
    assert picture[30, 85].tolist() == list(colour_of(0))
    assert picture[10, 8].tolist() == picture[39, 89].tolist() == [200] * 3  # inside, and at the end of the tile
    assert (picture != 200).any(-1).sum() == 2 * (4 * 10 - 4) + 19
    assert (IMAGE == 200).all()


def test_the_legend_names_every_class_and_the_unknown_only_where_there_are_some():
    inst_hw = np.zeros((40, 90), np.int32)
    inst_hw[1, 1] = 1
    assert overlay(IMAGE, inst_hw, np.array([2]), ["a", "b"]).shape == (40 + 2 * LINE_PX, 90, 3)
    with_unknown = overlay(IMAGE, inst_hw, np.array([0]), ["a", "b"])
    assert with_unknown.shape == (40 + 3 * LINE_PX, 90, 3)
    swatches = [with_unknown[40 + line * LINE_PX + LINE_PX // 2, 9].tolist() for line in range(3)]
    assert swatches == [list(colour_of(kind)) for kind in range(3)]
    assert (with_unknown[40:, 20:] < 128).any()


def test_an_overlay_of_an_empty_tile_is_the_image_over_its_legend():
    picture = overlay(IMAGE, np.zeros((40, 90), int), np.array([], int), ["a"])
    assert np.array_equal(picture[:40], IMAGE)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"Image \(40, 90, 3\), map \(4, 4\) of 1 nuclei and 2 types do not fit"):
        overlay(IMAGE, np.ones((4, 4), int), np.array([1, 1]), ["a"])
