"""Communication between the processes of a run."""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T")


def from_all_ranks(own: T) -> list[T]:
    """Return the objects of all ranks, in their order; with a single process only its own.

    Collective: every rank must call it.

    Args:
        own: anything that can be pickled.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    gathered: list[T] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered
