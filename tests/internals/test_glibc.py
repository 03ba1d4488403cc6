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
