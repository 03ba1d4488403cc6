"""Texts and figures of PyTorch that this package relies on."""

import socket
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ihc2he.errors import DataError
from ihc2he.internals import torch as internals


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        msg = "a.png: empty."
        raise DataError(msg)


def test_what_a_loading_process_puts_before_a_message_is_taken_away():
    with pytest.raises(DataError) as caught:
        list(DataLoader(Broken(), num_workers=1))
    assert str(caught.value).startswith("Caught DataError in DataLoader worker process 0.")
    assert internals.without_worker(str(caught.value)) == "a.png: empty."
    assert internals.without_worker("a.png: empty.") == "a.png: empty."


LEFT_ALONE = """
import os, sys, torch
from ihc2he.internals.torch import process_lost
rank, port = sys.argv[1:]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
torch.distributed.init_process_group("gloo", rank=int(rank), world_size=2)
if rank == "1":
    os._exit(0)
try:
    torch.distributed.all_reduce(torch.zeros(1))
except RuntimeError as error:
    os._exit(0 if process_lost(error) else 1)
os._exit(2)
"""


def test_gloo_says_that_a_process_is_lost():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [subprocess.Popen([sys.executable, "-c", LEFT_ALONE, rank, port]) for rank in "01"]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert not internals.process_lost(RuntimeError("shape mismatch"))


@pytest.mark.parametrize(
    ("flag", "maker", "fast"),
    [
        ("amx_bf16", "GenuineIntel", True),
        ("avx512_bf16", "AuthenticAMD", True),
        ("avx512_bf16", "GenuineIntel", False),  # slower than float32
        ("bf16", "ARM", True),
        ("avx512_f", "AuthenticAMD", False),
        ("avx512_fp16", "GenuineIntel", False),
    ],
)
def test_bf16_is_taken_where_the_cpu_multiplies_it_faster(flag, maker, fast, monkeypatch, tmp_path):
    known = {flag: True, "other": False, "cpu_name": maker, "l2_cache_size": 1}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert internals.cpu_multiplies_bf16() is fast
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as before PyTorch had it
    monkeypatch.setattr(internals, "_CPUINFO", tmp_path / "cpuinfo")
    assert not internals.cpu_multiplies_bf16()
    name = "Features" if flag == "bf16" else "flags"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {maker}\n{name}\t\t: fpu {flag} sse\n")
    assert internals.cpu_multiplies_bf16() is fast


def test_what_pytorch_says_of_this_cpu_is_what_linux_says(monkeypatch):
    if not hasattr(torch.cpu, "get_capabilities") or not internals._CPUINFO.is_file():
        pytest.skip("one of the two does not say")
    said = internals.cpu_multiplies_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert internals.cpu_multiplies_bf16() is said
