"""Every command line of README, CONTRIBUTING and docs/ composes."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTED_ELSEWHERE = {"cluster.md"}  # tests/test_cluster_page.py
FIRST = {"index", "runs", "data", "nuclei_models"}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def commands(page):
    """Return the arguments of each `python -m ihc2he.train` of a page, with the shell's variables filled in."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    values = dict(re.findall(r'^(\w+)="([^"]*)"', text, re.MULTILINE))
    text = re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), text)
    return [shlex.split(rest, comments=True) for rest in re.findall(r"^python -m ihc2he\.train +(.*)$", text, re.M)]


def by_page():
    """Return the command lines of each page that no page before it has."""
    seen, found = set(), {}
    for page in (page for page in PAGES if page.name not in TESTED_ELSEWHERE):
        own = [arguments for arguments in commands(page) if tuple(arguments) not in seen]
        seen.update(map(tuple, own))
        if own:
            found[page.relative_to(ROOT).as_posix()] = own
    return found


def test_the_readme_shows_commands():
    assert len(commands(ROOT / "README.md")) >= 5


def with_marks():
    """Return the pages and their command lines; those that few read first are slow, for there are a hundred."""
    for page, lines in by_page().items():
        first = "/" not in page or "/tutorials/" in page or Path(page).stem in FIRST
        yield pytest.param(page, lines, id=page, marks=() if first else pytest.mark.slow)


@pytest.mark.parametrize(("page", "lines"), list(with_marks()))
def test_the_commands_of_a_page_compose(page, lines, cli):
    for arguments in lines:
        if arguments[:1] in ([], ["..."], ["--help"]) or "--config-dir" in arguments:  # the reader's own folder
            continue
        kept = [a for a in arguments if a not in ("-m", "ckpt_path=last", "...")]
        first = [a if "[" in a else a.split(",")[0] for a in kept]  # of the values of a sweep
        done = cli("--cfg", "job", *first)
        missing = "needs a plugin that is not installed" in done.err
        assert done.status == 0 or missing, f"{shlex.join(arguments)}\n{done.err}"
