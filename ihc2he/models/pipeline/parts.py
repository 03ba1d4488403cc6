"""Translators and segmenters of a pipeline: built from their nodes by name, and what identifies them in results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from ihc2he.build import build
from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.models.pipeline.fusing import Fused
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.pipeline.translators import Translator


def built(
    kind: str, nodes: Mapping[str, Any], use: Mapping[str, Sequence[str]], only: type, key: str | None = None
) -> dict[str, Any]:
    """Return the nodes in use, by name.

    Args:
        kind: `translators` or `segmenters`.
        nodes: by name.
        use: names of those in use, by kind.
        only: their class.
        key: where the configuration has the names; None: `model.use`.

    Raises:
        ConfigError: for an unknown name, or none at all.
    """
    names = use.get(kind) or []
    names = [names] if isinstance(names, str) else list(names)
    key = key or f"model.use.{kind}"
    if not names:
        msg = f"{key}=[]: expected one or more of {', '.join(nodes)}."
        raise ConfigError(msg)
    for name in names:
        if name not in nodes:
            msg = f"{key}: there is no '{name}'.{did_you_mean(name, nodes)}"
            raise ConfigError(msg)
    return {name: build(nodes[name], only) for name in names}


def described(node: Any, part: Translator | Segmenter | nn.Module) -> dict[str, Any]:
    """Return what identifies a translator or segmenter besides its weights, without paths of files."""
    if isinstance(part, Fused):
        return {name: described(node[name], each) for name, each in part.parts.items()}
    named = dict(node) if isinstance(node, Mapping) else {"_target_": type(node).__name__}
    settings = {key: value for key, value in named.items() if key not in part.files}  # type: ignore[operator]
    return settings | part.facts()  # type: ignore[operator]


def digest(module: nn.Module) -> str:
    """Return what identifies the weights of a module."""
    found = blake2b(digest_size=8)
    for value in module.state_dict().values():
        found.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
