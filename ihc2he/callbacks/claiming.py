"""One run at a time writes to a folder of predictions, and all with the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ihc2he.callbacks.imagefiles import read_json
from ihc2he.errors import ConfigError
from ihc2he.files import exclusive, remove_parts


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they will be when read from a file."""
    return dict(json.loads(json.dumps(settings)))


def claim(out: Path, settings: Mapping[str, Any], lock: ExitStack) -> str | None:
    """Lock a folder of predictions; return why it must not be used, or None.

    Args:
        out: the folder; its `settings.json` has the settings of the runs before.
        settings: of this run, see `plain`.
        lock: which holds the lock from now on.
    """
    busy = f"out={out}: another run is writing there. Wait until it ends, or choose another folder."
    try:
        lock.enter_context(exclusive(out / ".lock", busy))
    except ConfigError as error:
        return str(error)
    remove_parts(out)
    path = out / "settings.json"
    if not path.is_file():
        return None
    before = read_json(path)
    different = [
        f"{key}: {before.get(key)!r} before, {settings.get(key)!r} now"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]
    if not different:
        return None
    return (
        f"out={out} was begun with other settings: {'; '.join(different)}. Images of both would not be "
        "comparable: repeat the previous settings, or choose another folder."
    )
