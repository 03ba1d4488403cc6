"""Weights published for the reference HoVer-Net, read into networks of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ihc2he.errors import DataError
from ihc2he.models.checkpoint import load_tensors

_ENCODER = ("conv0.", "d0.", "d1.", "d2.", "d3.")


def load_reference(net: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of the reference (`hovernet_fast_pannuke_type_tf2pytorch.tar` and the like) into a `HoverNet`.

    Files of the `fast` mode fit the modes `fast` and `same`, which have the same weights. The types of PanNuke's are
    numbered as `ihc2he.data.pannuke.CLASSES` are, from 1.

    Args:
        net: with the reference encoder and the checkpoint's mode and number of types.
        path: of the checkpoint, with any spelling of its keys (`preact_bna/bn`, `preact/bn` or `preact_bn`).

    Raises:
        DataError: with the file, and the keys or shapes that do not fit.
    """
    mapped = {f"encoder.{k}" if k.startswith(_ENCODER) else k: v for k, v in _read(path).items()}
    mapped.pop("upsample2x.unpool_mat", None)  # a constant: enlarging needs no weights here
    _load(net, mapped, path, "Check mode, classes, width and encoder.")


def load_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Load the encoder of a reference file: `ImageNet-ResNet50-Preact_pytorch.tar`, or a whole checkpoint.

    Args:
        encoder: a `PreactResNet` of the size of ResNet50.
        path: of the file.

    Raises:
        DataError: with the file, and the keys or shapes that do not fit.
    """
    _load(encoder, {k: v for k, v in _read(path).items() if k.startswith(_ENCODER)}, path, "Check width and units.")


def _read(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file under this package's names; no code of the file is executed."""
    try:
        content = load_tensors(path)
    except Exception as error:
        cause = " ".join(str(error).split())[:160]
        msg = (
            f"{path}: cannot be read as a checkpoint of weights ({type(error).__name__}: {cause}). Check the path, or "
            "download the file again."
        )
        raise DataError(msg) from error
    state = content.get("desc", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        msg = f"{path}: expected a state dict of tensors, or one under the key 'desc', found {type(state).__name__}."
        raise DataError(msg)
    if broken := [key for key, value in state.items() if not bool(value.isfinite().all())]:
        msg = f"{path}: {broken[0]} is NaN or infinite. Download the file again."
        raise DataError(msg)
    return {_own_name(str(key)): value for key, value in state.items()}


def _own_name(key: str) -> str:
    """Return the name of a weight in this package.

    >>> _own_name("module.conv0./.weight"), _own_name("d1.units.2.preact/bn.bias")
    ('conv0.conv.weight', 'd1.units.2.preact_bn.bias')
    >>> _own_name("decoder.np.u2.dense.units.0.preact_bna/bn.bias")  # dense units spell it in their own way
    'decoder.np.u2.dense.units.0.preact_bn.bias'
    """
    key = key.removeprefix("module.").replace("conv0./.", "conv0.conv.").replace("preact_bna", "preact")
    return key.replace("/", "_")


def _load(net: nn.Module, state: Mapping[str, Tensor], path: str | Path, remedy: str) -> None:
    own = net.state_dict()
    # Files converted from TensorFlow lack the counters, which nothing reads.
    missing = sorted(k for k in own.keys() - state.keys() if not k.endswith("num_batches_tracked"))
    extra = sorted(state.keys() - own.keys())
    wrong = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if own[k].shape != state[k].shape
    ]
    if missing or extra or wrong:
        msg = (
            f"{path}: does not fit {type(net).__name__}: {len(missing)} keys missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(wrong)} of another shape {wrong[:3]}. {remedy}"
        )
        raise DataError(msg)
    net.load_state_dict(own | dict(state))
