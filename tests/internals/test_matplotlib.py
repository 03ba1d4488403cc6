import os
import subprocess
import sys

import pytest

CODE = """
import os
from ihc2he.internals.matplotlib import load
load()
import matplotlib
from matplotlib.figure import Figure
Figure().add_subplot().figure.savefig("a.png")
print(matplotlib.get_backend(), os.environ.get("MPLBACKEND"))
"""


@pytest.mark.parametrize("inherited", [None, "module://of_a_notebook.backend", "nonsense"])
def test_matplotlib_draws_whatever_backend_is_inherited(inherited, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    env |= {} if inherited is None else {"MPLBACKEND": inherited}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["agg", str(inherited)], "")
    assert (tmp_path / "a.png").is_file()


def test_without_that_the_import_fails(tmp_path):
    """When this test fails, matplotlib has become patient, and `load` can go."""
    env = os.environ | {"MPLBACKEND": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", "import matplotlib"], cwd=tmp_path, env=env, capture_output=True, check=False
    )
    assert done.returncode
