"""Nuclei as star-convex shapes (Schmidt et al., MICCAI 2018): how far it is from each pixel to the border, 8 ways."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.models.segmentation.module import NucleiSegmenter
from ihc2he.models.segmentation.networks import MapNetwork
from ihc2he.nuclei.decoders.base import Decoder, Found, Nuclei
from ihc2he.tiling.augmentation import turned_back

N = 8
DX, DY = (np.rint(1e3 * f(np.arange(N) * 2 * np.pi / N)) / 1e3 for f in (np.cos, np.sin))


class StarDecoder(Decoder):
    """Probability of nucleus and distances in um; nuclei of the likeliest pixels first.

    Args:
        reach_um: the longest distance that is looked for.
    """

    def __init__(self, reach_um: float = 8.0) -> None:
        self.reach_um = reach_um

    def channels(self, n_types: int) -> dict[str, int]:
        return {"nucleus": 1, "rays": N}

    def targets(self, inst_hw, mpp):
        h, w = inst_hw.shape
        rays = np.zeros((N, h, w), np.float32)
        y, x = np.mgrid[:h, :w]
        for k in range(N):
            inside = inst_hw > 0
            for step in range(1, int(self.reach_um / mpp) + 1):
                if not inside.any():
                    break
                rays[k] += inside
                to = np.rint(y + step * DY[k]).astype(int), np.rint(x + step * DX[k]).astype(int)
                there = (to[0] >= 0) & (to[0] < h) & (to[1] >= 0) & (to[1] < w)
                inside &= there & (inst_hw[to[0].clip(0, h - 1), to[1].clip(0, w - 1)] == inst_hw)
        return {"rays": rays * np.float32(mpp)}

    def join(self, raw: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([raw["nucleus"].float().sigmoid(), raw["rays"].float().relu()], 1)

    def turned_back(self, maps_bkhw: Tensor, view: int) -> Tensor:
        maps_bkhw = turned_back(maps_bkhw, view, None)
        dx, dy = (DY, DX) if view & 4 else (DX, DY)
        dx, dy = (-dx if view & 1 else dx), (-dy if view & 2 else dy)
        source = np.rint(np.arctan2(dy, dx) / (2 * np.pi) * N).astype(int) % N
        return torch.cat([maps_bkhw[:, :1], maps_bkhw[:, 1:][:, torch.from_numpy(source)]], 1)

    def votes(self, maps_bkhw: Tensor) -> Tensor:
        return (maps_bkhw[:, 0] >= 0.5).float()

    def find(self, maps_khw, mpp):
        prob_hw, rays_khw = maps_khw[0], maps_khw[1:] / mpp
        inst_hw = np.zeros(prob_hw.shape, np.int32)
        score_hw = prob_hw * rays_khw.min(0)  # the middle of a nucleus first
        centres, scores = [], []
        for place in np.argsort(-score_hw, axis=None, kind="stable"):
            y, x = divmod(int(place), prob_hw.shape[1])
            if score_hw[y, x] * mpp < 1:
                break
            if prob_hw[y, x] < 0.5 or inst_hw[y, x]:
                continue
            corners = np.stack([x + DX * rays_khw[:, y, x], y + DY * rays_khw[:, y, x]], 1)
            drawn = cv2.fillPoly(np.zeros(prob_hw.shape, np.uint8), [np.rint(corners).astype(np.int32)], 1) > 0
            inst_hw[drawn & (inst_hw == 0)] = len(centres) + 1
            inst_hw[y, x] = len(centres) + 1
            centres.append((x, y))
            scores.append(prob_hw[y, x])
        n = len(centres)
        nuclei = Nuclei(inst_hw, np.zeros(n, np.int64), np.ones(n, np.float32))
        return Found(nuclei, np.array(centres, np.float64).reshape(n, 2), np.array(scores, np.float32))


class StarNet(MapNetwork):
    """A few convolutions."""

    def __init__(self, channels: Mapping[str, int], width: int = 16) -> None:
        super().__init__()
        self.channels = dict(channels)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, width, 5, padding=2), nn.ReLU()
        )
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, n, 1) for name, n in self.channels.items()})

    def forward(self, x_bchw: Tensor) -> dict[str, Tensor]:
        x_bchw = self.body(x_bchw)
        return {name: head(x_bchw) for name, head in self.heads.items()}


class StarSegmenter(NucleiSegmenter):
    """What there is to learn of rays."""

    def terms(self, maps: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nucleus = (targets["inst"] > 0).float()
        error = (maps["rays"].float() - targets["rays"]).abs().mean(1)
        return {
            "nucleus": F.binary_cross_entropy_with_logits(maps["nucleus"].float()[:, 0], nucleus),
            "rays": (error * nucleus).sum() / nucleus.sum().clamp_min(1),
        }
