"""From the types of a segmenter to the classes of the user's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.datainfo import check_class_names
from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.models.pipeline.assembly import TileNuclei


class TypeMap(NamedTuple):
    """From the types of a segmenter to classes.

    Attributes:
        class_k: for each type from 0 (unknown) the class from 0, -1 = none.
        classes: their names.
    """

    class_k: NDArray[np.int64]
    classes: list[str]

    def apply(self, nuclei: TileNuclei) -> TileNuclei:
        """Return the nuclei with types from 1 as the classes."""
        return replace(nuclei, types_n=self.class_k[nuclei.types_n] + 1)


def type_map(
    segmenter: str,
    types: Sequence[str],
    class_map: Mapping[str, str | None] | None,
    classes: Sequence[str] | None = None,
) -> TypeMap:
    """Return the mapping from the types of a segmenter to classes.

    Args:
        segmenter: its name, for the message.
        types: names of its types from 1; empty: it has none.
        class_map: class of each type by name, None for no class; None: types say nothing about the classes.
        classes: names of the classes; None: those that `class_map` names, or the types themselves without one.

    Raises:
        ConfigError: for a type without a class, or an unknown class.

    >>> type_map("hovernet", ["dead", "epithelial"], {"dead": "other", "epithelial": "epithelium"}).classes
    ['other', 'epithelium']
    """
    if class_map is None:
        known = list(types) if classes is None else list(classes)
        own = np.arange(len(types)) if classes is None else np.full(len(types), -1)
        return TypeMap(np.append(-1, own), known)
    known = [name for name in dict.fromkeys(class_map.values()) if name] if classes is None else list(classes)
    check_class_names(known, "model.class_map")
    for name in types:
        if name not in class_map:
            msg = (
                f"model.class_map has no class for '{name}', a type of the segmenter '{segmenter}'. Pass "
                f"+model.class_map.{name}=CLASS, one of {', '.join(known)}, or null for none of them."
            )
            raise ConfigError(msg)
    kinds = [class_map[name] for name in types]
    for name, kind in zip(types, kinds, strict=True):
        if kind is not None and kind not in known:
            msg = f"model.class_map.{name}={kind}: no such class.{did_you_mean(kind, known)} null is for none of them."
            raise ConfigError(msg)
    return TypeMap(np.array([-1, *(-1 if kind is None else known.index(kind) for kind in kinds)]), known)
