"""HoVer maps (Graham et al., Medical Image Analysis 2019): how far each pixel is from the centre of its nucleus.

Shape suffixes: b = batch, k = maps (nucleus, horizontal, vertical, then background and types), h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.decoders.base import Decoder, Found, likeliest, require_share, typed
from ihc2he.nuclei.instances import centroids, means
from ihc2he.nuclei.postprocess import segment
from ihc2he.nuclei.targets import hv_maps

if TYPE_CHECKING:
    from torch import Tensor

HV = (1, 2)  # the horizontal and the vertical map, among the joined ones
TYPES = 3  # the first map of types


class HoverDecoder(Decoder):
    """Probability of nucleus, horizontal and vertical map, and with types the probability of background and of each.

    A network gives `np` (logits of background and nucleus), `hv` and, with types, `tp` (logits). The score of a nucleus
    is its mean probability.

    Args:
        keep_unmarked: see `ihc2he.nuclei.postprocess.segment`; the reference does not.
        threshold: least probability of a nucleus.

    Raises:
        ConfigError: for a threshold that is not between 0 and 1.
    """

    def __init__(self, keep_unmarked: bool = True, threshold: float = 0.5) -> None:
        require_share("threshold", threshold)
        self.keep_unmarked = keep_unmarked
        self.threshold = threshold

    def channels(self, n_types: int) -> dict[str, int]:
        return {"np": 2, "hv": 2} | ({"tp": n_types + 1} if n_types else {})

    def targets(self, inst_hw: NDArray[np.int32], mpp: float) -> dict[str, NDArray[np.float32]]:
        return {"hv": hv_maps(inst_hw)}

    def join(self, raw: Mapping[str, Tensor]) -> Tensor:
        import torch

        parts = [raw["np"].float().softmax(1)[:, 1:], raw["hv"].float()]
        if "tp" in raw:
            parts.append(raw["tp"].float().softmax(1))
        return torch.cat(parts, 1)

    def turned_back(self, maps_bkhw: Tensor, view: int) -> Tensor:
        from ihc2he.tiling.augmentation import turned_back

        return turned_back(maps_bkhw, view, HV)

    def votes(self, maps_bkhw: Tensor) -> Tensor:
        return (maps_bkhw[:, 0] >= self.threshold).float()

    def reduced(self, maps_bkhw: Tensor) -> Tensor:
        return likeliest(maps_bkhw, TYPES)

    def find(self, maps_khw: NDArray[np.float32], mpp: float) -> Found:
        inst_hw = segment(maps_khw[0], maps_khw[1:3], mpp, self.keep_unmarked, self.threshold)
        return Found(typed(inst_hw, maps_khw, TYPES), centroids(inst_hw), means(maps_khw[0], inst_hw))
