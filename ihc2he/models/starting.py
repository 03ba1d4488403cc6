"""Training that starts from trained weights: what does not fit, and which settings would make it fit."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ihc2he.config import locate, moved, signature

log = logging.getLogger(__name__)

_SIMILAR = 1.1  # ratio of pixel sizes up to which nuclei look the same
_LEFT_OUT = ("_target_", "weights", "n_types", "channels")  # they do not say how a network is built, but for the first


def warn_of_pixel_size(source: str, own: float | None, found: float | None) -> None:
    """Log a warning if trained weights know nuclei of another size.

    Args:
        source: of the weights.
        own: um/px of the data; None: not known.
        found: um/px that they were trained at; None: not known.
    """
    if own and found and max(own / found, found / own) > _SIMILAR:
        log.warning(
            "model.init=%s was trained at %s um/px and this data has %s, so nuclei have another size. To keep theirs "
            "pass data.target_mpp=%s.", source, found, own, found,
        )  # fmt: skip


def misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that only one of two networks has, or that have another shape.

    >>> misfits({"a": Tensor(1), "b": Tensor(2)}, {"a": Tensor(1), "b": Tensor(3), "c": Tensor(1)})
    ['b', 'c']
    """
    names = own.keys() | found.keys()
    return sorted(k for k in names if k not in own or k not in found or own[k].shape != found[k].shape)


def settings_to_change(own: Any, found: Any, key: str) -> list[str]:
    """Return the settings, as `key=value`, with which a configuration builds the network of another one.

    Args:
        own: node of the configuration; its arguments may be left to their defaults, as in the other.
        found: node of the other network.
        key: of the node in the configuration.

    >>> node = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 16, "weights": "a.tar"}
    >>> settings_to_change(node, {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet"}, "model.encoder")
    ['model.encoder.width=64']
    """
    if not (isinstance(own, Mapping) and isinstance(found, Mapping)):
        return [] if own == found else [f"{key}={found}"]
    target, other = (moved(node.get("_target_", "")) for node in (own, found))
    if target != other:
        return [f"{key.replace('.', '/')}=NAME with _target_ {other}"]
    parameters = signature(locate(target)).parameters.values() if target else ()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    names = dict.fromkeys([*found, *own])
    changes = [
        settings_to_change(own.get(name, defaults.get(name)), found.get(name, defaults.get(name)), f"{key}.{name}")
        for name in names
        if name not in _LEFT_OUT
    ]
    return [change for some in changes for change in some]
