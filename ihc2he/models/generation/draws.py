"""Random numbers of a training step and latent vectors, which depend on seeds and places alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers of one step, of which each process takes those of its own samples.

    Sample j of process r is sample `j * world_size + r` of the step, as `EpochSampler` deals them out. So two processes
    draw what one would for both of their batches.

    Args:
        seed: whole numbers, for instance seed, epoch and batch.
        rank: of this process.
        world_size: number of processes.

    >>> one, two = Draws((0, 1)), Draws((0, 1), rank=1, world_size=2)
    >>> torch.equal(one.normal(4, 3)[1::2], two.normal(2, 3))
    True
    """

    def __init__(self, seed: Sequence[int], rank: int = 0, world_size: int = 1) -> None:
        self._rng = np.random.default_rng(seed)
        self._rank, self._world_size = rank, world_size

    def uniform(self, n: int, *shape: int) -> Tensor:
        """Return (n, *shape) numbers from 0 to below 1."""
        return self._own(self._rng.random((n * self._world_size, *shape), np.float32))

    def normal(self, n: int, *shape: int) -> Tensor:
        """Return (n, *shape) normal numbers."""
        return self._own(self._rng.standard_normal((n * self._world_size, *shape), np.float32))

    def _own(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values[self._rank :: self._world_size].copy())


def latents(seeds: Sequence[Sequence[int]], size: int) -> Tensor:
    """Return a normal latent vector for each seed, (N, size), whatever the others are.

    >>> torch.equal(latents([(0, 7)], 5), latents([(0, 1), (0, 7)], 5)[1:])
    True
    """
    return torch.stack([Draws(seed).normal(1, size)[0] for seed in seeds])


def between(start_d: Tensor, end_d: Tensor, n: int) -> Tensor:
    """Return n latent vectors on the arc from one to another, (n, d) (White, 2016): a line would leave their shell.

    >>> between(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 3)[1].tolist()
    [0.7071067690849304, 0.7071067690849304]
    """
    cosine = torch.dot(start_d, end_d) / (start_d.norm() * end_d.norm())
    angle = torch.arccos(cosine.clamp(-0.9999, 0.9999))
    t_n1 = torch.linspace(0, 1, n)[:, None]
    return (torch.sin((1 - t_n1) * angle) * start_d + torch.sin(t_n1 * angle) * end_d) / torch.sin(angle)
