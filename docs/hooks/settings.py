"""The pages of the reference that list every key of `conf/`, its default and its meaning, from the YAML files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
TITLES = {
    "": "The root",
    "experiment": "Experiments",
    "data": "Data",
    "model": "Models",
    "trainer": "Trainer",
    "callbacks": "Callbacks",
    "logger": "Loggers",
    "hparams_search": "Searches",
    "launcher": "Launchers",
    "study": "Studies",
    "debug": "Quick tries",
    "paths": "Folders",
    "hydra": "Hydra",
}
CHOSEN_ELSEWHERE = "defaults"
BAR = "\\|"  # within a cell of a table


@dataclass(frozen=True)
class Key:
    """One key of a YAML file, with dots between its parts."""

    path: str
    default: str  # as it is written
    meaning: str  # its comment; empty if it has none
    target: str = ""  # the class that a mapping builds


@dataclass(frozen=True)
class Choice:
    """One YAML file: a choice of its group."""

    file: Path
    about: str  # comments above the first key
    keys: tuple[Key, ...]
    choices: tuple[str, ...]  # its entry `defaults`

    @property
    def group(self) -> str:
        """Return the folder below `conf`, such as `model/encoder`; empty for the root."""
        return _group(self.file)

    @property
    def name(self) -> str:
        """Return how the command line names this choice."""
        return f"{self.group}={self.file.stem}" if self.group else self.file.name


def groups() -> list[str]:
    """Return the folders of `conf` that have a page, in the order of the navigation."""
    found = {path.relative_to(CONF).parts[0] for path in CONF.rglob("*.yaml") if path.parent != CONF}
    return [group for group in TITLES if group in found | {""}] + sorted(found - set(TITLES) - {"local"})


def choices(group: str) -> list[Choice]:
    """Return the files of a folder of `conf` and of the folders in it; of the root for the empty name."""
    files = (CONF / group).rglob("*.yaml") if group else CONF.glob("*.yaml")
    found = sorted(files, key=lambda file: (len(file.parts), file.as_posix()))
    return [read_choice(file) for file in found]


def undescribed(choice: Choice) -> list[str]:
    """Return the keys of a file that have a value and no meaning."""
    return [key.path for key in choice.keys if not key.meaning and not key.target]


@cache
def read_choice(file: Path) -> Choice:
    """Return what a YAML file offers; a key without a comment has that of the same key elsewhere."""
    text = file.read_text(encoding="utf-8")
    above = [line for line in _until_first_key(text) if not line.startswith("# @package")]
    about = " ".join(line.lstrip("# ").strip() for line in above)
    return Choice(file, about, tuple(_described(file, key) for key in _keys(text)), tuple(_defaults(text)))


def _until_first_key(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            return
        yield line


def _described(file: Path, key: Key) -> Key:
    if key.meaning or key.target:
        return key
    path = key.path.removeprefix("hydra.sweeper.params.")
    siblings = {} if _package(file) == "_global_" else _comments_of_group(file.parent)
    meaning = siblings.get(path) or _comments_of_all().get(_prefix(file) + path, "")
    alone = re.fullmatch(r"\$\{([\w.]+)\}", key.default)
    if not meaning and alone:
        meaning = f"that of `{alone[1]}`"
    return Key(key.path, key.default, meaning)


@cache
def _comments_of_group(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.yaml")):
        for key in _keys(file.read_text(encoding="utf-8")):
            if key.meaning:
                found.setdefault(key.path, key.meaning)
    return found


@cache
def _comments_of_all() -> dict[str, str]:
    """Return the meanings of keys under the names that the command line has for them, such as trainer.devices."""
    found: dict[str, str] = {}
    for file in sorted(file for file in CONF.rglob("*.yaml") if _package(file) != "_global_"):
        for key in _keys(file.read_text(encoding="utf-8")):
            if key.meaning:
                found.setdefault(_prefix(file) + key.path, key.meaning)
    return found


def _keys(text: str) -> list[Key]:
    root = yaml.compose(text)
    return list(_mapping(root, text, "")) if isinstance(root, yaml.MappingNode) else []


def _mapping(node: yaml.MappingNode, text: str, prefix: str) -> Iterator[Key]:
    for name, value in node.value:
        path = f"{prefix}{name.value}"
        if name.value in (CHOSEN_ELSEWHERE, "_target_", "_convert_"):
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield Key(path, "", _comment(text, name), _target(value) or "mapping")
            yield from _mapping(value, text, f"{path}.")
        else:
            one_line = value.end_mark.line == name.start_mark.line
            yield Key(path, _written(value, text), _comment(text, value if one_line else name))


def _comment(text: str, node: yaml.Node) -> str:
    """Return the comment behind a node, on its line."""
    return text[node.end_mark.index :].partition("\n")[0].partition(" #")[2].strip()


def _written(node: yaml.Node, text: str) -> str:
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return "[" + ", ".join(_written(item, text) for item in node.value) + "]"
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return "a text of several lines"
    return " ".join(text[node.start_mark.index : node.end_mark.index].split()) or "null"


def _target(node: yaml.MappingNode) -> str:
    return next((value.value for name, value in node.value if name.value == "_target_"), "")


def _defaults(text: str) -> Iterator[str]:
    for entry in (yaml.safe_load(text) or {}).get(CHOSEN_ELSEWHERE, []):
        if isinstance(entry, str):
            yield entry
        else:
            yield from (f"{group}: {'null' if name is None else name}" for group, name in entry.items())


@cache
def purpose(target: str) -> str:
    """Return the first line of a class's docstring, if it is one of this package, without importing it."""
    module, _, name = target.rpartition(".")
    file = ROOT / f"{module.replace('.', '/')}.py"
    if not file.is_file():
        return ""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def page(group: str) -> str:
    """Return the page of a folder of `conf` as Markdown."""
    title = TITLES.get(group, group)
    lead = f"Every choice of `{group}=` with its keys." if group else "The keys that every command has."
    if group == "experiment":
        lead = (
            "An experiment chooses data, model and callbacks, and sets keys. Its command is the first line of its file."
        )
    parts = [f"# {title}", lead, *(_section(choice) for choice in choices(group))]
    return "\n\n".join(parts) + "\n"


def _section(choice: Choice) -> str:
    parts = [f"## `{choice.name}`"]
    command, colon, rest = choice.about.partition(": ")
    if command.startswith("python -m ihc2he") and colon:
        parts += [f"{_sentence(rest)}", f"```bash\n{command}\n```"]
    elif choice.about:
        parts.append(_sentence(choice.about))
    if choice.choices:
        parts.append("Takes " + ", ".join(f"`{entry}`" for entry in choice.choices if entry != "_self_") + ".")
    target = _target(_root(choice.file))
    if target:
        parts.append(f"Builds {_class(target)}")
    rows = [_row(choice, key) for key in choice.keys if key.default or key.target != "mapping" or key.meaning]
    if rows:
        parts.append("\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def _root(file: Path) -> yaml.MappingNode:
    root = yaml.compose(file.read_text(encoding="utf-8"))
    return root if isinstance(root, yaml.MappingNode) else yaml.MappingNode("", [])


def _sentence(text: str) -> str:
    text = text.strip()
    return _plain(f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', ':')) else '.'}")


def _class(target: str) -> str:
    what = purpose(target)
    return f"`{target.rpartition('.')[2]}`" + (f": {_plain(what)}" if what else f" of `{target.rpartition('.')[0]}`.")


def _row(choice: Choice, key: Key) -> str:
    name = f"{_prefix(choice.file)}{key.path}"
    default = f"`{key.default.replace('|', BAR)}`" if key.default else ""
    meaning = _plain(key.meaning)
    if key.target not in ("", "mapping"):
        meaning = f"{meaning}{'; ' if meaning else ''}{_class(key.target)}"
    return f"| `{name}` | {default} | {meaning} |"


def _group(file: Path) -> str:
    return "/".join(file.parent.relative_to(CONF).parts)


@cache
def _package(file: Path) -> str:
    """Return the package that a file names for its keys, such as `_global_`; empty if it names none."""
    found = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
    return found[1] if found else ""


def _prefix(file: Path) -> str:
    """Return what the command line puts before the keys of a file."""
    group, package = _group(file), _package(file)
    if package:
        return "" if package == "_global_" else f"{package}."
    if group in ("model/segmenter", "model/translator"):
        return f"{group.replace('/', '.')}s.{file.stem}."
    return f"{group.replace('/', '.')}." if group else ""


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, but for code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part.replace("|", "\\|") if part.startswith("`") else re.sub(r"([*|<>\[\]_])", r"\\\1", part) for part in parts
    )
