"""Samplers whose order is a pure function of (seed, epoch), whatever the number of processes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Sampler

from ihc2he.errors import ConfigError


class EpochLoader(DataLoader):
    """A DataLoader that can continue in the middle of an epoch; its sampler must be one of this module.

    Its workers start at the first batch, not when the iterator is made, because the Trainer of a resumed run makes the
    iterator before it tells the sampler the epoch.
    """

    _batches = 0  # batches of this epoch that were already used
    _done = 0  # batches of the next iterated epoch that were used before the checkpoint

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._batches, self._done = self._done, 0
        self.sampler.skip = self._batches * (self.batch_size or 1)  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the loader's position in the epoch, for the Trainer's checkpoint."""
        return {"batches": self._batches, "batch_size": self.batch_size or 1, "samples": len(self.sampler)}  # type: ignore[arg-type]

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches before the checkpoint; the Trainer calls this only in the middle of an epoch.

        Raises:
            ConfigError: if this run divides the epoch into other batches.
        """
        own = self.state_dict() | {"batches": state["batches"]}
        if own != state:
            msg = (
                "ckpt_path: the checkpoint is from the middle of an epoch, and this run would divide the rest into "
                f"other batches: {state['samples']} samples per process in batches of {state['batch_size']} before, "
                f"{own['samples']} in batches of {own['batch_size']} now. Continue with the same data, data.batch_size "
                "and number of devices."
            )
            raise ConfigError(msg)
        self._done = state["batches"]


class SampleIndex(NamedTuple):
    """An index with its epoch, so that a dataset in a worker process knows the epoch without shared memory."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class EpochSampler(Sampler[SampleIndex]):
    """Yields this process's share of a new order in each epoch.

    Indices are in [0, num_samples) and may exceed ``size``. A dataset uses them modulo ``size``, and takes the seed of
    its random numbers from the full index, so that a tile used twice in an epoch is cropped differently.
    Every process gets the same number of samples: the remainder is dropped. Lightning calls ``set_epoch``.

    Args:
        size: number of different tiles.
        num_samples: samples per epoch over all processes.
        seed: of the order.
        weights: one per tile; tiles are then drawn with replacement, in proportion to them.
        rank: of this process.
        world_size: number of processes.

    >>> sampler = EpochSampler(size=5, num_samples=5, seed=0)
    >>> sorted(sample.index for sample in sampler)
    [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        *,
        size: int,
        num_samples: int,
        seed: int,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.num_samples = num_samples
        self.seed = seed
        self.weights = None if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0  # samples that the next iteration leaves out

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[SampleIndex]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.weights is None:
            order = rng.permutation(max(self.size, self.num_samples))[: self.num_samples]
        else:
            # A new index for each repetition of a tile: position x size + tile.
            tiles = rng.choice(self.size, self.num_samples, p=self.weights)
            order = tiles + self.size * np.arange(self.num_samples)
        for index in order[self.rank : len(self) * self.world_size : self.world_size][self.skip :]:
            yield SampleIndex(self.epoch, int(index))


class ShardSampler(Sampler[int]):
    """Yields every world_size-th index in order: each tile once over all processes, without padding.

    >>> list(ShardSampler(size=5, rank=1, world_size=2))
    [1, 3]
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)
        self.skip = 0  # samples that the next iteration leaves out

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices[self.skip :])


def balancing_weights(groups: Sequence[str]) -> list[float]:
    """Return a weight per tile that gives every group the same total.

    >>> balancing_weights(["3+", "3+", "0"])
    [0.5, 0.5, 1.0]
    """
    counts = {group: groups.count(group) for group in set(groups)}
    return [1 / counts[group] for group in groups]


def presence_weights(present: Sequence[Sequence[str]]) -> list[float]:
    """Return a weight per tile that balances the classes that tiles contain.

    The weight of a tile is a sum over its classes: 1 / the number of tiles with that class. Tiles without any class are
    a class of their own. So rare classes are drawn often, though always together with the classes around them.

    Args:
        present: the classes in each tile, without repetition.

    >>> presence_weights([["a"], ["a", "b"], ["a"], []])
    [0.3333333333333333, 1.3333333333333333, 0.3333333333333333, 1.0]
    """
    reasons = [classes or [""] for classes in present]
    counts = Counter(name for classes in reasons for name in classes)
    return [sum(1 / counts[name] for name in classes) for classes in reasons]
