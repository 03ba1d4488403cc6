"""What a terminal or a notebook hands down to the process does not end it."""

import os
import subprocess
import sys

import pytest

SMALL = ["debug=fast", "stages=[fit]", "callbacks.panels=null", "callbacks.bundles=null"]


def run(folder, *arguments, **environment):
    command = [sys.executable, "-m", "ihc2he.train", "--config-dir", "münch", *arguments]
    env = os.environ | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="latin-1", check=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "münch" / "experiment").mkdir(parents=True)
    text = "# @package _global_\n# Üben mit Größe\ndefaults: [/experiment/smoke/cyclegan_bci]\ntags: [ü]\n"
    (tmp_path / "münch" / "experiment" / "größe.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_without_a_sign_gets_another(folder, encoding):
    listed = run(folder, PYTHONIOENCODING=encoding)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert {"ascii": "\\xdcben mit Gr\\xf6\\xdfe", "latin-1": "Üben mit Größe"}[encoding] in listed.stdout
    composed = run(folder, "experiment='größe'", "--cfg", "job", PYTHONIOENCODING=encoding)
    assert composed.returncode == 0
    refused = run(folder, "experiment='größ'", PYTHONIOENCODING=encoding)
    assert refused.returncode == 2
    assert "Did you mean 'gr" in refused.stderr


@pytest.mark.slow
def test_a_run_ends_well_with_the_backend_of_a_notebook_and_a_narrow_encoding(folder):
    done = run(folder, "experiment='größe'", *SMALL, PYTHONIOENCODING="ascii", MPLBACKEND="module://of_a_notebook.x")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Logging error" not in done.stderr
    (run_folder,) = (folder / "outputs" / "größe").iterdir()
    assert "parameters" in (run_folder / "train.log").read_text(encoding="utf-8")
