"""Corrected fields as annotated tiles: a folder that `data=nuclei` reads.

Shape suffixes: h, w = height, width; k = nuclei by their id, from 0 = background.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ihc2he.app.analysis import Field
from ihc2he.app.editing import Corrected
from ihc2he.app.results import kept
from ihc2he.errors import ConfigError
from ihc2he.files import complete_folder, exclusive, read_csv, write_csv, write_text
from ihc2he.images.writing import write_instances, write_png

COLUMNS = ("name", "split", "um_per_px", "source")
FACTS = "corrections.json"


def save(folder: Path, key: str, field: Field, now: Corrected, least_score: float) -> str:
    """Return the name of a tile after writing it beside those that a folder has; the folder is replaced as a whole.

    Args:
        folder: with `images`, `instances`, `types` and `tiles.csv`, or not there yet.
        key: of the field; the same one replaces its tile.
        field: that was analysed.
        now: its corrected nuclei.
        least_score: of those that are kept.

    Raises:
        ConfigError: without any nucleus, with nuclei of unknown type, or if the tiles there have other classes.
    """
    table = kept(field, now, least_score)
    unknown = int((table.types_n == 0).sum()) if field.classes else 0
    if not len(table) or unknown:
        found = f"{unknown} of {len(table)} nuclei have no type" if unknown else "there is no nucleus"
        msg = f"{field.name}: {found}. Give each a type, or remove it, and save again."
        raise ConfigError(msg)
    name = re.sub(r"[^\w.-]+", "_", Path(field.name).stem)[:40] + f"_{field.region.left}_{field.region.top}_{key[:6]}"
    keep_k = np.isin(np.arange(len(now.types_k)), table.ids_n)
    numbers_k = np.cumsum(keep_k) * keep_k
    with exclusive(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            check_classes(folder, field.classes)
        with complete_folder(folder) as made:
            if folder.is_dir():
                shutil.copytree(folder, made, dirs_exist_ok=True)
            write_png(made / "images" / f"{name}.png", field.image)
            (made / "instances" / f"{name}.png").unlink(missing_ok=True)
            suffix = ".png" if len(table) < 1 << 16 else ".tif"
            write_instances(made / "instances" / f"{name}{suffix}", numbers_k[now.inst_hw].astype(np.int32))
            if field.classes:
                types_hw = (now.types_k * keep_k)[now.inst_hw].astype(np.uint8)
                write_png(made / "types" / f"{name}.png", types_hw)
            row = {"name": name, "split": "train", "um_per_px": f"{field.mpp:.6g}", "source": field.name}
            write_csv(made / "tiles.csv", [*(one for one in tiles(made) if one["name"] != name), row], COLUMNS)
            write_text(made / FACTS, json.dumps({"classes": field.classes}, indent=2) + "\n")
    return name


def tiles(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the table of a folder; empty if there is none."""
    return read_csv(folder / "tiles.csv")


def check_classes(folder: Path, classes: Sequence[str]) -> None:
    """Refuse a folder whose tiles have other classes, or which something else has written.

    Raises:
        ConfigError: with both.
    """
    facts = folder / FACTS
    known: Mapping[str, Any] = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
    if known.get("classes") != list(classes):
        found = f"tiles with the classes {known['classes']}" if known else f"no {FACTS}, so it is of another origin"
        msg = f"{folder}: has {found}; these weights have {list(classes)}. Choose another out=."
        raise ConfigError(msg)
