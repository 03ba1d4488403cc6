"""Checkpoints of training runs: they are read completely or refused, and no code in them is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ihc2he.errors import DataError

OLDEST = 2  # version of Lightning whose checkpoints can be read
_NEEDED: dict[str, type] = {"state_dict": Mapping, "pytorch-lightning_version": str}
_TO_CONTINUE: dict[str, type] = {
    "optimizer_states": list, "lr_schedulers": list, "loops": Mapping, "callbacks": Mapping, "epoch": int,
    "global_step": int,
}  # fmt: skip


def read_checkpoint(path: str | Path, to_continue: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint of Lightning, with its tensors mapped from the file.

    The checksums of the archive are compared first, because PyTorch does not do it; reading 340 MB takes about 0.3 s.

    Args:
        path: of the file.
        to_continue: whether training continues from it, which needs more than the weights.

    Raises:
        DataError: if it cannot be read, is damaged, is not a checkpoint, or has weights that are not numbers.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path}: there is no such file. Pass one that a run wrote to RUN/checkpoints."
        raise DataError(msg)
    try:
        content = load_tensors(path, mmap=True)
        problem = _problem(content, to_continue)
    except UnpicklingError:
        problem = "it does not consist of tensors and plain values alone, and nothing else is loaded"
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if problem is None:
        return content
    others = sorted(str(file) for file in path.parent.glob("[!.]*.ckpt") if file != path)
    instead = f" Beside it: {', '.join(others)}." if others else ""
    msg = (
        f"{path}: not a readable checkpoint; it may have been cut off ({problem}). Expected a file that a run wrote to "
        f"RUN/checkpoints.{instead}"
    )
    raise DataError(msg)


def load_tensors(path: str | Path, mmap: bool = False) -> Any:
    """Return what `torch.load` reads from a file of tensors and plain values, after comparing its checksums.

    Files from before PyTorch 1.6 have none.

    Args:
        path: of the file.
        mmap: map the tensors from the file instead of reading them.

    Raises:
        Exception: of many kinds, for a file that is damaged or contains anything else.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                msg = f"its part {damaged} is damaged"
                raise zipfile.BadZipFile(msg)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _problem(content: Any, to_continue: bool) -> str | None:
    """Return what a checkpoint lacks, or None."""
    from ihc2he.internals.lightning import knows_progress  # bundles load without Lightning

    if not isinstance(content, Mapping):
        return f"found a {type(content).__name__}"
    for key, kind in (_NEEDED | _TO_CONTINUE if to_continue else _NEEDED).items():
        if not isinstance(content.get(key), kind):
            return f"it has no {key}"
    written_by = content["pytorch-lightning_version"]
    if not written_by.split(".")[0].isdecimal() or int(written_by.split(".")[0]) < OLDEST:
        return f"it was written by Lightning {written_by}, and {OLDEST} or later is needed"
    if to_continue and not content["optimizer_states"]:
        return "it has no state of an optimiser"
    if to_continue and not knows_progress(content):
        return "it does not say how far training was"
    for name, value in content["state_dict"].items():
        if not isinstance(value, Tensor):
            return f"its {name} is no tensor"
        if not bool(value.isfinite().all()):
            return f"its {name} is NaN or infinite"
    return None
