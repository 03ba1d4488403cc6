"""Model bundles: folders from which any program can read a trained network, without the checkpoints of this package.

A bundle holds `config.json` (how to build the network and what it expects), `model.safetensors` and a model card,
`README.md`. It is built and loaded without executing code from it, and damaged weights are noticed by their hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import file_digest
from importlib.metadata import version
from math import inf, isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, finfo, float16, float32, nn

from ihc2he import __version__
from ihc2he.build import build, refuse_foreign
from ihc2he.datainfo import check_class_names
from ihc2he.errors import ConfigError, DataError
from ihc2he.files import complete_folder
from ihc2he.models.former import FORMAT, upgraded
from ihc2he.models.hub import pull
from ihc2he.weights import BUILTIN

REMEDY = "Copy it again, or export it again from the checkpoint of its run."
FILES = ("config.json", "model.safetensors", "README.md")


def save_bundle(module: nn.Module, folder: str | Path, info: Mapping[str, Any], half: bool = False) -> Path:
    """Write a network with the information needed to use it; return the folder.

    The bundle is written under a temporary name; then it replaces an older one as a whole.

    Args:
        module: the network.
        folder: where to.
        info: plain values; `module` has to be the node (`_target_` and arguments) that builds the network. Other usual
            keys: role, stain_in, stain_out, mpp (um/px), value_range, window (px), classes, decoder, metrics.
        half: save float32 parameters as float16, in half the space; they are computed with in float32 again. Buffers,
            such as the variances of normalisation, and values beyond float16 stay as they are.

    Raises:
        ConfigError: if `info` has no such node.
    """
    from safetensors.torch import save_file

    node = info.get("module")
    if not isinstance(node, Mapping) or "_target_" not in node:
        msg = f"A bundle needs the configuration node of its network, to build it again; found {node!r}."
        raise ConfigError(msg)
    folder = Path(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    if half:
        weights |= {name: _halved(weights[name]) for name, _ in module.named_parameters()}
    if "metrics" in info:  # NaN is no JSON
        info = {**info, "metrics": {key: value for key, value in info["metrics"].items() if isfinite(value)}}
    versions = {"ihc2he": __version__, "torch": version("torch")}
    with complete_folder(folder) as temporary:
        save_file(weights, temporary / "model.safetensors")
        config = {"format": FORMAT, **info, "versions": versions, "sha256": _sha256(temporary / "model.safetensors")}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_card(config), encoding="utf-8")
    return folder


def _halved(value: Tensor) -> Tensor:
    """Return float32 values as float16, if it can hold them."""
    return value.half() if value.dtype == float32 and value.abs().amax() <= finfo(float16).max else value


def load_bundle(source: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a bundle, in evaluation mode on the CPU, and the content of its `config.json`.

    The content of a bundle from an earlier version is converted to the present format.

    Args:
        source: a folder, the id of a repository on the Hugging Face hub (`owner/name`, or pinned, `owner/name@commit`),
            or `builtin`, the network of nuclei that ships with this package.

    Raises:
        DataError: with the bundle, and what is missing, damaged or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = bundle_folder(source)
    missing = [name for name in FILES[:2] if not (folder / name).is_file()]
    if missing:
        msg = (
            f"{folder}: not a model bundle; {' and '.join(missing)} missing. Fit writes bundles to RUN/bundles: "
            "pass one of them."
        )
        raise DataError(msg)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check(config, folder, from_hub=not Path(source).is_dir() and str(source) != "builtin")
        config = upgraded(config)
        refuse_foreign(config)
        module = build(config["module"], nn.Module)
        weights = load_file(folder / "model.safetensors")
        _check_weights(weights, module)
        module.load_state_dict(weights)
    except (ConfigError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError, OSError) as error:
        cause = " ".join(str(error).split())[:200]  # load_state_dict names every weight
        msg = f"{folder}: the bundle is damaged or of another version ({type(error).__name__}: {cause}). {REMEDY}"
        raise DataError(msg) from error
    return module.eval(), config


def bundles_in(source: str) -> list[str]:
    """Return the bundles in a run's folder of bundles, or the source itself if it is no such folder."""
    return [str(file.parent) for file in sorted(Path(source).glob("[!.]*/config.json"))] or [source]


def _check(config: Any, folder: Path, from_hub: bool) -> None:
    """Raise a ValueError for a `config.json` that this version cannot read, or whose values cannot be right."""
    if problem := _problem(config):
        msg = f"config.json: {problem}"
        raise ValueError(msg)
    if from_hub and "sha256" not in config:
        msg = "config.json does not say the sha256 of model.safetensors, which a bundle on the hub has to"
        raise ValueError(msg)
    if "sha256" in config and config["sha256"] != _sha256(folder / "model.safetensors"):
        msg = "model.safetensors is not the file that was saved with config.json, by its sha256"
        raise ValueError(msg)


def _problem(config: Any) -> str | None:
    if not isinstance(config, Mapping) or not isinstance(config.get("module"), Mapping):
        return "found no 'module', expected a mapping with the node that builds the network"
    found = config.get("format", 1)
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        return f"format {found!r}, expected at most {FORMAT}: written by a newer ihc2he, so update this one"
    value_range, classes, mpp = (config.get(key) for key in ("value_range", "classes", "mpp"))
    if mpp is not None and not (_is_number(mpp) and 0 < mpp < inf):
        return f"mpp {mpp!r}, expected um/px above 0"
    if value_range is not None and not _is_range(value_range):
        return f"value_range {value_range!r}, expected two numbers such as [-1, 1]"
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        return f"classes {classes!r}, expected a list of names"
    check_class_names(classes or (), "config.json: classes")
    return None


def _check_weights(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raise a ValueError for weights that are not numbers; PyTorch checks names and shapes."""
    for name, own in module.state_dict().items():
        value = weights.get(name, own)
        if value.is_floating_point() != own.is_floating_point():
            msg = f"model.safetensors: {name} has {value.dtype} values, expected {own.dtype}"
            raise ValueError(msg)
        if not bool(value.isfinite().all()):
            msg = f"model.safetensors: {name} has values that are NaN or infinite"
            raise ValueError(msg)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and -inf < value[0] < value[1] < inf
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def bundle_folder(source: str | Path) -> Path:
    """Return the folder of a bundle, which is loaded from the hub if need be; see `load_bundle`.

    Raises:
        DataError: if there is none.
    """
    if str(source) == "builtin":
        return BUILTIN
    folder = Path(source)
    return folder if folder.is_dir() else pull(str(source), FILES)


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
