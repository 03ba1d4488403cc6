"""Malformed checkpoints, of runs and of the authors of HoVer-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import damage
from .damage import Hostile, on
from .harness import MARKER, Case, Change

KIND = "checkpoints"
PLACES = (
    ("CycleGAN, resume", "cyclegan.ckpt"),
    ("CycleGAN, test", "cyclegan.ckpt"),
    ("HoVer-Net, resume", "hovernet.ckpt"),
    ("HoVer-Net, test", "hovernet.ckpt"),
    ("prediction, checkpoint of a generator", "cyclegan.ckpt"),
    ("prediction, checkpoint of a segmenter", "hovernet.ckpt"),
    ("HoVer-Net, official weights", "official.tar"),
)
Edit = Callable[[dict[str, Any]], Any]


def cases() -> list[Case]:
    """Return the cases."""
    found: list[Case] = []
    for scenario, file in PLACES:
        found += on(KIND, "cut off", scenario, file, damage.cut, n=2)
        found += on(KIND, "empty", scenario, file, damage.empty)
        found += on(KIND, "other content", scenario, file, damage.noise)
        found += on(KIND, "other content", scenario, file, damage.text)
        found += on(KIND, "missing", scenario, file, damage.gone)
        found += on(KIND, "missing", scenario, file, damage.folder)
        found += on(KIND, "bits flipped", scenario, file, damage.flip(), n=3)
        found += on(KIND, "a stretch of zeros", scenario, file, damage.zeros)
        found += on(KIND, "hostile pickle", scenario, file, damage.hostile)
        found += [
            Case(KIND, family, scenario, _edited(file, edit, harmless), number)
            for number, (family, edit, harmless) in enumerate(OFFICIAL if file == "official.tar" else OWN)
            if family != "state of the training is missing" or "resume" in scenario
        ]
    return found


def _edited(file: str, edit: Edit, names: tuple[str, ...]) -> Callable[[np.random.Generator], Change]:
    """Return a mutation that loads a checkpoint, edits it and writes it again."""

    def mutate(rng: np.random.Generator) -> Change:
        import torch

        content = torch.load(file, weights_only=True)
        torch.save(edit(content), file)
        return Change(names=(file, Path(file).stem, *names))

    return mutate


def _without(*keys: str) -> Edit:
    return lambda content: {key: value for key, value in content.items() if key not in keys}


def _state(change: Callable[[dict[str, Any]], dict[str, Any]], key: str = "state_dict") -> Edit:
    return lambda content: {**content, key: change(dict(content[key]))}


def _first(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def edit(state: dict[str, Any]) -> dict[str, Any]:
        name = next(name for name, value in state.items() if value.ndim == 4)
        return {**state, name: change(state[name])}

    return edit


def _hparams(**changes: Any) -> Edit:
    return lambda content: {**content, "hyper_parameters": {**content["hyper_parameters"], **changes}}


def _other_keys(state: dict[str, Any]) -> dict[str, Any]:
    return {f"model.{key}": value for key, value in state.items()}


def _fewer(state: dict[str, Any]) -> dict[str, Any]:
    return dict(list(state.items())[:-3])


def _more(state: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {**state, "extra.weight": torch.zeros(3)}


def _as_shell(node: str = "os.system") -> dict[str, Any]:
    return {"_target_": node, "_args_": [f"touch {MARKER}"]}


def _pickle_reader(content: dict[str, Any]) -> dict[str, Any]:
    damage.hostile(Path("weights.pth"), np.random.default_rng())
    node = {
        "_target_": "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3",
        "name": "inception", "features_list": ["64"], "feature_extractor_weights_path": "weights.pth",
    }  # fmt: skip
    return _hparams(generator=node, encoder=node)(content)


STATE = (
    ("weights are missing", _fewer), ("weights too many", _more), ("other names of weights", _other_keys),
    ("other shapes", _first(lambda w: w[..., :1])), ("other shapes", _first(lambda w: w.flatten())),
    ("NaN", _first(lambda w: w * float("nan"))), ("infinite", _first(lambda w: w + float("inf"))),
    ("weights are no tensors", _first(lambda w: "text")), ("weights are no tensors", _first(lambda w: w.tolist())),
    ("no weights", lambda state: {}),
)  # fmt: skip
OWN: tuple[tuple[str, Edit, tuple[str, ...]], ...] = (
    *((family, _state(change), ()) for family, change in STATE),
    ("weights alone", lambda content: content["state_dict"], ()),
    ("not a mapping", lambda content: [1, 2], ()),
    ("not a mapping", lambda content: content["state_dict"][next(iter(content["state_dict"]))], ()),
    ("keys are missing", _without("state_dict"), ()),
    ("keys are missing", lambda content: {}, ()),
    ("state of the training is missing", _without("optimizer_states"), ()),
    ("state of the training is missing", _without("lr_schedulers"), ()),
    ("state of the training is missing", _without("loops"), ()),
    ("state of the training is missing", _without("callbacks"), ()),
    ("state of the training is missing", _without("epoch"), ()),
    ("state of the training is missing", _without("global_step"), ()),
    ("state of the training is missing", lambda content: {**content, "optimizer_states": []}, ()),
    ("state of the training is missing", lambda content: {**content, "loops": {"fit_loop": {}}}, ()),
    ("older Lightning", lambda content: {**content, "pytorch-lightning_version": "1.6.0"}, ()),
    ("older Lightning", _without("pytorch-lightning_version"), ()),
    ("newer Lightning", lambda content: {**content, "pytorch-lightning_version": "99.0.0"}, ()),
    ("hostile node", _hparams(generator=_as_shell(), encoder=_as_shell()), ()),
    ("hostile node", _hparams(generator=_as_shell("builtins.eval"), encoder=_as_shell("subprocess.Popen")), ()),
    ("hostile node", _pickle_reader, ()),
    ("other settings", _hparams(generator=3, encoder=3), ()),
    ("other settings", lambda content: {**content, "hyper_parameters": [1]}, ()),
    ("hostile object", lambda content: {**content, "callbacks": Hostile()}, ()),
    ("hostile object", lambda content: {**content, "state_dict": Hostile()}, ()),
    ("hostile object", lambda content: {**content, "hyper_parameters": Hostile()}, ()),
)
OFFICIAL: tuple[tuple[str, Edit, tuple[str, ...]], ...] = (
    *((family, _state(change, "desc"), ()) for family, change in STATE),
    ("weights alone", lambda content: content["desc"], ()),
    ("not a mapping", lambda content: [1, 2], ()),
    ("keys are missing", lambda content: {}, ()),
    ("hostile object", lambda content: {**content, "desc": Hostile()}, ()),
    ("hostile object", lambda content: {"desc": content["desc"], "more": Hostile()}, ()),
)
