"""Freed memory that a process keeps is not filled with zeros again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from ihc2he.internals.glibc import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
np.ones(2**26, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**26, np.uint8)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is of Linux")
def test_freed_memory_is_used_again():
    def faults(how):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        kept, number = done.stdout.split()
        return kept, int(number)

    (kept, few), (_, many) = faults("keep"), faults("give")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert few < many / 4


GROWING = """
import sys
from pathlib import Path
from ihc2he.internals.glibc import KeptMemory

memory = KeptMemory(int(sys.argv[1]))
memory.step()
blocks = [bytearray(100_000) for _ in range(1_000)]
last = blocks[-1]
del blocks
memory.step()
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is of Linux")
def test_freed_memory_goes_back_after_some_steps():
    def resident_kb(steps):
        done = subprocess.run([sys.executable, "-c", GROWING, str(steps)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    if resident_kb(1000) < 100_000:
        pytest.skip("this C library does not keep freed memory")
    assert resident_kb(1000) - resident_kb(2) > 80_000
