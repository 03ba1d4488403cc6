"""The nearest real tile is found in any turn."""

import pytest
import torch

from ihc2he.metrics.nearest import TURNS, nearest, thumbnails, turned


@pytest.fixture
def tiles():
    return torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("turn", range(TURNS))
def test_a_turned_copy_is_found_with_its_turn(tiles, turn):
    copy = turned(tiles[4], turn)
    found = nearest(thumbnails(copy[None]), thumbnails(tiles))
    assert (found.index_n.item(), found.distance_n.item()) == (4, pytest.approx(0, abs=1e-6))
    torch.testing.assert_close(turned(tiles[4], found.turn_n.item()), copy)


def test_the_eight_turns_differ(tiles):
    assert len({turned(tiles[0], turn).numpy().tobytes() for turn in range(TURNS)}) == TURNS


def test_the_distance_is_the_root_mean_square_difference(tiles):
    found = nearest(thumbnails(tiles[:2] + 0.25), thumbnails(tiles[:2]))
    assert found.distance_n.tolist() == pytest.approx([0.25, 0.25], rel=1e-5)


def test_without_real_tiles_all_are_infinitely_far(tiles):
    assert nearest(thumbnails(tiles), thumbnails(tiles)[:0]).distance_n.isinf().all()
    assert len(nearest(thumbnails(tiles)[:0], thumbnails(tiles)).distance_n) == 0
