import subprocess
import sys

import pytest

from ihc2he.simulate.__main__ import main, parse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bcii"], "There is no layout 'bcii'. Did you mean 'bci'?"),
        (["bci", "tile=3"], "'tile=3' is not a name=value that bci accepts. Did you mean 'tiles'?"),
        (["pannuke", "aligned=true"], "'aligned=true' is not a name=value that pannuke accepts."),
        (["bci", "out=x"], "bci needs tiles=..."),
        (["bci", "out=x", "tiles=many"], "tiles=many is not a whole number."),
        (["bci", "out=x", "tiles=2", "aligned=maybe"], "aligned=maybe must be true or false."),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_values_get_their_types():
    _, values = parse(["bci", "out=/x=y", "tiles=4", "aligned=true", "workers=3"])
    assert values == {"out": "/x=y", "tiles": 4, "aligned": True, "workers": 3}


def test_the_module_runs_and_needs_no_torch(tmp_path):
    command = "bci", f"out={tmp_path / 'bci'}", "tiles=2", "size=32", "workers=1"
    code = (
        "import sys; from ihc2he.simulate.__main__ import main; status = main(sys.argv[1:]); "
        "sys.exit(status or 3 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "bci" / "HE").rglob("*.png"))) == 2


def test_help_names_every_layout(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("bci", "pannuke", "endonuke", "nuclei", "tiles=", "workers"))
