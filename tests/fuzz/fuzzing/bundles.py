"""Malformed model bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import damage
from .damage import on
from .harness import MARKER, Case, Change

KIND = "bundles"
PLACES = (
    ("prediction, bundle of a generator", "g_ihc2he"),
    ("prediction, two generators", "second"),
    ("prediction, bundle of a segmenter", "segmenter"),
    ("HoVer-Net, ensemble", "segmenter"),
)
CODE = f"""from pathlib import Path
from torch import nn
Path({MARKER!r}).touch()
class Network(nn.Module):
    pass
"""


def cases() -> list[Case]:
    """Return the cases."""
    found: list[Case] = []
    for scenario, folder in PLACES:
        for file in ("config.json", "model.safetensors"):
            path = f"{folder}/{file}"
            found += on(KIND, "missing", scenario, path, damage.gone, (folder,))
            found += on(KIND, "cut off", scenario, path, damage.cut, (folder,))
            found += on(KIND, "empty", scenario, path, damage.empty, (folder,))
            found += on(KIND, "other content", scenario, path, damage.noise, (folder,))
            found += on(KIND, "hostile pickle", scenario, path, damage.hostile, (folder,))
        found += on(KIND, "bits flipped", scenario, f"{folder}/model.safetensors", damage.flip(), (folder,), n=2)
        found += on(KIND, "bits flipped", scenario, f"{folder}/model.safetensors", damage.flip(0, 0.02), (folder,))
        edits = [*NODES, *VALUES, *(SEGMENTER if folder == "segmenter" else GENERATOR)]
        found += [Case(KIND, family, scenario, _edited(folder, edit), i) for i, (family, edit) in enumerate(edits)]
        found += [
            Case(KIND, family, scenario, _reweighted(folder, change), i) for i, (family, change) in enumerate(WEIGHTS)
        ]
        found.append(Case(KIND, "code in the bundle", scenario, _with_code(folder)))
        found += on(KIND, "not a folder", scenario, f"{folder}/README.md", _file_instead, (folder,))
    return found


def _file_instead(path: Path, rng: np.random.Generator) -> None:
    import shutil

    shutil.rmtree(path.parent)
    path.parent.write_text("a file\n")


def _edited(folder: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[np.random.Generator], Change]:
    def mutate(rng: np.random.Generator) -> Change:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))
        return Change(names=(folder,))

    return mutate


def _reweighted(folder: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Change]:
    """Return a mutation of the weights in a bundle without a hash, as another program may write it."""

    def mutate(rng: np.random.Generator) -> Change:
        from safetensors.torch import load_file, save_file

        path = Path(folder)
        weights = {key: value.contiguous() for key, value in change(load_file(path / "model.safetensors")).items()}
        save_file(weights, path / "model.safetensors")
        config = json.loads((path / "config.json").read_text())
        config.pop("sha256", None)
        (path / "config.json").write_text(json.dumps(config))
        return Change(names=(folder,))

    return mutate


def _with_code(folder: str) -> Callable[[np.random.Generator], Change]:
    """Return a mutation that names a class in a file of the bundle, which lies below the working directory."""

    def mutate(rng: np.random.Generator) -> Change:
        import sys

        sys.path.insert(0, "")  # as `python -m` has it
        (Path(folder) / "code_of_it.py").write_text(CODE)
        return _edited(folder, lambda c: {**c, "module": {"_target_": f"{folder}.code_of_it.Network"}})(rng)

    return mutate


def _set(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, **changes}


def _drop(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {name: value for name, value in config.items() if name != key}


def _node(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, "module": {**config["module"], **changes}}


def _first(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def edit(state: dict[str, Any]) -> dict[str, Any]:
        name = next(name for name, value in state.items() if value.ndim == 4)
        return {**state, name: change(state[name])}

    return edit


def _more(state: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {**state, "extra.weight": torch.zeros(3)}


def _integers(weight: Any) -> Any:
    import torch

    return weight.to(torch.int32)


def _pickle_reader(config: dict[str, Any]) -> dict[str, Any]:
    damage.hostile(Path("weights.pth"), np.random.default_rng())
    node = {
        "_target_": "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3",
        "name": "inception", "features_list": ["64"], "feature_extractor_weights_path": "weights.pth",
    }  # fmt: skip
    return {**config, "module": node}


TOUCH = [f"touch {MARKER}"]
NODES = (
    ("hostile target", _set(module={"_target_": "os.system", "_args_": TOUCH})),
    ("hostile target", _set(module={"_target_": "subprocess.Popen", "_args_": [TOUCH[0].split()]})),
    ("hostile target", _set(module={"_target_": "builtins.eval", "_args_": [f"open({MARKER!r}, 'w')"]})),
    ("hostile target", _set(module={"_target_": "builtins.open", "file": MARKER, "mode": "w"})),
    ("hostile target", _set(module={"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "m"})),
    ("hostile target", _set(module={"_target_": "hydra.utils.instantiate",
                                    "config": {"_target_": "os.system", "_args_": TOUCH}})),
    ("a network that reads a pickle", _pickle_reader),
    ("nested hostile target", _set(module={"_target_": "torch.nn.Sequential", "_recursive_": True,
                                           "_args_": [{"_target_": "os.system", "_args_": TOUCH}]})),
    ("nested hostile target", _set(module={"_target_": "torch.nn.Identity", "_recursive_": True,
                                           "x": {"_target_": "os.system", "_args_": TOUCH}})),
    ("nested hostile target", _node(encoder={"_target_": "os.system", "_args_": TOUCH})),
    ("interpolation", _node(width="${oc.env:HOME}")),
    ("interpolation", _node(width="${nothing:1}")),
    ("another class", _set(module={"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 3})),
    ("unfinished object", _node(_partial_=True, surplus=1)),
    ("unknown class", _set(module={"_target_": "nowhere.Network"})),
    ("unknown class", _set(module={"_target_": ""})),
    ("unknown class", _set(module={"_target_": "..models"})),
    ("unknown class", _set(module={"_target_": 3})),
    ("no class", _set(module={"width": 3})),
    ("no class", _set(module=None)),
    ("no class", _set(module="ihc2he.models.segmentation.hovernet.networks.HoverNet")),
    ("unknown argument", _node(widht=3)),
    ("wrong type of argument", _node(width="wide")),
    ("wrong type of argument", _node(width=[8])),
    ("wrong type of argument", _node(width=None)),
    ("argument out of range", _node(width=-8)),
    ("argument out of range", _node(width=0)),
    ("argument out of range", _node(width=2**31)),
    ("argument out of range", _node(width=10**30)),
    ("another size", _node(width=16)),
)  # fmt: skip
VALUES = (
    ("not a mapping", lambda config: [config]),
    ("not a mapping", lambda config: None),
    ("keys are missing", lambda config: {}),
    ("keys are missing", _drop("module")),
    ("format of the future", _set(format=99)),
    ("format of the future", _set(format="two")),
    ("format of the future", _set(format=None)),
    ("mpp", _set(mpp=0)),
    ("mpp", _set(mpp=-0.5)),
    ("mpp", _set(mpp="half")),
    ("mpp", _set(mpp=[0.5])),
    ("mpp", _set(mpp=float("nan"))),
    ("mpp", _set(mpp=float("inf"))),
    ("mpp", _set(mpp=True)),
    ("hash", _set(sha256="0" * 64)),
    ("hash", _set(sha256=None)),
)
GENERATOR = (
    ("keys are missing", _drop("mpp")),
    ("keys are missing", _drop("value_range")),
    ("keys are missing", _drop("role")),
    ("value range", _set(value_range=[1, -1])),
    ("value range", _set(value_range=[0])),
    ("value range", _set(value_range="-1 to 1")),
    ("value range", _set(value_range=[0, float("nan")])),
    ("another role", _set(role="segmenter")),
    ("another role", _set(stain_in="H&E", stain_out="IHC")),
)
SEGMENTER = (
    ("keys are missing", _drop("classes")),
    ("classes", _set(classes=["a", "b"])),
    ("classes", _set(classes="neoplastic")),
    ("classes", _set(classes=[1, 2, 3, 4, 5])),
    ("classes", _set(classes=["a"] * 5)),
    (
        "another kind of keep_unmarked",
        _set(decoder={"_target_": "ihc2he.nuclei.decoders.hover.HoverDecoder", "keep_unmarked": "no"}),
    ),
)
WEIGHTS = (
    ("weights are missing", lambda state: dict(list(state.items())[:-2])),
    ("no weights", lambda state: {}),
    ("weights too many", _more),
    ("other shapes", _first(lambda weight: weight[..., :1])),
    ("other names of weights", lambda state: {f"net.{key}": value for key, value in state.items()}),
    ("NaN", _first(lambda weight: weight * float("nan"))),
    ("infinite", _first(lambda weight: weight + float("inf"))),
    ("weights of whole numbers", _first(_integers)),
)
