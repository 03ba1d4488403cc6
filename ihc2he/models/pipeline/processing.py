"""The steps before and after a network that the BioImage Model Zoo's format 0.5 describes.

Shape suffixes: b = batch (one image), c = channel, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ihc2he.errors import ConfigError

Step = Callable[[Tensor], Tensor]
_AXES = {"channel": 1, "y": 2, "x": 3}
STATISTICS = ("scale_range", "zero_mean_unit_variance")  # steps that look at all pixels
_UNSUPPORTED = {"scale_range": {"reference_tensor"}, "clip": {"min_percentile", "max_percentile"}}


def processed(steps: Sequence[Mapping[str, Any]], x_bchw: Tensor, whole_bchw: Tensor | None = None) -> Tensor:
    """Return a tensor after some steps.

    Args:
        steps: their `id` and `kwargs`.
        x_bchw: one image, or a block of it.
        whole_bchw: pixels that stand for the whole image, of which percentiles and the like are taken; None: those of
            `x_bchw` itself.

    >>> stretch = {"id": "scale_range", "kwargs": {"max_percentile": 50, "eps": 0, "axes": ["x", "y"]}}
    >>> processed([stretch], torch.tensor([[[[0.0, 2.0, 4.0]]]])).tolist()
    [[[[0.0, 1.0, 2.0]]]]
    """
    for node in steps:
        step = _STEPS[node["id"]](x_bchw if whole_bchw is None else whole_bchw, node.get("kwargs") or {})
        x_bchw = step(x_bchw)
        whole_bchw = None if whole_bchw is None else step(whole_bchw)
    return x_bchw


def check_steps(source: str, steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse steps that are not known here.

    Args:
        source: of the package that has them.
        steps: their `id` and `kwargs`.

    Raises:
        ConfigError: with the name of the step.
    """
    for node in steps:
        if node["id"] not in _STEPS:
            msg = f"{source}: has a step '{node['id']}', which is not known here; known are {', '.join(_STEPS)}."
            raise ConfigError(msg)
        given = {name for name, value in (node.get("kwargs") or {}).items() if value is not None}
        if unknown := given & _UNSUPPORTED.get(node["id"], set()):
            msg = f"{source}: its step '{node['id']}' has {', '.join(sorted(unknown))}, which is not known here."
            raise ConfigError(msg)


def _number(kwargs: Mapping[str, Any], name: str, default: float) -> float:
    """Return a number, which YAML 1.1 takes for a text where it is written as 1e-06."""
    value = kwargs.get(name)
    return default if value is None else float(value)


def _dims(kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the dimensions that a statistic is taken over; the batch counts as one image."""
    axes = kwargs.get("axes")
    return (1, 2, 3) if axes is None else tuple(_AXES[name] for name in axes if name != "batch")


def _scale_range(seen_bchw: Tensor, kwargs: Mapping[str, Any]) -> Step:
    values, dims = seen_bchw.float().cpu().numpy(), _dims(kwargs)
    shares = (_number(kwargs, "min_percentile", 0), _number(kwargs, "max_percentile", 100))
    low, high = (torch.from_numpy(np.percentile(values, share, dims, keepdims=True)).float() for share in shares)
    return lambda x_bchw: (x_bchw - low.to(x_bchw)) / (high - low + _number(kwargs, "eps", 1e-6)).to(x_bchw)


def _zero_mean(seen_bchw: Tensor, kwargs: Mapping[str, Any]) -> Step:
    mean, std = (function(seen_bchw, _dims(kwargs)) for function in (_mean, _std))
    return lambda x_bchw: (x_bchw - mean.to(x_bchw)) / (std + _number(kwargs, "eps", 1e-6)).to(x_bchw)


def _mean(seen_bchw: Tensor, dims: tuple[int, ...]) -> Tensor:
    return seen_bchw.mean(dims, keepdim=True)


def _std(seen_bchw: Tensor, dims: tuple[int, ...]) -> Tensor:
    return seen_bchw.std(dims, correction=0, keepdim=True)


def _along(value: Any, kwargs: Mapping[str, Any], x_bchw: Tensor) -> Tensor:
    """Return a number, or one for each place on an axis, so that it fits the tensor."""
    shape = [1, 1, 1, 1]
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list):
        shape[_AXES[kwargs["axis"]]] = len(value)
    return torch.tensor([float(each) for each in values], device=x_bchw.device).view(shape)


def _fixed_zero_mean(_: Tensor, kwargs: Mapping[str, Any]) -> Step:
    return lambda x_bchw: (x_bchw - _along(kwargs["mean"], kwargs, x_bchw)) / _along(kwargs["std"], kwargs, x_bchw)


def _scale_linear(_: Tensor, kwargs: Mapping[str, Any]) -> Step:
    gain, offset = kwargs.get("gain", 1.0), kwargs.get("offset", 0.0)
    return lambda x_bchw: x_bchw * _along(gain, kwargs, x_bchw) + _along(offset, kwargs, x_bchw)


def _clip(_: Tensor, kwargs: Mapping[str, Any]) -> Step:
    return lambda x_bchw: x_bchw.clamp(_number(kwargs, "min", -torch.inf), _number(kwargs, "max", torch.inf))


_STEPS: dict[str, Callable[[Tensor, Mapping[str, Any]], Step]] = {
    "scale_range": _scale_range,
    "scale_linear": _scale_linear,
    "zero_mean_unit_variance": _zero_mean,
    "fixed_zero_mean_unit_variance": _fixed_zero_mean,
    "clip": _clip,
    "ensure_dtype": lambda _, __: lambda x_bchw: x_bchw,  # all is float32 here
    "sigmoid": lambda _, __: torch.sigmoid,
    "softmax": lambda _, kwargs: lambda x_bchw: x_bchw.softmax(_AXES[kwargs.get("axis", "channel")]),
}
