"""Model bundles: a folder that any program can read a trained network from, without this one's checkpoints.

A bundle holds `config.json` (how to build the network and what it expects), `model.safetensors` and a model card,
`README.md`. It is built and loaded without executing code from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from ihc2he import __version__
from ihc2he.build import build
from ihc2he.errors import ConfigError, DataError

FORMAT = 1
FILES = ("config.json", "model.safetensors", "README.md")


def save_bundle(module: nn.Module, folder: str | Path, info: Mapping[str, Any]) -> Path:
    """Write a network and what one must know to use it; return the folder.

    The bundle is written under a temporary name and then takes the place of an older one as a whole.

    Args:
        module: the network; its weights are saved in float32 or whatever they are in.
        folder: where to.
        info: plain values; `module` has to be the node (`_target_` and arguments) that builds the network. Usual
            keys besides: role, stain_in, stain_out, mpp (um/px), value_range, window (px), classes, metrics.

    Raises:
        ConfigError: where `info` has no such node.
    """
    from safetensors.torch import save_file

    node = info.get("module")
    if not isinstance(node, Mapping) or "_target_" not in node:
        msg = f"A bundle needs the configuration node of its network, to build it again; found {node!r}."
        raise ConfigError(msg)
    folder = Path(folder)
    config = {"format": FORMAT, **info, "versions": {"ihc2he": __version__, "torch": version("torch")}}
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    save_file(weights, temporary / "model.safetensors")
    (temporary / "README.md").write_text(_card(config), encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def load_bundle(source: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a bundle, in evaluation mode on the CPU, and the content of its `config.json`.

    Args:
        source: a folder, or the id of a repository on the Hugging Face hub (`owner/name`).

    Raises:
        DataError: naming the bundle, and what is missing, damaged or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _fetch(str(source))
    missing = [name for name in FILES[:2] if not (folder / name).is_file()]
    if missing:
        msg = f"{folder}: not a model bundle; {' and '.join(missing)} missing. Fit writes bundles to RUN/bundles."
        raise DataError(msg)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        module = build(config["module"], nn.Module)
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except (ConfigError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]  # load_state_dict names every weight
        msg = f"{folder}: the bundle is damaged or of another version ({type(error).__name__}: {cause})."
        raise DataError(msg) from error
    return module.eval(), config


def _fetch(source: str) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/")):
        msg = f"{source}: there is no such folder, and it is no hub id (owner/name)."
        raise DataError(msg)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(FILES)))
    except Exception as error:
        msg = f"{source}: no such folder, and the hub did not give it ({type(error).__name__}). Check id and network."
        raise DataError(msg) from error


def _card(config: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="ihc2he", tags=["histopathology", str(config.get("role", "model"))])
    shown = {k: v for k, v in config.items() if k not in ("module", "versions", "metrics", "format")}
    rows = "\n".join(f"| {key} | {value} |" for key, value in shown.items())
    metrics = "\n".join(f"| {key} | {value} |" for key, value in (config.get("metrics") or {}).items())
    table = f"\n## Metrics\n\n| metric | value |\n| --- | --- |\n{metrics}\n" if metrics else ""
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {config.get('stain_in', '')} {config.get('role', 'model')}\n\n"
        f"Made by ihc2he {__version__}. Research use only; not a medical device.\n\n"
        f"| property | value |\n| --- | --- |\n{rows}\n{table}\n"
        "## Use\n\n```python\nfrom ihc2he.models.bundle import load_bundle\n\n"
        'network, info = load_bundle("FOLDER_OR_HUB_ID")\n```\n'
    )
