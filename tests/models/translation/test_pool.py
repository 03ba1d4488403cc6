from types import SimpleNamespace

import pytest
import torch

from ihc2he.models.translation.pool import ImagePool


def numbered(first, n=1):
    """Return n one-pixel images that carry their number."""
    return torch.arange(first, first + n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, 1, 1)


def test_below_capacity_images_are_stored_and_returned():
    pool = ImagePool(3)
    for i in range(3):
        assert pool.query(numbered(i)).mean() == i
    assert [image.mean().item() for image in pool.images] == [0, 1, 2]


def test_size_zero_passes_through_detached():
    fake = numbered(5, 2).requires_grad_()
    found = ImagePool(0).query(fake)
    assert torch.equal(found, fake)
    assert not found.requires_grad


def test_at_capacity_half_of_the_answers_are_old_ones_drawn_evenly():
    size, n = 4, 4000
    pool = ImagePool(size)
    pool.query(numbered(0, size))
    old, places = 0, [0] * size
    for i in range(size, size + n):
        before = [image.mean().item() for image in pool.images]
        answer = pool.query(numbered(i)).mean().item()
        after = [image.mean().item() for image in pool.images]
        if answer == i:
            assert after == before
            continue
        place = before.index(answer)
        assert after == [*before[:place], i, *before[place + 1 :]]
        old, places[place] = old + 1, places[place] + 1
    # Five standard deviations of binomials.
    assert old / n == pytest.approx(1 / 2, abs=5 * (0.25 / n) ** 0.5)
    assert [p / old for p in places] == pytest.approx([1 / size] * size, abs=5 * (0.25 * 0.75 / old) ** 0.5)


def test_stored_images_do_not_change_with_what_was_given():
    pool = ImagePool(1)
    fake = torch.zeros(1, 3, 2, 2)
    pool.query(fake)
    fake.fill_(9)
    assert pool.images[0].max() == 0


def test_an_image_of_another_size_is_replaced_and_never_returned():
    pool = ImagePool(2)
    pool.query(torch.zeros(2, 3, 4, 4))
    for _ in range(20):
        assert pool.query(torch.ones(1, 3, 6, 6)).shape == (1, 3, 6, 6)
    assert {tuple(image.shape) for image in pool.images} == {(3, 6, 6)}


def answers(pool, first=100, n=30):
    return [pool.query(numbered(i)).mean().item() for i in range(first, first + n)]


def test_a_restored_pool_draws_what_the_first_would_have_drawn():
    pool, restored = ImagePool(3, seed=1), ImagePool(3, seed=2)
    answers(pool, first=0)
    restored.load_state_dict(pool.state_dict())
    assert answers(restored) == answers(pool)


def test_a_smaller_pool_takes_as_many_images_as_it_holds():
    pool, smaller = ImagePool(3), ImagePool(2)
    pool.query(numbered(0, 3))
    smaller.load_state_dict(pool.state_dict())
    assert len(smaller.images) == 2
    assert len(answers(smaller)) == 30


def test_two_ranks_and_both_stains_draw_differently(small, monkeypatch):
    drawn = []
    for rank in (0, 1):
        module = small()
        monkeypatch.setattr(type(module), "global_rank", rank)
        module.setup("fit")
        for pool in module.pools.values():
            pool.query(numbered(0, 2))
            drawn.append(tuple(answers(pool)))
    assert len(set(drawn)) == 4


def test_each_rank_takes_up_its_own_pools_and_a_new_rank_starts_empty(small, monkeypatch):
    ranks = []
    for first in (0, 10):
        module = small()
        module.pools["ihc"].query(numbered(first))
        ranks.append({stain: pool.state_dict() for stain, pool in module.pools.items()})
    for rank, expected in ((0, [0]), (1, [10]), (2, [])):
        module = small()
        module._trainer = SimpleNamespace(training=False)
        monkeypatch.setattr(type(module), "global_rank", rank)
        module.on_load_checkpoint({"image_pools": ranks})
        assert [image.mean().item() for image in module.pools["ihc"].images] == expected
