"""HoVer-Net (Graham et al., Medical Image Analysis 2019): one encoder, a decoder for each kind of map.

Names of layers follow the reference implementation, so that its published checkpoints load (see `weights`).
Shape suffixes: b = batch, c = channel, h, w = height, width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.models.segmentation.encoders import initialise
from ihc2he.models.segmentation.networks import MapNetwork, centre_crop

MARGINS = {"same": 0, "fast": 46, "original": 95}  # px by which the output is smaller than the input on each side


class HoverNet(MapNetwork):
    """Maps of nuclei: what is nucleus (`np`), how far from its centre (`hv`) and, with types, of which type (`tp`).

    Differs from the reference in its input, which is in [0, 1] here, and in `same` mode, which is `fast` with padded
    convolutions: the same weights, and an output of the input's size.

    Args:
        encoder: node or module, see `ihc2he.models.segmentation.encoders`.
        n_types: types of nuclei, without the background; 0 leaves that branch out.
        mode: `same`, or the reference's `fast` (256 -> 164 px) and `original` (270 -> 80 px).
        width: channels of the decoders' finest skip; 256 in the reference.

    Attributes:
        margin: px by which the output is smaller than the input on each side.

    Raises:
        ConfigError: for an unknown mode, a width that does not divide by 32, or an encoder whose first map is coarser.
    """

    def __init__(
        self, encoder: Mapping[str, Any] | nn.Module, n_types: int = 5, mode: str = "same", width: int = 256
    ) -> None:
        super().__init__()
        if mode not in MARGINS:
            msg = f"There is no mode '{mode}' of HoVer-Net.{did_you_mean(mode, MARGINS)}"
            raise ConfigError(msg)
        if width < 32 or width % 32:
            msg = f"width={width}: expected a multiple of 32, for the grouped convolutions."
            raise ConfigError(msg)
        self.margin = MARGINS[mode]
        stem = {} if mode != "original" or isinstance(encoder, nn.Module) else {"pad": False}
        net: Any = build(encoder, nn.Module, **stem)
        if getattr(net, "finest", 1) != 1:
            msg = "HoVer-Net needs maps from stride 1 of its encoder. Pass model.encoder.plain=false."
            raise ConfigError(msg)
        self.encoder = net
        self.stride = net.stride
        *skips, deepest = net.channels
        wanted = [width, 2 * width, 4 * width]
        self.lateral = nn.ModuleList(
            [nn.Identity() if c == n else nn.Conv2d(c, n, 1, bias=False) for c, n in zip(skips, wanted, strict=True)]
        )
        self.conv_bot = nn.Conv2d(deepest, 4 * width, 1, bias=False)
        kernel = 5 if mode == "original" else 3
        self.channels = ({"tp": n_types + 1} if n_types else {}) | {"np": 2, "hv": 2}
        padded = mode == "same"
        self.decoder = nn.ModuleDict({name: _Branch(width, c, kernel, padded) for name, c in self.channels.items()})
        initialise(self.lateral, self.conv_bot, self.decoder)

    @property
    def backbone(self) -> Any:
        """The encoder."""
        return self.encoder

    def forward(self, x_bchw: Tensor) -> dict[str, Tensor]:
        """Return the raw maps of images.

        Args:
            x_bchw: (N, 3, H, W) in [0, 1]. In `same` mode any H and W of at least the encoder's stride: where they do
                not divide by it the image is padded by reflection and the maps are cropped back. In the other modes
                they have to divide by it (`original`: 6 px less than they are), and to be more than twice the margin.

        Returns:
            `np` (N, 2, H, W) logits of background and nucleus, `hv` (N, 2, H, W) horizontal and vertical distance
            in units of the nucleus's own reach, `tp` (N, T + 1, H, W) logits of background and types; H and W are
            smaller by twice the margin.

        Raises:
            ValueError: for sides that do not fit the mode.
        """
        h, w = x_bchw.shape[-2:]
        if self.margin:
            self._check_sides(h, w)
            return self._maps(x_bchw)
        if min(h, w) < self.stride:
            msg = f"An input of {w}x{h} px is too small: expected sides of at least {self.stride} px."
            raise ValueError(msg)
        bottom, right = -h % self.stride, -w % self.stride
        if not (bottom or right):
            return self._maps(x_bchw)
        maps = self._maps(F.pad(x_bchw, (0, right, 0, bottom), mode="reflect"))
        return {name: map_bchw[..., :h, :w] for name, map_bchw in maps.items()}

    def _check_sides(self, h: int, w: int) -> None:
        stem = 6 if self.margin == MARGINS["original"] else 0
        if (h - stem) % self.stride or (w - stem) % self.stride or min(h, w) <= 2 * self.margin:
            msg = (
                f"An input of {w}x{h} px does not fit this mode: expected sides above {2 * self.margin} px that, "
                f"less {stem} px, divide by {self.stride}. Mode `same` takes any size."
            )
            raise ValueError(msg)

    def _maps(self, x_bchw: Tensor) -> dict[str, Tensor]:
        *skips, deep = self.encoder(x_bchw)
        s0, s1, s2 = (lateral(skip) for lateral, skip in zip(self.lateral, skips, strict=True))
        bottom_bchw = _enlarge(self.conv_bot(deep)) + s2
        return {name: branch(bottom_bchw, s1, s0) for name, branch in self.decoder.items()}


def _enlarge(x_bchw: Tensor) -> Tensor:
    return F.interpolate(x_bchw, scale_factor=2.0, mode="nearest")


def _add_cropped(x_bchw: Tensor, skip_bchw: Tensor) -> Tensor:
    return x_bchw + centre_crop(skip_bchw, x_bchw.shape[-2], x_bchw.shape[-1])


class _DenseBlock(nn.Module):
    """Units whose outputs are all kept, with an activation behind the last; earlier maps are cropped to later ones."""

    def __init__(self, c_in: int, width: int, n_units: int, kernel: int, padding: int) -> None:
        super().__init__()
        c_mid, c_new = width // 2, width // 8
        self.units = nn.ModuleList()
        for i in range(n_units):
            c = c_in + i * c_new
            layers = OrderedDict(
                preact_bn=nn.BatchNorm2d(c),
                preact_relu=nn.ReLU(inplace=True),
                conv1=nn.Conv2d(c, c_mid, 1, bias=False),
                conv1_bn=nn.BatchNorm2d(c_mid),
                conv1_relu=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(c_mid, c_new, kernel, padding=padding, groups=4, bias=False),
            )
            self.units.append(nn.Sequential(layers))
        bn = nn.BatchNorm2d(c_in + n_units * c_new)
        self.blk_bna = nn.Sequential(OrderedDict(bn=bn, relu=nn.ReLU(inplace=True)))

    def forward(self, x_bchw: Tensor) -> Tensor:
        for unit in self.units:
            new_bchw = unit(x_bchw)
            x_bchw = torch.cat([centre_crop(x_bchw, *new_bchw.shape[-2:]), new_bchw], 1)
        return self.blk_bna(x_bchw)


class _Branch(nn.Module):
    """A decoder, whose stages u3 to u0 work at strides 4, 2, 1 and 1."""

    def __init__(self, width: int, c_out: int, kernel: int, padded: bool) -> None:
        super().__init__()
        padding = kernel // 2 if padded else 0
        self.u3 = _stage(4 * width, width, width, 8, kernel, padding)
        self.u2 = _stage(2 * width, width // 2, width, 4, kernel, padding)
        c = width // 4
        conva = nn.Conv2d(width, c, kernel, padding=kernel // 2, bias=False)  # padded in every mode
        self.u1 = nn.Sequential(OrderedDict(conva=conva))
        last = OrderedDict(bn=nn.BatchNorm2d(c), relu=nn.ReLU(inplace=True), conv=nn.Conv2d(c, c_out, 1))
        self.u0 = nn.Sequential(last)

    def forward(self, bottom_bchw: Tensor, skip2_bchw: Tensor, skip1_bchw: Tensor) -> Tensor:
        x_bchw = _add_cropped(_enlarge(self.u3(bottom_bchw)), skip2_bchw)
        x_bchw = _add_cropped(_enlarge(self.u2(x_bchw)), skip1_bchw)
        return self.u0(self.u1(x_bchw))


def _stage(c_in: int, c: int, width: int, n_units: int, kernel: int, padding: int) -> nn.Sequential:
    c_out = c + n_units * (width // 8)
    return nn.Sequential(
        OrderedDict(
            conva=nn.Conv2d(c_in, c, kernel, padding=padding, bias=False),
            dense=_DenseBlock(c, width, n_units, kernel, padding),
            convf=nn.Conv2d(c_out, c_out, 1, bias=False),
        )
    )
