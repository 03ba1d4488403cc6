"""Statistics of instance normalisation, taken once for an image that is translated in parts.

Instance normalisation makes every pixel depend on the mean and the variance of all that is translated with it, so that
parts of an image, each by its own, do not fit together. With the same statistics for all parts they do. Differs from
Kernelized Instance Normalization (Ho et al., ECCV 2022), whose statistics change slowly over the slide.

Shape suffixes: b = batch, c = channel, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Moments(NamedTuple):
    """Mean and variance of each channel of what a layer normalises."""

    mean_c: Tensor
    variance_c: Tensor


def normalising(network: nn.Module) -> list[nn.InstanceNorm2d]:
    """Return the instance normalisations of a network, in their order."""
    return [layer for layer in network.modules() if isinstance(layer, nn.InstanceNorm2d)]


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[Moments]]:
    """Normalise over all images of a batch together, as if they were one; yield a list that gets the moments.

    >>> import torch
    >>> network = nn.Sequential(nn.InstanceNorm2d(1))
    >>> x_bchw = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(2, 1, 1, 2)
    >>> with recorded(network) as moments:
    ...     round(network(x_bchw).std(correction=0).item(), 3)
    1.0
    >>> moments[0].mean_c.tolist(), moments[0].variance_c.tolist()
    ([4.0], [5.0])
    """
    moments: list[Moments] = []

    def layer_of(layer: nn.InstanceNorm2d) -> Callable[[Tensor], Tensor]:
        def forward(x_bchw: Tensor) -> Tensor:
            x = x_bchw.detach().float()
            moments.append(Moments(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
            return _normalised(layer, x_bchw, moments[-1])

        return forward

    with _replaced(network, [layer_of(layer) for layer in normalising(network)]):
        yield moments


@contextmanager
def fixed(network: nn.Module, moments: Sequence[Moments]) -> Iterator[None]:
    """Normalise by given moments, one for each layer, as `recorded` gives them."""

    def layer_of(layer: nn.InstanceNorm2d, own: Moments) -> Callable[[Tensor], Tensor]:
        return lambda x_bchw: _normalised(layer, x_bchw, own)

    with _replaced(network, [layer_of(*pair) for pair in zip(normalising(network), moments, strict=True)]):
        yield


def _normalised(layer: nn.InstanceNorm2d, x_bchw: Tensor, moments: Moments) -> Tensor:
    mean_c, variance_c = (values.to(x_bchw.device) for values in moments)
    return F.batch_norm(x_bchw, mean_c, variance_c, layer.weight, layer.bias, eps=layer.eps)


@contextmanager
def _replaced(network: nn.Module, forwards: Sequence[Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Let the layers do something else than they do by their class."""
    layers = normalising(network)
    for layer, forward in zip(layers, forwards, strict=True):
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
