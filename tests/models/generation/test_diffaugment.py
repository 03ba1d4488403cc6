"""DiffAugment: what each change does, that gradients pass, and that nothing happens when it is off."""

import pytest
import torch

from ihc2he.models.generation.diffaugment import POLICIES, diff_augment
from ihc2he.models.generation.draws import Draws

EACH = [[name] for name in POLICIES]


@pytest.fixture
def tiles():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("policy", [*EACH, list(POLICIES)])
def test_gradients_pass(tiles, policy):
    x = tiles[:2, :, :6, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, policy, Draws((1,))), x)


@pytest.mark.parametrize("policy", EACH)
def test_each_image_has_its_own_change_and_a_seed_repeats_it(tiles, policy):
    same = tiles[:1].expand(6, -1, -1, -1)
    made = diff_augment(same, policy, Draws((3,)))
    assert torch.equal(made, diff_augment(same, policy, Draws((3,))))
    assert len({image.numpy().tobytes() for image in made}) >= 4
    assert not torch.equal(made, diff_augment(same, policy, Draws((4,))))


def test_colour_scales_contrast_about_the_mean_and_saturation_about_grey(tiles):
    made = diff_augment(tiles, ["colour"], Draws((0,)))
    brightness, saturation, contrast = Draws((0,)).uniform(6, 3).double().unbind(1)
    change = made.mean((1, 2, 3)) - tiles.mean((1, 2, 3))
    torch.testing.assert_close(change, brightness - 0.5)
    grey = [x.mean(1, keepdim=True) for x in (tiles, made)]
    before, after = ((x - mean).flatten(1).norm(dim=1) for x, mean in zip((tiles, made), grey, strict=True))
    ratio = after / before
    torch.testing.assert_close(ratio, 2 * saturation * (contrast + 0.5))


def test_translation_moves_by_at_most_an_eighth_and_fills_with_zero(tiles):
    made = diff_augment(tiles + 5, ["translation"], Draws((0,)))
    moves = set()
    for before, after in zip(tiles + 5, made, strict=True):
        found = [
            (dy, dx)
            for dy in range(-3, 4)
            for dx in range(-3, 4)
            if torch.equal(overlap(after, dy, dx), overlap(before, -dy, -dx))
        ]
        assert len(found) == 1
        dy, dx = found[0]
        assert max(abs(dy), abs(dx)) <= 2
        assert (after == 0).sum() == 3 * (256 - (16 - abs(dy)) * (16 - abs(dx)))
        moves.add((dy, dx))
    assert len(moves) >= 3


def overlap(x, dy, dx):
    h, w = x.shape[-2:]
    return x[:, max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)]


def test_cutout_sets_a_square_of_half_the_side_to_zero(tiles):
    made = diff_augment(tiles + 5, ["cutout"], Draws((0,)))
    gone = made == 0
    assert torch.equal(made[~gone], (tiles + 5)[~gone])
    for mask in gone[:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        assert 4 <= rows.sum() <= 8
        assert 4 <= columns.sum() <= 8


def test_off_it_changes_nothing(tiles):
    draws = Draws((0,))
    assert diff_augment(tiles, [], draws) is tiles
    assert torch.equal(draws.normal(2, 3), Draws((0,)).normal(2, 3))  # and draws nothing
