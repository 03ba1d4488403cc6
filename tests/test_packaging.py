import importlib
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

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
    assert {f"ihc2he/app/static/{name}" for name in ("index.html", "main.js", "openseadragon/LICENSE.txt")} <= names
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


def test_all_files_name_the_same_version():
    version = importlib.import_module("ihc2he").__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
