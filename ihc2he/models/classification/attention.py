"""Where a classifier looks: Grad-CAM (Selvaraju et al., ICCV 2017), by the package grad-cam.

Shape suffixes: b = batch, s = stains, c = channels, h, w = height, width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ihc2he.models.classification.networks import TileClassifier

log = logging.getLogger(__name__)


@cache
def available() -> bool:
    """Return whether the package is installed; if not, say so once."""
    try:
        import pytorch_grad_cam  # noqa: F401
    except ModuleNotFoundError:
        log.warning('Pictures are drawn without Grad-CAM, which needs a package: pip install "ihc2he[explain]".')
        return False
    return True


def grad_cam(network: TileClassifier, x_bchw: Tensor, classes: Sequence[int]) -> NDArray[np.float32]:
    """Return how much each place speaks for a class, (N, stains, H, W) from 0 to 1.

    Args:
        network: in evaluation mode; its gradients are deleted.
        x_bchw: images in [-1, 1].
        classes: the class of each image that is asked for.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with torch.inference_mode(False), torch.enable_grad(), GradCAM(network, [network.last]) as cam:
        x_bchw = x_bchw.detach().clone().float().requires_grad_()  # also where the encoder is frozen
        maps = cam(x_bchw, [ClassifierOutputTarget(kind) for kind in classes])
    network.zero_grad()
    return maps.reshape(len(x_bchw), network.stains, *x_bchw.shape[-2:])


def overlaid(image_chw: Tensor, cam_hw: NDArray[np.float32]) -> Tensor:
    """Return an image in [-1, 1] with a map from 0 to 1 in colours over it, (3, H, W) in [-1, 1]."""
    heat_hwc = cv2.applyColorMap(np.uint8(255 * cam_hw), cv2.COLORMAP_JET)[..., ::-1]  # type: ignore[call-overload]
    heat_chw = torch.from_numpy(heat_hwc.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    return 0.6 * image_chw.detach().float().cpu() + 0.4 * heat_chw
