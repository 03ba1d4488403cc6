"""Tensors of images as pixels."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pixels(x_bchw: Tensor) -> NDArray[np.uint8]:
    """Return images in [0, 1] as NxHxWx3 uint8.

    >>> pixels(torch.tensor([[[[0.0]], [[0.5]], [[1.0]]]])).tolist()
    [[[[0, 128, 255]]]]
    """
    return (x_bchw * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
