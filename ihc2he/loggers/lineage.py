"""What a run has read and written, for its `run.json`; no service is needed to trace it.

An entry is `{"kind": ..., "path": ..., "hash": ..., "made_by": ...}`. Kinds are `store`, a tile store; `bundle`, a
model bundle; `checkpoint`, any other file of weights. The hash identifies the content, wherever it was moved
to; `made_by` is the folder of the run that wrote it, or None. So the hash of a bundle in the inputs of one run is in
the outputs of the run that trained it, and the inputs of that run have the hash of the tile store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import h5py

from ihc2he.datainfo import info_of
from ihc2he.errors import DataError
from ihc2he.models.bundle import bundles_in
from ihc2he.models.hub import hub_id, pull
from ihc2he.weights import BUILTIN

WEIGHTS = ("weights", "ensemble", "init", "generator")  # arguments of models that name the files of their weights
BUNDLE = ("config.json", "model.safetensors")


def inputs(cfg: Mapping[str, Any], data: Any) -> list[dict[str, Any]]:
    """Return the inputs of a run, the tile store first; for a pipeline only the translators and segmenters in use.

    Args:
        cfg: the resolved configuration.
        data: the DataModule after its data was prepared; None if there is none.
    """
    found = []
    store = None if data is None else info_of(data).store
    if store is not None and store.is_file():
        found.append(_entry("store", store, hash_store(store)))
    sources = [cfg["ckpt_path"]] if cfg.get("ckpt_path") else []
    sources += [one for source in _weights(_in_use(cfg.get("model") or {})) for one in bundles_in(source)]
    for source in sources:
        entry = _model_entry(source)
        own = Path(cfg["paths"]["output_dir"]).resolve()
        if entry is not None and entry not in found and own not in Path(entry["path"]).parents:  # not an input
            found.append(entry)
    return found


def outputs(run_dir: str | Path) -> list[dict[str, Any]]:
    """Return the bundles and checkpoints in the folder of a run."""
    run_dir = Path(run_dir)
    candidates = [*sorted(run_dir.glob("bundles/[!.]*")), *sorted(run_dir.glob("checkpoints/[!.]*.ckpt"))]
    return [entry for path in candidates if (entry := _model_entry(str(path))) is not None]


def hash_store(path: Path) -> str:
    """Return a hash that identifies a tile store, from its settings and the hashes of its source files.

    It does not depend on the location and dates of the source.
    """
    digest = blake2b(digest_size=16)
    with h5py.File(path, "r", locking=False) as file:
        digest.update(json.dumps([str(file.attrs["version"]), file.attrs["settings"]]).encode())
        for name, own in zip(file["source/name"][()], file["source/hash"][()], strict=True):
            digest.update(name + b"\0" + own + b"\0")
    return digest.hexdigest()


def hash_files(*paths: Path) -> str:
    """Return the BLAKE2b hash of the contents of files, 32 hexadecimal digits."""
    return _hash_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=64)  # a run needs the same checkpoints after each of its stages
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = blake2b(digest_size=16)
    for path, _, _ in files:
        with path.open("rb") as stream:
            file_digest(stream, lambda: digest)  # type: ignore[arg-type,return-value]
    return digest.hexdigest()


def _model_entry(source: str) -> dict[str, Any] | None:
    """Return the entry of a bundle's folder, of a file of weights or of an id on the hub; None for any other text."""
    path = BUILTIN if source == "builtin" else Path(source)
    if path.is_file():
        return _entry("checkpoint", path, hash_files(path))
    if all((path / name).is_file() for name in BUNDLE):
        return _entry("bundle", path, hash_files(*(path / name for name in BUNDLE)))
    if hub_id(source) is None or path.exists():
        return None
    try:  # what was loaded is in the hub's cache
        cached = pull(source, BUNDLE, cached=True)
    except DataError:
        return None
    return {"kind": "bundle", "path": source, "hash": hash_files(*(cached / name for name in BUNDLE)), "made_by": None}


def _entry(kind: str, path: Path, content: str) -> dict[str, Any]:
    path = path.resolve()
    run_dir = path.parent.parent  # of RUN/bundles/NAME and RUN/checkpoints/NAME.ckpt
    made_by = str(run_dir) if (run_dir / "run.json").is_file() else None
    return {"kind": kind, "path": str(path), "hash": content, "made_by": made_by}


def _in_use(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's configuration without the parts that are not in its `use` or `fuse`."""
    chosen = {kind: [names] if isinstance(names, str) else names for kind, names in (model.get("use") or {}).items()}
    if "translators" in chosen:
        chosen["translators"] = [*chosen["translators"], *(model.get("fuse") or ())]
    return {
        key: {name: node for name, node in value.items() if name in chosen[key]} if key in chosen else value
        for key, value in model.items()
    }


def _weights(node: Any, named: bool = False) -> Iterator[str]:
    """Yield each text under a key of `WEIGHTS`."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _weights(value, named or key in WEIGHTS)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _weights(value, named)
    elif named and isinstance(node, str):
        yield node
