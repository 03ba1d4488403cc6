"""What models, callbacks and the runner can know about a DataModule."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ihc2he.errors import ConfigError

RESERVED = ("all", "unknown")  # names of rows in the tables of results


@dataclass(frozen=True)
class DataInfo:
    """What is known about the images of a DataModule before any of them is read.

    Attributes:
        mpp: um/px of the images in its batches; None = every image has its own.
        classes: names of the classes; empty if there are none. Types of nuclei count from 1, as 0 is the background;
            classes of whole tiles from 0.
        truth_classes: names of the types in the complete truth, which only simulated tissue has.
        store: file of the tile store; None if there is none.
        paired: whether the stains in a training batch show the same place; None: not known.
        size: side of square images that all have one size, px; None: they differ, or the model need not know it.
        channels: of an image.
        class_counts: number of training images of each class; empty if it is not known yet.
        trained_on: digests of the training tiles and their cases; empty if they are not known yet, or not named.

    Raises:
        ConfigError: for a pixel size that is not above 0, or class names that repeat or have another meaning in tables.
    """

    mpp: float | None
    classes: Sequence[str] = ()
    truth_classes: Sequence[str] = ()
    store: Path | None = None
    paired: bool | None = None
    size: int | None = None
    channels: int = 3
    class_counts: Sequence[int] = ()
    trained_on: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            msg = f"data: mpp={self.mpp}, expected um/px above 0, or None if every image has its own."
            raise ConfigError(msg)
        check_class_names(self.classes, "data.classes")
        check_class_names(self.truth_classes, "data.truth_classes")


def check_class_names(names: Sequence[str], key: str) -> None:
    """Refuse class names that would be ambiguous in a table of results.

    Args:
        names: of the classes.
        key: the configuration key, for the message.

    Raises:
        ConfigError: for a name that is empty, comes twice, or is one of `RESERVED`.
    """
    for i, name in enumerate(names):
        if not name.strip() or name in RESERVED or name in names[:i]:
            why = "is repeated" if name in names[:i] else "is empty" if not name.strip() else "is reserved"
            msg = f"{key}: the name {name!r} {why}. Expected different names, none of them {' or '.join(RESERVED)}."
            raise ConfigError(msg)


def info_of(data: Any) -> DataInfo:
    """Return the `info` of a DataModule.

    Raises:
        ConfigError: if it has none.
    """
    info = None if inspect.getattr_static(data, "info", None) is None else data.info
    if not isinstance(info, DataInfo):
        msg = (
            f"{type(data).__name__} has no `info` about its images. Add a property `info` that returns "
            "ihc2he.datainfo.DataInfo(mpp=...), with the pixel size in um/px."
        )
        raise ConfigError(msg)
    return info
