"""Private parts of PyTorch that are used here: texts of its errors, and what a CPU can do.

Imports torch only where it is needed, so that the command line is quick.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LOST = (  # the messages of gloo and NCCL
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
    """Return whether an error means that loading processes had no space in /dev/shm for a batch."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SHARED_MEMORY)


def without_worker(text: str) -> str:
    r"""Return the message of an error from a loading process, without the text that PyTorch adds.

    >>> said = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ..."
    >>> without_worker(f"{said}\nihc2he.errors.DataError: a.png: empty.")
    'a.png: empty.'
    """
    match = _WORKER.match(text)
    return re.split(rf"\n[\w.]*{match[1]}: ", text)[-1].rstrip() if match else text


def cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has instructions that make bfloat16 products faster than those of float32.

    These are AMX, BF16 of ARM, and AVX512-BF16 except on Intel's CPUs, where bfloat16 was slower without AMX
    (docs/benchmarks.md). Recent versions of PyTorch know what the CPU has. With older ones it is read from
    `/proc/cpuinfo`; on other systems than Linux the answer is then no.
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
