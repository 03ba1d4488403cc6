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
_FAST_BF16 = ("amx_bf16", "amx_tile", "bf16", "sve_bf16", "svebf16")
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
    """Return whether the CPU has instructions that make bfloat16 products faster than those of float32.

    These are AMX, BF16 of ARM, and AVX512-BF16 but for Intel's CPUs: there it was the slower of the two without AMX
    (docs/benchmarks.md). Recent versions of PyTorch say what the CPU has. For older ones Linux says it
    (`/proc/cpuinfo`); elsewhere the answer is then no.
    """
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older ones have none
    if capabilities is not None:
        known: dict[str, Any] = capabilities()
        return _is_fast({name for name, there in known.items() if there is True}, str(known.get("cpu_name", "")))
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return _is_fast(set(flags.split()), next((line for line in lines if line.startswith("vendor_id")), ""))


def _is_fast(flags: set[str], maker: str) -> bool:
    return not flags.isdisjoint(_FAST_BF16) or ("avx512_bf16" in flags and "Intel" not in maker)
