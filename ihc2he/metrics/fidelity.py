"""How well generated images match their real pairs: one value per image, a card for each metric, and means.

Protocol of all metrics: RGB in [0, 1], the whole tile without cropping or resizing, float32 and never autocast, one
value per image. A table of results averages over images, not over pixels or batches.

Shape suffixes: b = batch, c = colour (3), h, w = height, width, n = values, u = distinct keys, k = bytes of a key.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.metrics.cards import Card

log = logging.getLogger(__name__)


_ALL = (
    Card(
        "psnr", "PSNR", True, "dB", 1, "data range 1, MSE over pixels and channels; capped at 100, as for equal images"
    ),
    Card("ssim", "SSIM", True, "-1 to 1", 11, "11x11 Gaussian window, sigma 1.5, valid region, mean over channels"),
    Card("ms_ssim", "MS-SSIM", True, "0 to 1", 161, "5 scales with the weights of Wang 2003, 11x11 Gaussian window"),
    Card("ms_gmsd", "MS-GMSD", False, "0 upwards", 17, "4 scales, luminance, constants of Zhang 2017 (piq)"),
    Card("mdsi", "MDSI", False, "0 upwards", 3, "sum of gradient and chromaticity, constants of Nafchi 2016 (piq)"),
    Card("haarpsi", "HaarPSI", True, "0 to 1", 16, "3 scales, colour, constants of Reisenhofer 2018 (piq)"),
    Card("bci_psnr", "PSNR (BCI)", True, "dB", 1, "BCI's evaluator: uint8, data range 255; equal images are infinite"),
    Card("bci_ssim", "SSIM (BCI)", True, "-1 to 1", 7, "BCI's evaluator: uint8, 7x7 uniform window, sample covariance"),
)
CARDS: dict[str, Card] = {card.name: card for card in _ALL}


def fidelity(pred_bchw: Tensor, target_bchw: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the named metrics of every image against its target, each a float32 tensor of shape (N,).

    A metric that is not defined for tiles of this size is NaN, and one warning says which size it needs.

    Args:
        pred_bchw: (N, 3, H, W) floats of any precision in [0, 1], the generated images.
        target_bchw: real images of the same shape and range.
        names: keys of `CARDS`.

    Raises:
        ConfigError: if a name is unknown.
        ValueError: if the shapes differ or are not (N, 3, H, W), or values are outside [0, 1] or not finite.

    >>> image = torch.full((1, 3, 8, 8), 0.5)
    >>> {name: round(value.item(), 3) for name, value in fidelity(image, image + 0.1, ["psnr", "ssim"]).items()}
    {'psnr': 20.0, 'ssim': nan}
    """
    names = check_names(names)
    pred_bchw, target_bchw = checked_images("pred_bchw", pred_bchw), checked_images("target_bchw", target_bchw)
    if pred_bchw.shape != target_bchw.shape:
        msg = f"fidelity compares images of the same shape, found {_shape(pred_bchw)} and {_shape(target_bchw)}."
        raise ValueError(msg)
    size = min(pred_bchw.shape[-2:])
    values = {}
    with torch.no_grad(), full_float32(pred_bchw.device):
        for name in names:
            if size < CARDS[name].min_size:
                _say_too_small(name, size)
                values[name] = pred_bchw.new_full((len(pred_bchw),), torch.nan)
            else:
                values[name] = _FUNCTIONS[name](pred_bchw, target_bchw)
    return values


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a tuple after checking that all of them are in `CARDS`.

    Raises:
        ConfigError: if a name is unknown.

    >>> check_names(["psnr", "ssim"])
    ('psnr', 'ssim')
    """
    names = tuple(names)
    for name in names:
        if name not in CARDS:
            msg = f"metrics: '{name}' is not a fidelity metric.{did_you_mean(name, CARDS)}"
            raise ConfigError(msg)
    return names


def checked_images(argument: str, x_bchw: Tensor) -> Tensor:
    """Return the images in float32, clamped to correct rounding of half precision.

    Args:
        argument: name of the caller's parameter, for the message.
        x_bchw: (N, 3, H, W) floats of any precision in [0, 1].

    Raises:
        ValueError: if the shape or range is different, or a value is not finite.
    """
    if x_bchw.ndim != 4 or x_bchw.shape[1] != 3 or not x_bchw.is_floating_point() or not x_bchw.numel():
        msg = f"{argument} must be a float tensor of shape (N, 3, H, W), found {x_bchw.dtype} of {_shape(x_bchw)}."
        raise ValueError(msg)
    x_bchw = x_bchw.detach().float()
    low, high = (value.item() for value in x_bchw.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        msg = f"{argument} must lie in [0, 1], found {low:.4g} to {high:.4g}: rescale it, or find why it is not finite."
        raise ValueError(msg)
    return x_bchw.clamp(0, 1)


def _shape(x_bchw: Tensor) -> tuple[int, ...]:
    return tuple(x_bchw.shape)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Turn off autocast, and TF32, whose 10 bits of mantissa are not enough for the variances in SSIM."""
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@cache
def _say_too_small(name: str, size: int) -> None:
    card = CARDS[name]
    log.warning("%s needs tiles of at least %d px, found %d px: reported as NaN.", card.title, card.min_size, size)


def _psnr(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    psnr_b = peak_signal_noise_ratio(pred_bchw, target_bchw, data_range=1.0, reduction="none", dim=(1, 2, 3))
    # Otherwise one pair of equal images, such as blank tiles, would make the mean of the whole test set infinite.
    return psnr_b.clamp(max=100)


def _ssim(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, map_bchw = structural_similarity_index_measure(
        pred_bchw, target_bchw, data_range=1.0, reduction="none", return_full_image=True
    )
    # torchmetrics includes the mirrored border in the mean; Wang 2004 and scikit-image do not.
    return map_bchw[..., 5:-5, 5:-5].mean((1, 2, 3))


def _ms_ssim(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    from piq import multi_scale_ssim

    return multi_scale_ssim(pred_bchw, target_bchw, data_range=1.0, reduction="none")


def _ms_gmsd(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    from piq import multi_scale_gmsd

    return multi_scale_gmsd(pred_bchw, target_bchw, data_range=1.0, reduction="none")


def _mdsi(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    from piq import mdsi

    return mdsi(pred_bchw, target_bchw, data_range=1.0, reduction="none")


def _haarpsi(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    from piq import haarpsi

    score_b = haarpsi(pred_bchw, target_bchw, data_range=1.0, reduction="none")
    # Its weights are all zero, and the score 0/0, only if both images are black, and therefore equal.
    return torch.where(score_b.isfinite(), score_b, 1.0)


def _to_bytes(x_bchw: Tensor) -> Tensor:
    """Return the image as in a PNG: whole numbers from 0 to 255, still in float32."""
    return (x_bchw * 255).round()


def _bci_psnr(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(
        _to_bytes(pred_bchw), _to_bytes(target_bchw), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )


def _bci_ssim(pred_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """Return scikit-image's ``structural_similarity(channel_axis=2, data_range=255)`` of uint8 images.

    Differs from the SSIM of torchmetrics and piq in the window and in the covariance, which divides by n - 1. Sums of
    49 products of bytes stay below 2**24, so float32 is exact for them; their differences are computed with integers.
    """
    n = 7 * 7
    x, y = _to_bytes(pred_bchw), _to_bytes(target_bchw)
    sum_x, sum_y, sum_xx, sum_yy, sum_xy = (_box_sum(z) for z in (x, y, x * x, y * y, x * y))
    mean_xy, mean_squares = (sum_x * sum_y) / n**2, (sum_x**2 + sum_y**2) / n**2
    covariance = (n * sum_xy - sum_x * sum_y) / (n * (n - 1))
    variances = (n * (sum_xx + sum_yy) - sum_x**2 - sum_y**2) / (n * (n - 1))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    map_bchw = (2 * mean_xy + c1) * (2 * covariance + c2) / ((mean_squares + c1) * (variances + c2))
    return map_bchw.mean((1, 2, 3))


def _box_sum(x_bchw: Tensor) -> Tensor:
    """Return the int64 sums over all whole 7x7 windows."""
    rows_bchw = F.avg_pool2d(x_bchw, (7, 1), stride=1, divisor_override=1)
    return F.avg_pool2d(rows_bchw, (1, 7), stride=1, divisor_override=1).long()


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": _psnr,
    "ssim": _ssim,
    "ms_ssim": _ms_ssim,
    "ms_gmsd": _ms_gmsd,
    "mdsi": _mdsi,
    "haarpsi": _haarpsi,
    "bci_psnr": _bci_psnr,
    "bci_ssim": _bci_ssim,
}


class PerImageMean(Metric):
    """Means of values per image, over all images and over each group, exact on any number of devices.

    NaN means "not defined" and is not part of a mean; `counts` has the number of images that are.

    Attributes:
        counts: after `compute`, the number of images for each of its values, over all devices.

    >>> mean = PerImageMean()
    >>> mean.update({"psnr": torch.tensor([20.0, 24.0])}, ["1+", "3+"])
    >>> {key: value.item() for key, value in mean.compute().items()}
    {'psnr': 22.0, 'psnr/1+': 20.0, 'psnr/3+': 24.0}
    """

    full_state_update = False
    key_rows: list[Tensor]
    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("key_rows", [], dist_reduce_fx="cat")  # (N, k) uint8
        self.add_state("values", [], dist_reduce_fx="cat")  # (N,) float32
        self.counts: dict[str, int] = {}

    def update(self, values: Mapping[str, Tensor], groups: Sequence[str]) -> None:
        """Add a batch.

        Args:
            values: metric name to its (N,) values, as `fidelity` returns them.
            groups: the group of each image, an empty string for none.

        Raises:
            ValueError: values and groups differ in length.
            DataError: a metric and a group together exceed 511 bytes.
        """
        for name, value_b in values.items():
            if value_b.shape != (len(groups),):
                msg = f"'{name}' has shape {tuple(value_b.shape)}, expected one value for each of {len(groups)} groups."
                raise ValueError(msg)
            rows = [encode_key(name, group) for group in groups]
            self.key_rows.append(torch.tensor(rows, dtype=torch.uint8, device=value_b.device).view(-1, _KEY_BYTES))
            self.values.append(value_b.detach().float())

    def compute(self) -> dict[str, Tensor]:
        """Return float32 means by key: ``psnr`` over all images, ``psnr/3+`` over a group."""
        if not len(self.values):
            return {}
        rows_nk = dim_zero_cat(self.key_rows).cpu()
        used = max(rows_nk.any(0).nonzero().flatten().tolist(), default=0) + 1  # short rows are compared faster
        keys_uk, index_n = torch.unique(rows_nk[:, :used], dim=0, return_inverse=True)
        values_n = dim_zero_cat(self.values).cpu().double()
        seen_n = ~values_n.isnan()
        zeros_u = torch.zeros(len(keys_uk), dtype=torch.float64)
        sums_u = zeros_u.index_add(0, index_n, values_n.where(seen_n, 0.0))
        counts_u = zeros_u.index_add(0, index_n, seen_n.double())

        totals: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for row, total, count in zip(keys_uk.tolist(), sums_u.tolist(), counts_u.tolist(), strict=True):
            name, group = decode_key(row)
            for key in (name, f"{name}/{group}") if group else (name,):
                totals[key] += total
                counts[key] += int(count)
        self.counts = dict(counts)
        means = {key: total / counts[key] if counts[key] else torch.nan for key, total in totals.items()}
        return {key: torch.tensor(mean, device=self.device) for key, mean in means.items()}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all devices; a device without images adds no rows."""
        if isinstance(self.values, list) and not self.values:
            # Without these rows torchmetrics would send a float vector, and gathering uint8 matrices would fail.
            self.key_rows = [torch.empty(0, _KEY_BYTES, dtype=torch.uint8, device=self.device)]
            self.values = [torch.empty(0, device=self.device)]
        super().sync(*args, **kwargs)


_KEY_BYTES = 512


def encode_key(name: str, group: str) -> list[int]:
    """Return metric and group as bytes of a fixed number, so that devices can exchange them as tensors.

    Raises:
        DataError: they are too long for it.
    """
    key = f"{name}\0{group}".encode()
    if len(key) > _KEY_BYTES:
        msg = (
            f"Metric '{name[:40]}' and group '{group[:40]}' have {len(key) - 1} bytes together, at most "
            f"{_KEY_BYTES - 1} are possible. Shorten the name of the group (a folder, say) or of the class."
        )
        raise DataError(msg)
    return list(key.ljust(_KEY_BYTES, b"\0"))


def decode_key(row: list[int]) -> tuple[str, str]:
    """Return metric and group."""
    name, _, group = bytes(row).rstrip(b"\0").decode().partition("\0")
    return name, group
