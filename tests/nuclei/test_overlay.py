import numpy as np
import pytest

from ihc2he.nuclei.colours import colour_of
from ihc2he.nuclei.overlay import overlay

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
    assert overlay(IMAGE, inst_hw, np.array([2]), ["a", "b"]).shape == (40 + 2 * 18, 90, 3)
    with_unknown = overlay(IMAGE, inst_hw, np.array([0]), ["a", "b"])
    assert with_unknown.shape == (40 + 3 * 18, 90, 3)
    swatches = [with_unknown[40 + line * 18 + 9, 9].tolist() for line in range(3)]
    assert swatches == [list(colour_of(kind)) for kind in range(3)]
    assert (with_unknown[40:, 20:] < 128).any()


def test_an_empty_tile_is_the_image_over_its_legend():
    picture = overlay(IMAGE, np.zeros((40, 90), int), np.array([], int), ["a"])
    assert np.array_equal(picture[:40], IMAGE)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"Image \(40, 90, 3\), map \(4, 4\) of 1 nuclei and 2 types do not fit"):
        overlay(IMAGE, np.ones((4, 4), int), np.array([1, 1]), ["a"])
