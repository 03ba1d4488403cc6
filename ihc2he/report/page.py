"""The report of a run: one self-contained HTML page that answers first and lists afterwards.

At the top stands in plain sentences what came out; then what shows it at a glance, figures and pictures; the tables
are folded below. The page is one file, so that it can be mailed and opened anywhere, also offline and without
JavaScript: a folder of pictures beside it would get lost on the way. So that it stays below 4 MB, pictures are WebP of
the size at which they are shown, the most important ones first and only as many as their section has bytes for; a
browser decodes them as one scrolls.

To add a section, write a function that takes the folder and returns HTML, or None if its files are missing, and
add it to the `SECTIONS` of its kind of run. To say more at the top, change that kind's `answer`. All text goes through
the macros of report.html.jinja, which escape it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

import ihc2he
from ihc2he.errors import DataError
from ihc2he.files import write_text
from ihc2he.report import pipeline, slides, sweep, training
from ihc2he.report.parts import Section, facts_of, macros

log = logging.getLogger(__name__)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from the files in the folder of a run, and return its path.

    If a file is missing, its section is omitted. If a file cannot be read, its section says so.

    Args:
        run_dir: folder with any of `config.yaml`, `run.json`, `metrics.csv`, `test.csv`, `results.csv`,
            `images/STAGE/*.png`; for a pipeline `comparison.csv`, `differences.csv`, `radius.csv`, `agreement.csv`; for
            slides `summary.csv` and their folders; for a sweep `sweep.csv` and the folders of its jobs.

    Raises:
        DataError: if the folder does not exist.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        msg = f"{run_dir} is not a folder: a report is written from the folder of a run."
        raise DataError(msg)
    facts = facts_of(run_dir)
    html = macros().page(
        title=_title(run_dir),
        subtitle=" · ".join(filter(None, [run_dir.resolve().name, str(facts.get("status", ""))])),
        warnings=facts.get("warnings"),
        answer=_answer(run_dir, str(facts.get("status", "finished"))),
        sections=[
            (title, body, folded)
            for title, build, folded in _sections(run_dir)
            if (body := _guarded(build, run_dir)) is not None
        ],
        footer=f"Written by ihc2he {ihc2he.__version__} on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
    )
    path = run_dir / "report.html"
    write_text(path, html.strip() + "\n")
    return path


def _sections(run_dir: Path) -> list[Section]:
    """Return the sections that a folder may have, the folded ones last."""
    own = [*slides.SECTIONS, *sweep.SECTIONS, *pipeline.SECTIONS]
    if not pipeline.is_comparison(run_dir):
        own += training.SECTIONS
    return sorted([*own, *SECTIONS], key=lambda section: section.folded)


def _answer(run_dir: Path, status: str) -> list[str]:
    """Return the sentences at the top: how the run ended if it is not complete, and what came out."""
    said = []
    if status == "interrupted":
        said.append("This run was interrupted: what follows is what it had reached.")
    elif status == "running":
        said.append("This run has not ended, or was killed: what follows is what it had reached.")
    elif status != "finished":
        said.append(f"This run failed: {status}")
    for answer in (sweep.answer, pipeline.answer, slides.answer, training.answer):
        try:
            found = answer(run_dir)
        except Exception as error:
            log.exception("The report of %s could not sum up.", run_dir)
            found = [f"What came out could not be summed up: {type(error).__name__}: {error}"]
        if found is not None:
            return said + found
    return said


def _guarded(build: Callable[[Path], Markup | None], run_dir: Path) -> Markup | None:
    """Return the section, or why it could not be built, so that one broken file does not affect the other sections."""
    try:
        return build(run_dir)
    except Exception as error:
        log.exception("A section of the report of %s could not be built.", run_dir)
        return macros().note(f"This section could not be built: {type(error).__name__}: {error}")


def _title(run_dir: Path) -> str:
    """Return the name of the experiment, in a sweep that of its jobs; without a configuration that of the folder."""
    paths = [run_dir / "config.yaml"]
    if (run_dir / "sweep.csv").is_file():
        paths = sorted(path.with_name("config.yaml") for path in run_dir.rglob("job.json"))
    try:
        name = next(OmegaConf.select(OmegaConf.load(path), "experiment_name") for path in paths if path.is_file())
    except Exception:  # broken YAML of any kind; the section with the configuration shows it as it is
        name = None
    return str(name or run_dir.resolve().name)


def _run_table(run_dir: Path) -> Markup | None:
    """Return the facts of `run.json`, with dotted names for nested ones."""
    facts = {key: value for key, value in facts_of(run_dir).items() if key != "warnings"}
    return macros().table(["fact", "value"], list(_flatten(facts)), text=(1,)) if facts else None


def _flatten(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a dotted name and a text for every value of nested dictionaries.

    >>> list(_flatten({"time": {"fit": 1.5}, "device": "cpu", "stages": ["fit", "test"]}))
    [('time.fit', '1.5'), ('device', 'cpu'), ('stages', 'fit, test')]
    """
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)


def _config(run_dir: Path) -> Markup | None:
    path = run_dir / "config.yaml"
    return macros().preformatted(path.read_text(encoding="utf-8")) if path.is_file() else None


SECTIONS = (
    Section("Run", _run_table, folded=True),
    Section("Configuration", _config, folded=True),
)
