import pytest

from ihc2he import explain
from ihc2he.errors import DataError


def test_an_error_of_a_loading_process_comes_without_its_traceback():
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
        "OSError: lower\n\nThe above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n  File y\nihc2he.errors.DataError: a.h5: image of 2 is damaged. Pass x.\n"
    )
    assert explain.one_line(DataError(text)) == "a.h5: image of 2 is damaged. Pass x."
    assert explain.one_line(DataError("Caught in the act.")) == "Caught in the act."


def test_an_experiment_without_its_first_line_is_told_so(cli, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("defaults:\n  - /experiment/smoke/cyclegan_bci\n")
    done = cli("--config-dir", str(tmp_path / "conf"), "experiment=mine")
    assert done.status == 2
    assert "ihc2he: The file of the experiment must begin with the line '# @package _global_'" in done.err


@pytest.mark.parametrize("content", [b"seed: \xff\xfe", b"tags: &a [*a]\n", b"\tseed: 1\n"])
@pytest.mark.parametrize("joined", [True, False])
def test_the_file_that_cannot_be_read_is_named(tmp_path, content, joined):
    (tmp_path / "good.yaml").write_text("seed: 1\n")
    argv = [f"--config-dir={tmp_path}"] if joined else ["--config-dir", str(tmp_path), "experiment=bad"]
    assert explain.unreadable_file(argv) is None
    (tmp_path / "bad.yaml").write_bytes(content)
    assert explain.unreadable_file(argv).startswith(f"{tmp_path / 'bad.yaml'}: cannot be read as YAML in UTF-8 (")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("out=null", "ihc2he: out=null: expected a value."),
        ("out={a: 1}", "ihc2he: out: Cannot convert 'dict' to string"),
        ("callbacks.last.dirpath=null", "dirpath=None; expected a text."),
        ("images", "ihc2he: Cannot read 'images': expected KEY=VALUE. A value with spaces needs quotes, such as"),
    ],
)
def test_no_folder_is_made_of_what_is_not_a_name(cli, given, message):
    done = cli("experiment=smoke/cyclegan_bci", given)
    assert done.status == 2
    assert message in done.err
