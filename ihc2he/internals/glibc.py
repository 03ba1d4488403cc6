"""The C library's memory: when it goes back to the system after it is freed."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of malloc.h
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations; return whether the C library can.

    By default glibc gives every large block back to the system, which then fills the pages of the next one with zeros:
    a network on a CPU spends up to half of its time on that. The process then stays as large as its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, _MOST))


class KeptMemory:
    """Freed memory that a process keeps for its next steps, and gives back to the system after every `steps` of them.

    Blocks of many sizes leave gaps that no later block fits, so a process that gives nothing back grows as long as it
    runs. To give back after each step would fill its pages with zeros each time.

    Args:
        steps: how many steps lie between two times that memory is given back.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._done = 0

    def step(self) -> None:
        """Keep what is freed from now on; each `steps`-th call gives back what lies idle."""
        if keep_freed_memory() and self._done % self.steps == self.steps - 1:
            ctypes.CDLL(None).malloc_trim(0)
        self._done += 1
