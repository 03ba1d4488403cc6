"""Hook of MkDocs: adds the generated pages of the reference. Nothing of them is written to a file."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import python_pages
import settings


def generated() -> dict[str, str]:
    """Return the generated pages by their path below docs/."""
    pages = {f"reference/conf/{group or 'root'}.md": settings.page(group) for group in settings.groups()}
    for room, modules in python_pages.rooms().items():
        pages[f"reference/python/{room}.md"] = python_pages.page(room, modules)
    return pages


def project() -> dict[str, str]:
    """Return the pages that lie beside docs/, as GitHub wants them there, by their path in the site."""
    return {
        f"{name}.md": (settings.ROOT / f"{name.upper()}.md").read_text(encoding="utf-8").replace("](docs/", "](")
        for name in ("contributing", "changelog", "security", "code_of_conduct")
    }


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation, and pages that it does not name at the end of How-to."""
    sections = {title: pages for section in config["nav"] for title, pages in section.items()}
    docs = Path(config["docs_dir"])
    named = {str(page) for pages in sections.values() for page in ([pages] if isinstance(pages, str) else pages)}
    written = sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))
    sections["How-to"] += [page for page in written if page not in named]
    sections["Reference"] += [
        {"Configuration": [f"reference/conf/{group or 'root'}.md" for group in settings.groups()]},
        {"Python": [f"reference/python/{room}.md" for room in python_pages.rooms()]},
    ]
    config["nav"].append({"Project": list(project())})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and those beside docs/."""
    for path, content in (project() | generated()).items():
        files.append(File.generated(config, path, content=content))
    return files
