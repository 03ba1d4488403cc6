from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihc2he.data.samplers import EpochLoader, EpochSampler, SampleIndex, ShardSampler, balancing_weights
from ihc2he.errors import ConfigError

sizes = st.integers(1, 60)
worlds = st.integers(1, 5)


@given(sizes, worlds, st.integers(0, 3))
def test_processes_share_an_epoch_without_overlap(size, world_size, epoch):
    shards = []
    for rank in range(world_size):
        sampler = EpochSampler(size=size, num_samples=size, seed=3, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        shards.append([sample.index for sample in sampler])
        assert len(shards[-1]) == len(sampler) == size // world_size
    together = [index for shard in shards for index in shard]
    assert len(set(together)) == len(together)
    assert set(together) <= set(range(size))


@given(st.integers(2, 60), worlds)
def test_the_samples_of_an_epoch_do_not_depend_on_the_number_of_processes(size, world_size):
    alone = [s.index for s in EpochSampler(size=size, num_samples=size, seed=1)]
    shards = [
        [s.index for s in EpochSampler(size=size, num_samples=size, seed=1, rank=r, world_size=world_size)]
        for r in range(world_size)
    ]
    interleaved = [index for step in zip(*shards, strict=True) for index in step]
    assert interleaved == alone[: len(interleaved)]


def test_each_epoch_has_its_own_order_and_says_so():
    sampler = EpochSampler(size=50, num_samples=50, seed=0)
    first = list(sampler)
    assert first == list(sampler), "the same epoch repeats itself"
    sampler.set_epoch(1)
    second = list(sampler)
    assert [s.index for s in first] != [s.index for s in second]
    assert {s.epoch for s in second} == {1}
    assert isinstance(second[0], SampleIndex)
    assert first != list(EpochSampler(size=50, num_samples=50, seed=1))


def test_a_longer_epoch_visits_every_tile_equally_often():
    sampler = EpochSampler(size=10, num_samples=30, seed=0)
    indices = [s.index for s in sampler]
    assert len(set(indices)) == 30, "a repeated tile has its own index, hence its own crop"
    assert set(Counter(i % 10 for i in indices).values()) == {3}


def test_a_shorter_epoch_visits_other_tiles_in_other_epochs():
    sampler = EpochSampler(size=100, num_samples=10, seed=0)
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen |= {s.index for s in sampler}
    assert len(seen) > 70


def test_balanced_drawing_gives_each_level_the_same_share():
    levels = ["0"] * 10 + ["3+"] * 90
    sampler = EpochSampler(size=100, num_samples=4000, seed=0, weights=balancing_weights(levels))
    samples = list(sampler)
    share = sum(levels[s.index % 100] == "0" for s in samples) / len(samples)
    assert share == pytest.approx(0.5, abs=0.04)  # five standard deviations
    assert len({s.index for s in samples}) == len(samples)


@given(st.integers(0, 60), worlds)
def test_evaluation_sees_each_tile_once_over_all_processes(size, world_size):
    shards = [list(ShardSampler(size, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for shard in shards for index in shard) == list(range(size))
    assert [len(ShardSampler(size, rank, world_size)) for rank in range(world_size)] == [len(s) for s in shards]


@given(st.integers(1, 20), worlds, st.integers(1, 4), st.data())
def test_a_loader_goes_on_in_the_middle_of_an_epoch(size, world_size, batch_size, data):
    class Identity:
        def __len__(self):
            return size

        def __getitem__(self, sample):
            return sample.index

    def loader():
        sampler = EpochSampler(size=size, num_samples=size, seed=3, rank=0, world_size=world_size)
        return EpochLoader(Identity(), batch_size=batch_size, sampler=sampler, collate_fn=list)

    whole, first, second = loader(), loader(), loader()
    seen = list(whole)
    done = data.draw(st.integers(0, len(seen)))
    begun = [batch for _, batch in zip(range(done), first, strict=False)]
    second.load_state_dict(first.state_dict())
    assert begun + list(second) == seen
    assert list(second) == seen  # the next epoch is whole again


def test_a_loader_that_would_cut_the_epoch_differently_refuses_to_go_on():
    def loader(batch_size, world_size=1):
        sampler = EpochSampler(size=10, num_samples=10, seed=0, world_size=world_size)
        return EpochLoader(range(10), batch_size=batch_size, sampler=sampler)

    state = loader(2).state_dict()
    for other in (loader(5), loader(2, world_size=2)):
        with pytest.raises(ConfigError, match=r"10 samples per process in batches of 2 before, \d+ in batches of"):
            other.load_state_dict(state)
