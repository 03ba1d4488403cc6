"""Commands in processes of their own, as a launcher starts them."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import ihc2he


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen]:
    """Return `start(launcher, *arguments, cwd, log)`, which starts the command line by a launcher."""

    def popen(launcher: Sequence[str], *arguments: str, cwd: Path, log: Path) -> subprocess.Popen:
        with log.open("w") as stream:
            return subprocess.Popen(
                [*launcher, "-m", "ihc2he.train", *arguments], cwd=cwd, stdout=stream, stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(cwd), str(Path(ihc2he.__file__).parents[1])])},
            )  # fmt: skip

    return popen


@pytest.fixture
def launch(start: Callable[..., subprocess.Popen], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Return `launch(launcher, *arguments, timeout)`, which runs the command line; its status and what it said."""

    def run(launcher: Sequence[str], *arguments: str, timeout: float = 200) -> tuple[int, str]:
        log = tmp_path / "said.log"
        with start(launcher, *arguments, cwd=tmp_path, log=log) as process:
            try:
                return process.wait(timeout), log.read_text()
            finally:
                process.kill()

    return run
