"""The generator and discriminator of CycleGAN (Zhu et al., ICCV 2017, section 7.1), in the reference's key layout.

Indices inside the Sequentials equal the reference implementation's, so that its published checkpoints load.
Shape suffixes: b = batch, c = channel, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.errors import ConfigError, DataError, did_you_mean

UPSAMPLING = ("transpose", "resize", "blur")
DOWNSAMPLING = ("stride", "blur")
INITIALISATION = ("normal", "xavier")


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalisation without parameters, in the memory format of its input.

    PyTorch's own falls back to the contiguous format and so costs two copies per layer in a channels-last network. The
    statistics of one image are those of a batch of one, whose batch normalisation keeps the format.
    """

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return a tensor of the input's shape, each channel of each image with mean 0 and variance 1."""
        done = [F.batch_norm(x, None, None, training=True, eps=self.eps) for x in x_bchw.split(1)]
        return done[0] if len(done) == 1 else torch.cat(done)


class ReflectionPad(nn.ReflectionPad2d):
    """Reflection padding in the precision of its input; autocast on the CPU would pad in float32 and convert twice."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return the padded tensor."""
        with torch.autocast(x_bchw.device.type, enabled=False):
            return super().forward(x_bchw)


class BlurPool(nn.Module):
    """Every second pixel of the image blurred by [1, 2, 1] each way, with mirrored borders (Zhang, ICML 2019)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        tap = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(tap, tap), persistent=False)
        self.pad = ReflectionPad(1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return a tensor of half the height and width, rounded up."""
        c = x_bchw.shape[1]
        return F.conv2d(self.pad(x_bchw), self.kernel.to(x_bchw).expand(c, 1, 3, 3), stride=2, groups=c)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with reflection padding and a skip; no ReLU after the sum."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            ReflectionPad(1),
            nn.Conv2d(width, width, 3),
            InstanceNorm(width),
            nn.ReLU(True),
        ]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        layers += [ReflectionPad(1), nn.Conv2d(width, width, 3), InstanceNorm(width)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return x_bchw + self.conv_block(x_bchw)


class ResnetGenerator(nn.Module):
    """The ResNet generator: 7x7 stem, two strided convolutions, residual blocks, two upsamplings, tanh.

    Convolutions keep their bias although instance normalisation cancels it, as the reference does.

    Args:
        width: channels of the first layer (the reference's ngf).
        n_blocks: residual blocks; 9 for images of 256 px and more, 6 for 128 px.
        dropout: probability inside the residual blocks; 0 leaves the layers out, as CycleGAN does.
        upsample: `transpose` (the reference's transposed convolution), `resize` (nearest-neighbour upsampling and
            a 3x3 convolution; no checkerboard, Odena et al., Distill 2016) or `blur` (bilinear upsampling, which is
            CUT's [1, 3, 3, 1] filter, and a 3x3 convolution).
        downsample: `stride` (strided convolutions) or `blur` (a blur before every second pixel is kept, as CUT does).
        initialisation: of the weights, see `initialise`.

    Attributes:
        stride: px, by multiples of which windows have to be apart.

    Raises:
        ConfigError: for an unknown choice or fewer than one block.
    """

    stride = 4

    def __init__(
        self,
        width: int = 64,
        n_blocks: int = 9,
        dropout: float = 0.0,
        upsample: str = "transpose",
        downsample: str = "stride",
        initialisation: str = "normal",
    ) -> None:
        super().__init__()
        _check("upsampling", upsample, UPSAMPLING)
        _check("downsampling", downsample, DOWNSAMPLING)
        if min(width, n_blocks) < 1:
            msg = f"width and n_blocks have to be at least 1, found {width} and {n_blocks}."
            raise ConfigError(msg)
        layers: list[nn.Module] = [ReflectionPad(3), nn.Conv2d(3, width, 7), *_norm_relu(width)]
        for c in (width, 2 * width):
            layers += [nn.Conv2d(c, 2 * c, 3, stride=_stride(downsample), padding=1), *_norm_relu(2 * c)]
            layers += _blur(downsample)
        layers += [ResnetBlock(4 * width, dropout) for _ in range(n_blocks)]
        for c in (4 * width, 2 * width):
            layers += [*_upsampling(c, upsample), *_norm_relu(c // 2)]
        layers += [ReflectionPad(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        initialise(self, initialisation)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return the translated images.

        Args:
            x_bchw: (N, 3, H, W) in [-1, 1]; any H and W of at least 16. Where they are no multiples of 4 the image is
                padded by reflection and the result cropped back.

        Returns:
            (N, 3, H, W) in [-1, 1].
        """
        h, w = x_bchw.shape[-2:]
        bottom, right = -h % 4, -w % 4
        if bottom or right:
            return self.model(F.pad(x_bchw, (0, right, 0, bottom), mode="reflect"))[..., :h, :w]
        return self.model(x_bchw)


def _norm_relu(width: int) -> list[nn.Module]:
    return [InstanceNorm(width), nn.ReLU(True)]


def _stride(downsample: str) -> int:
    return 2 if downsample == "stride" else 1


def _blur(downsample: str) -> list[nn.Module]:
    return [BlurPool()] if downsample == "blur" else []


def _upsampling(width: int, kind: str) -> list[nn.Module]:
    if kind == "transpose":
        return [nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1)]
    if kind == "blur":
        return [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(width, width // 2, 3, padding=1)]
    conv = nn.Conv2d(width, width // 2, 3)
    return [nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), ReflectionPad(1), conv)]


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        msg = f"There is no {what} '{name}'.{did_you_mean(name, known)}"
        raise ConfigError(msg)


class PatchDiscriminator(nn.Module):
    """The 70x70 PatchGAN (Isola et al., CVPR 2017): a map of logits, each of which sees 70x70 px.

    Args:
        width: channels of the first layer (the reference's ndf).
        n_layers: strided convolutions; 3 give the field of 70 px.
        spectral_norm: normalise each convolution's weight by its largest singular value (Miyato et al., ICLR 2018).
        channels: of the image; 6 for two images side by side, as pix2pix judges them.
        downsample: `stride`, or `blur`, as CUT does.
        initialisation: of the weights, see `initialise`.

    Raises:
        ConfigError: for an unknown choice, or fewer than one channel or layer.
    """

    def __init__(
        self,
        width: int = 64,
        n_layers: int = 3,
        spectral_norm: bool = False,
        channels: int = 3,
        downsample: str = "stride",
        initialisation: str = "normal",
    ) -> None:
        super().__init__()
        _check("downsampling", downsample, DOWNSAMPLING)
        if min(width, n_layers, channels) < 1:
            msg = f"width, n_layers and channels have to be at least 1, found {width}, {n_layers} and {channels}."
            raise ConfigError(msg)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=_stride(downsample), padding=1)]
        layers += [nn.LeakyReLU(0.2, True), *_blur(downsample)]
        c_in = width
        for i in range(1, n_layers + 1):
            c_out = width * min(2**i, 8)
            stride = _stride(downsample) if i < n_layers else 1
            layers += [nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1), InstanceNorm(c_out)]
            layers += [nn.LeakyReLU(0.2, True), *(_blur(downsample) if i < n_layers else [])]
            c_in = c_out
        layers += [nn.Conv2d(c_in, 1, 4, stride=1, padding=1)]
        self.model = nn.Sequential(*layers)
        initialise(self, initialisation)
        if spectral_norm:
            for layer in self.model:
                if isinstance(layer, nn.Conv2d):
                    nn.utils.parametrizations.spectral_norm(layer)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return logits of shape (N, 1, H/8 - 2, W/8 - 2), without sigmoid, for (N, channels, H, W) in [-1, 1]."""
        return self.model(x_bchw)


def initialise(net: nn.Module, kind: str = "normal", gain: float = 0.02) -> None:
    """Draw the weights of all convolutions and linear layers, and set their biases to 0.

    Args:
        net: to be changed in place.
        kind: `normal`: N(0, gain), as CycleGAN does; `xavier`: normal with a deviation of `gain` times that of Glorot
            and Bengio (AISTATS 2010), as CUT does.
        gain: see there.
    """
    _check("initialisation", kind, INITIALISATION)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if kind == "xavier":
                nn.init.xavier_normal_(layer.weight, gain)
            else:
                nn.init.normal_(layer.weight, 0.0, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def load_reference_weights(net: nn.Module, path: str | Path) -> None:
    """Load a published CycleGAN checkpoint (`latest_net_G.pth` and the like) into a network of this module.

    Prefixes left by DataParallel or torch.compile are stripped. The running statistics that files from before PyTorch
    0.4 hold for instance normalisation are dropped, and so are CUT's constant filters. No code of the file is executed.

    Args:
        net: a `ResnetGenerator` or `PatchDiscriminator` of the checkpoint's size.
        path: the `.pth` file: a state dict.

    Raises:
        DataError: naming the file, and the keys or shapes that do not fit.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"{path}: cannot be read as a checkpoint of weights ({type(error).__name__}: {error})."
        raise DataError(msg) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        msg = f"{path}: expected a state dict of tensors, found {type(state).__name__}."
        raise DataError(msg)
    own = net.state_dict()
    stripped = {str(key).removeprefix("module.").replace("_orig_mod.", ""): value for key, value in state.items()}
    weights = {k: v for k, v in stripped.items() if k in own or not k.endswith(_DROPPED)}
    wrong = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if own.keys() != weights.keys() or wrong:
        missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        msg = (
            f"{path}: does not fit {type(net).__name__}: {len(missing)} keys missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(wrong)} of another shape {wrong[:3]}. "
            "Check n_blocks, width, dropout, upsample and downsample."
        )
        raise DataError(msg)
    net.load_state_dict(weights)


_DROPPED = ("running_mean", "running_var", "num_batches_tracked", ".filt")
