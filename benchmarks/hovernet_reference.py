"""The training step of the reference HoVer-Net (`fast` mode, 256 -> 164 px), written from its description.

Float32, the default memory format and Adam. Our network in mode `fast` is the published graph of layers and loads its
checkpoints, so it is built from our class; losses and targets are written out as published.
Shape suffixes: b = batch, h, w = height, width, c = class.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from timing import names_of
from torch import Tensor

from ihc2he.models.segmentation.hovernet.networks import HoverNet

N_TYPES = 5
ENCODER = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet"}


class ReferenceStep:
    """The network, and `step`, which trains it on a batch of the keys `image`, `inst`, `type` and `hv_published`."""

    def __init__(self, device: torch.device, encoder: dict[str, object] | None = None, width: int = 256) -> None:
        self.network = HoverNet(encoder or ENCODER, N_TYPES, "fast", width).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-4, (0.9, 0.999))
        size = torch.arange(-2.0, 3.0, device=device)
        # As published, the kernel of the horizontal map varies along rows.
        h, v = torch.meshgrid(size, size, indexing="ij")
        self.kernels = [(axis / (h**2 + v**2 + 1e-15)).view(1, 1, 5, 5) for axis in (h, v)]

    def step(self, batch: dict[str, Tensor]) -> None:
        """Train on a batch."""
        self.network.train()
        self.optimizer.zero_grad()
        image_bchw = (255 * batch["image"]).float()  # as it comes from the loader
        maps = self.network(image_bchw / 255)
        out = {name: map_bchw.permute(0, 2, 3, 1).contiguous() for name, map_bchw in maps.items()}
        height, width = out["np"].shape[1:3]
        top, left = (batch["inst"].shape[1] - height) // 2, (batch["inst"].shape[2] - width) // 2
        true = {
            name: batch[name][..., top : top + height, left : left + width] for name in ("inst", "type", "hv_published")
        }
        nucleus_bhw = (true["inst"] > 0).long()
        hv_bhw2 = true["hv_published"].permute(0, 2, 3, 1).contiguous()
        loss = self._squares(out["hv"], hv_bhw2) + self._slopes(out["hv"], hv_bhw2, nucleus_bhw)
        for name, classes_bhw in (("np", nucleus_bhw), ("tp", true["type"].long())):
            probability_bhwc = F.softmax(out[name], -1)
            truth_bhwc = F.one_hot(classes_bhw, probability_bhwc.shape[-1]).float()
            loss = loss + self._entropy(truth_bhwc, probability_bhwc) + self._dice(truth_bhwc, probability_bhwc)
        loss.backward()
        self.optimizer.step()

    @staticmethod
    def _entropy(truth_bhwc: Tensor, probability_bhwc: Tensor) -> Tensor:
        probability_bhwc = probability_bhwc / probability_bhwc.sum(-1, keepdim=True)
        probability_bhwc = torch.clamp(probability_bhwc, 1e-7, 1 - 1e-7)
        return -(truth_bhwc * torch.log(probability_bhwc)).sum(-1, keepdim=True).mean()

    @staticmethod
    def _dice(truth_bhwc: Tensor, probability_bhwc: Tensor) -> Tensor:
        both_c = (probability_bhwc * truth_bhwc).sum((0, 1, 2))
        sizes_c = probability_bhwc.sum((0, 1, 2)) + truth_bhwc.sum((0, 1, 2))
        return (1 - (2 * both_c + 1e-3) / (sizes_c + 1e-3)).sum()

    @staticmethod
    def _squares(found_bhw2: Tensor, true_bhw2: Tensor) -> Tensor:
        difference = found_bhw2 - true_bhw2
        return (difference * difference).mean()

    def _slopes(self, found_bhw2: Tensor, true_bhw2: Tensor, nucleus_bhw: Tensor) -> Tensor:
        focus_bhw2 = torch.stack([nucleus_bhw, nucleus_bhw], -1).float()

        def slopes(map_bhw2: Tensor) -> Tensor:
            each = [F.conv2d(map_bhw2[:, None, ..., i], kernel, padding=2) for i, kernel in enumerate(self.kernels)]
            return torch.cat(each, 1).permute(0, 2, 3, 1).contiguous()

        difference = slopes(found_bhw2) - slopes(true_bhw2)
        return (focus_bhw2 * difference * difference).sum() / (focus_bhw2.sum() + 1e-8)


def targets(inst_hw: np.ndarray) -> Tensor:
    """Return the published HV maps of an instance map, by the transcription that is the tests' oracle."""
    return torch.from_numpy(_ORACLE["reference_hv"](inst_hw))


_ORACLE = names_of("nuclei/test_targets.py")
