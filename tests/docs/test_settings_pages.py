"""The reference of the configuration: each key has a meaning, and the pages say what the YAML files say."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("settings", ROOT / "docs" / "hooks" / "settings.py")
settings = importlib.util.module_from_spec(spec)
sys.modules["settings"] = settings  # where dataclasses look for it
spec.loader.exec_module(settings)


@pytest.mark.parametrize("group", [group or "root" for group in settings.groups() if group != "experiment"])
def test_each_key_has_a_meaning(group):
    without = {c.name: settings.undescribed(c) for c in settings.choices("" if group == "root" else group)}
    assert not {name: keys for name, keys in without.items() if keys}, "write a comment behind each of these keys"


def test_each_experiment_begins_with_its_command():
    for choice in settings.choices("experiment"):
        assert choice.about.startswith("python -m ihc2he.train "), choice.file


@pytest.fixture
def conf(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "CONF", tmp_path)
    for cached in (settings.read_choice, settings._comments_of_group, settings._comments_of_all, settings._package):
        monkeypatch.setattr(settings, cached.__name__, cached.__wrapped__)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return tmp_path / path

    return write


def test_a_key_has_its_comment_or_that_of_its_group_or_of_what_it_sets(conf):
    conf("model/net.yaml", "width: 4  # channels | of the first layer\nloss: {a: 1, b: [2, 3]} # weights\nlr:\n")
    small = conf("model/small.yaml", "# Small\ndefaults: [net]\nwidth: 2\nseed: ${seed}\ninner:\n  deep: 'a # b'\n")
    search = conf(
        "hparams_search/s.yaml", "# @package _global_\nhydra:\n  sweeper:\n    params:\n      model.width: 1,2\n"
    )
    keys = {key.path: key for key in settings.read_choice(small).keys}
    assert settings.read_choice(small).about == "Small"
    assert keys["width"].meaning == "channels | of the first layer"
    assert keys["seed"].meaning == "that of `seed`"
    assert (keys["inner.deep"].default, keys["inner.deep"].meaning) == ("'a # b'", "")
    assert settings.undescribed(settings.read_choice(small)) == ["inner.deep"]
    (swept,) = (key for key in settings.read_choice(search).keys if key.default)
    assert (swept.default, swept.meaning) == ("1,2", "channels | of the first layer")
    page = settings.page("model")
    assert "| `model.width` | `4` | channels \\| of the first layer |" in page
    assert "| `model.loss` | `{a: 1, b: [2, 3]}` | weights |" in page
    assert "| `model.lr` | `null` |  |" in page
