"""What all tests share: one thread per process, no network, and the command line as a function."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)


@dataclass
class Done:
    """How a command line ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run `ihc2he.train` in this process and in a fresh working directory; return how it ended."""
    from ihc2he import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "FULL_ERROR", False)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["ihc2he", *arguments])
        status = 0
        try:
            train.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return run


@pytest.fixture
def command(tmp_path):
    """Run `python -m ihc2he.train` as a process of its own in a fresh working directory."""

    def run(*arguments: str, cwd: Path | None = None, timeout: float = 240) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "ihc2he.train", *arguments],
            cwd=cwd or tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, request):
    """Make a test fail that reaches for anything but this machine."""
    real = socket.socket.connect

    def connect(self, address):
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1"):
            msg = f"a test reached for the network: {address}"
            raise OSError(msg)
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
