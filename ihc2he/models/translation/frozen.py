"""A trained segmenter that judges images in training and is not trained itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ihc2he.errors import ConfigError
from ihc2he.models.segmentation.loading import load_segmenter
from ihc2he.tiling.resampling import resampled_size, resized


class FrozenSegmenter:
    """The raw maps of a trained segmenter, through which gradients reach the images.

    It is no `nn.Module`, so nothing of it enters a checkpoint or an optimiser, and it always stays in evaluation mode.

    Args:
        source: as in `ihc2he.models.segmentation.loading.load_segmenter`.
        mpp: pixel size of the images, um/px; they are resampled to the segmenter's.
        device: to work on.

    Raises:
        ConfigError: for a segmenter that does not know its pixel size, or whose maps are smaller than the image.
        DataError: if it cannot be read.
    """

    def __init__(self, source: str, mpp: float, device: torch.device | str = "cpu") -> None:
        loaded = load_segmenter(source)
        if loaded.mpp is None or loaded.network.margin:
            lacks = "does not say its pixel size" if loaded.mpp is None else "has maps that are smaller than its images"
            msg = f"model.segmenter={source}: it {lacks}. Pass the bundle of another one, or builtin."
            raise ConfigError(msg)
        self.source, self.mpp, self.own_mpp = source, mpp, float(loaded.mpp)
        self.network = loaded.network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)

    def __call__(self, x_bchw: Tensor) -> dict[str, Tensor]:
        """Return the raw maps by name, on the segmenter's grid.

        Args:
            x_bchw: (N, 3, H, W) in [-1, 1].

        Raises:
            ConfigError: for images that are too small for it.
        """
        h, w = resampled_size(x_bchw.shape[-2], x_bchw.shape[-1], self.mpp, self.own_mpp)
        if min(h, w) < self.network.stride:
            msg = (
                f"model.segmenter={self.source}: crops have {w}x{h} px at its {self.own_mpp} um/px; expected at least "
                f"{self.network.stride}. Pass a larger data.crop_size."
            )
            raise ConfigError(msg)
        x_bchw = resized((x_bchw.float() + 1) / 2, h, w)
        return self.network(x_bchw.contiguous(memory_format=torch.channels_last))
