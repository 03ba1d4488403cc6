"""What is used of PyTorch that it does not promise to keep: texts of its errors, and what a CPU can do.

Imports torch only where it is needed, for the command line answers without.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LOST = (  # what gloo and NCCL say of it
    "Connection closed by peer", "Connection reset by peer", "communicator was aborted", "remote process exited",
)  # fmt: skip
_SHARED_MEMORY = ("out of shared memory", "unable to allocate shared memory", "unable to write to file </torch_")
_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback")
_NATIVE_BF16 = ("amx_bf16", "amx_tile", "avx512_bf16", "bf16", "sve_bf16", "svebf16")
_CPUINFO = Path("/proc/cpuinfo")


def process_lost(error: BaseException) -> bool:
    """Return whether an error means that another process of the group has ended."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)


def shared_memory_full(error: BaseException) -> bool:
    """Return whether an error means that processes that load data had no room in /dev/shm for a batch."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SHARED_MEMORY)


def without_worker(text: str) -> str:
    r"""Return the message of an error that came from a process that loads data, without what is put before.

    >>> said = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ..."
    >>> without_worker(f"{said}\nihc2he.errors.DataError: a.png: empty.")
    'a.png: empty.'
    """
    match = _WORKER.match(text)
    return re.split(rf"\n[\w.]*{match[1]}: ", text)[-1].rstrip() if match else text


def cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has instructions that multiply bfloat16: AMX or AVX512-BF16 (x86), BF16 (ARM).

    Recent versions of PyTorch say what the CPU has. For older ones Linux says it (`/proc/cpuinfo`); elsewhere the
    answer is then no.
    """
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older ones have none
    if capabilities is not None:
        known: dict[str, Any] = capabilities()
        return any(known.get(name) for name in _NATIVE_BF16)
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not set(_NATIVE_BF16).isdisjoint(flags.split())
