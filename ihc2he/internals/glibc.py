"""The C library's memory: whether it goes back to the system each time that it is freed."""

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
