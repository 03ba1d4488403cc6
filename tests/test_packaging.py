import os
import shlex
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_wheel_carries_the_configuration_and_runs_from_anywhere(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"ihc2he/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert shipped - {"ihc2he/conf/local/default.yaml"} <= names
    assert "ihc2he/report/report.html.jinja" in names
    home = tmp_path / "venv"
    venv.create(home, system_site_packages=False, with_pip=False)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python3*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    import hydra

    (site / "dependencies.pth").write_text(str(Path(hydra.__file__).parents[1]) + "\n")
    run = [str(python), "-P", "-m", "ihc2he.train", "--cfg", "job", "experiment=cyclegan_bci"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "n_epochs_decay: 100" in done.stdout
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = [str(python), "-P", "-c", "import ihc2he, ihc2he.config as c; print(c.config_dir())"]
    assert (
        str(site) in subprocess.run(where, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True).stdout
    )


def readme_commands() -> list[list[str]]:
    lines, inside = [], False
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```bash"
        elif inside and line.startswith("python -m ihc2he.train"):
            lines.append(shlex.split(line, comments=True)[3:])
    return lines


def test_the_readme_shows_commands():
    assert len(readme_commands()) >= 5


@pytest.mark.parametrize("arguments", readme_commands(), ids=" ".join)
def test_every_command_of_the_readme_composes(arguments, tmp_path):
    if "--config-dir" in arguments:
        pytest.skip("needs the reader's own folder")
    kept = [a for a in arguments if a not in ("-m", "ckpt_path=last")]
    first = [a if "[" in a else a.split(",")[0] for a in kept]  # of the values of a sweep
    run = [sys.executable, "-m", "ihc2he.train", "--cfg", "job", *first]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
