"""What the processes of a run tell one another."""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T")


def from_all_ranks(own: T) -> list[T]:
    """Return what each rank has given, in their order; with a single process its own alone.

    Collective: every rank has to call it.

    Args:
        own: anything that pickle takes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    gathered: list[T] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered
