"""Networks in forms that need no code of this package: TorchScript, ONNX and `torch.export`.

Shape suffixes: b = batch, c = colour, k = maps, h, w = height, width.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ihc2he.errors import DataError
from ihc2he.files import complete
from ihc2he.nuclei.decoders.base import Decoder

OPSET = 17  # of ONNX; read by every onnxruntime since 1.12
_GEOMETRY = ("kernel_size", "stride", "dilation", "groups")
LEAST = 32  # px, the smallest sides of an image
TOLERANCE = 1e-3  # largest difference of a map or of an image in [0, 1]


class Maps(nn.Module):
    """Images in [0, 1] to the joined maps of a segmenter."""

    def __init__(self, network: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.network, self.join = network, decoder.join

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return (N, K, H, W) of (N, 3, H, W)."""
        return self.join(self.network(x_bchw))


class Translation(nn.Module):
    """Images in [0, 1] to translated images in [0, 1], by a generator for [-1, 1]."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return (N, 3, H, W) of (N, 3, H, W)."""
        return self.generator(2 * x_bchw - 1) / 2 + 0.5


class PlainInstanceNorm(nn.Module):
    """Instance normalisation in operations that do not need to know the number of images and channels."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return each channel of each image with mean 0 and variance 1."""
        centred_bchw = x_bchw - x_bchw.mean((2, 3), keepdim=True)
        return centred_bchw / (centred_bchw.square().mean((2, 3), keepdim=True) + self.eps).sqrt()


def simplified(module: nn.Module) -> nn.Module:
    """Return a copy of a module for images whose sides are multiples of its step, which exporters can follow."""
    made = deepcopy(module)
    for parent in list(made.modules()):
        for name, layer in parent.named_children():
            if type(layer).__name__ == "Conv2dSame":  # of timm; its padding depends on the size of the image
                assert isinstance(layer, nn.Conv2d)
                setattr(parent, name, _statically_padded(layer))
            elif isinstance(layer, nn.InstanceNorm2d) and not layer.affine:
                setattr(parent, name, PlainInstanceNorm(layer.eps))
    return made


def _statically_padded(layer: nn.Conv2d) -> nn.Sequential:
    """Return a convolution with TensorFlow's "same" padding, here constant."""
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None).eval()
    conv.__dict__.update({name: getattr(layer, name) for name in _GEOMETRY})
    conv.weight, conv.bias = layer.weight, layer.bias
    sides = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    height, width = (max(0, dilation * (size - 1) + 1 - stride) for size, stride, dilation in sides)
    return nn.Sequential(nn.ZeroPad2d((width // 2, width - width // 2, height // 2, height - height // 2)), conv)


def step_of(network: nn.Module) -> int:
    """Return of what the sides of images must be multiples, px."""
    return int(getattr(network, "stride", 4))


def example(step: int, height: int = 3, width: int = 4) -> Tensor:
    """Return two random images, (2, 3, H, W) in [0, 1], with sides of at least so many steps."""
    least = -(-LEAST // step)
    sides = (step * (least + height), step * (least + width))
    return torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0))


def traced(module: nn.Module, step: int) -> torch.jit.ScriptModule:
    """Return a module as TorchScript.

    Raises:
        DataError: if it gives something else for images of another size.
    """
    with quiet(), torch.no_grad():
        made = cast("torch.jit.ScriptModule", torch.jit.trace(module, example(step), check_trace=False))
        _compare("TorchScript", made(other := example(step, 5, 2)), module(other))
    return made


def write_onnx(path: Path, module: nn.Module, step: int, note: Mapping[str, Any] | None = None) -> None:
    """Write a module as ONNX with the input `image` and the output `result`, for sides that are multiples of the step.

    Args:
        path: the file.
        module: the network.
        step: px.
        note: plain values that the file keeps for whoever reads it with this package, as metadata `ihc2he`.

    Raises:
        DataError: if onnxruntime gives something else than PyTorch.
    """
    import onnx
    import onnxruntime

    given, other = example(step), example(step, 5, 2)
    axes = {0: "n", 2: "h", 3: "w"}
    with complete(path) as temporary, quiet(), torch.no_grad():
        # The exporter by `torch.export` takes ten times as long on symbolic sizes, and gives the same graph.
        torch.onnx.export(
            simplified(module),
            (given,),
            str(temporary),
            input_names=["image"],
            output_names=["result"],
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={"image": axes, "result": axes},
        )
        noted = onnx.load(str(temporary))
        onnx.helper.set_model_props(noted, {"ihc2he": json.dumps(note or {})})
        onnx.save(noted, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for image in (given, other):
            (found,) = session.run(None, {"image": image.numpy()})
            _compare("ONNX", torch.from_numpy(np.asarray(found)), module(image))


def write_exported(path: Path, module: nn.Module, step: int) -> None:
    """Write a module as a program of `torch.export`, for sides that are multiples of the step.

    Raises:
        DataError: if the program gives something else than the module.
    """
    with complete(path) as temporary, quiet(), torch.no_grad():
        program = torch.export.export(
            simplified(module), (example(step),), dynamic_shapes=(_dynamic(step),), strict=False
        )
        with temporary.open("wb") as stream:
            torch.export.save(program, stream)
        _compare("torch.export", program.module()(other := example(step, 5, 2)), module(other))


def _dynamic(step: int) -> dict[int, Any]:
    dim = torch.export.Dim
    least = -(-LEAST // step)
    return {0: dim("n", max=64), 2: step * dim("h", min=least, max=512), 3: step * dim("w", min=least, max=512)}


def _compare(form: str, found: Tensor, wanted: Tensor) -> None:
    difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else np.inf
    if not difference <= TOLERANCE:
        msg = f"{form}: the exported network differs from the bundle's by {difference:.3g}, more than {TOLERANCE}."
        raise DataError(msg)


class quiet(warnings.catch_warnings):  # noqa: N801  # used as a function
    """Without the warnings and log lines of exporters about their own future."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
