"""The pages of the reference that show the public functions and classes, a page for each room of the package."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ihc2he"


def rooms() -> dict[str, list[str]]:
    """Return the modules of each room; those beside the rooms are `ihc2he` itself."""
    found: dict[str, list[str]] = {"ihc2he": []}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if any(part.startswith("_") for part in parts) or "internals" in parts:
            continue
        room = "ihc2he" if len(parts) == 1 else parts[0]
        found.setdefault(room, []).append(".".join(("ihc2he", *parts)))
    return found


def page(room: str, modules: list[str]) -> str:
    """Return the page of a room: what it is for, and an entry for each of its modules."""
    name = "ihc2he" if room == "ihc2he" else f"ihc2he.{room}"
    source = PACKAGE / ("" if room == "ihc2he" else room) / "__init__.py"
    about = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    entries = (f"::: {module}" for module in modules)
    return "\n\n".join([f"# `{name}`", about or "", *entries]) + "\n"
