"""Times our post-processing against the published one and MONAI's, on one thread.

    python benchmarks/postprocessing.py [seconds=5] [side=2048]

`instances` goes from the maps of a network to an instance map; `everything` adds boxes, centroids, outlines and types
by majority, from a map of types. The published method is a transcription, the oracle of
`tests/nuclei/test_postprocess.py`. MONAI's runs with the published kernel sizes, up to 1024 px, and takes a map per
type; its Sobel and its Gaussian are others, so its instances differ a little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from timing import Row, argument, finish, has_peer, names_of, ratios, take_turns

from ihc2he.metrics.panoptic import panoptic_stats, qualities
from ihc2he.nuclei.instances import instance_types, overlaps
from ihc2he.nuclei.postprocess import segment
from ihc2he.nuclei.table import nuclei_table

TILES = ((256, 40), (1024, 600), (2048, 2400))  # side in px, nuclei
TYPES = 6
PEER_SIDE = 1024  # px; above it the peer takes long

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]


def instances(side: int, maps: Maps, seconds: int) -> list[Row]:
    """Return the row of a tile, timed for so many seconds or a little more."""
    oracle = names_of("nuclei/test_postprocess.py")
    calls = {
        "published": lambda: oracle["reference_segment"](*maps),
        "ours": lambda: segment(*maps, keep_unmarked=False),
    }
    same = oracle["same_partition"](calls["ours"](), calls["published"]())
    spent = take_turns(calls, seconds)
    return ratios(
        f"maps to instances, {side} px", spent, {"published": "same instances" if same else "DIFFERENT INSTANCES"}
    )


def everything(side: int, maps: Maps, seconds: int, peer: bool) -> list[Row]:
    """Return the rows of a tile, timed for so many seconds or a little more."""
    published = names_of("nuclei/test_postprocess.py")["reference_process"]
    types_hw = np.random.default_rng(0).integers(0, TYPES, maps[0].shape)

    def ours() -> Any:
        inst_hw = segment(*maps, keep_unmarked=False)
        return nuclei_table(inst_hw, *instance_types(inst_hw, types_hw), mpp=0.25)

    calls = {"published": lambda: published(*maps, types_hw), "ours": ours}
    outputs = {}
    if peer:
        calls["MONAI"] = monai(*maps, types_hw)
        pairs = overlaps(segment(*maps, keep_unmarked=False), calls["MONAI"]()[1][0].numpy().astype(np.int32))
        outputs["MONAI"] = f"PQ {qualities(panoptic_stats(pairs)[0])[2]:.3f} to ours"
    return ratios(f"maps to instances, outlines, types, {side} px", take_turns(calls, seconds), outputs)


def monai(prob_hw: NDArray, hv_2hw: NDArray, types_hw: NDArray) -> Callable[[], Any]:
    """Return MONAI's chain as a function of no arguments, which gives what it knows of each nucleus and its map."""
    import torch
    from monai.apps.pathology.transforms.post.array import (
        HoVerNetInstanceMapPostProcessing,
        HoVerNetNuclearTypePostProcessing,
    )

    torch.set_num_threads(1)
    to_instances = HoVerNetInstanceMapPostProcessing(lambda x: x, mask_threshold=0.5, sobel_kernel_size=21)
    to_types = HoVerNetNuclearTypePostProcessing(return_type_map=False)
    prob_1hw, hv = torch.from_numpy(prob_hw[None]), torch.from_numpy(hv_2hw)
    types_khw = torch.nn.functional.one_hot(torch.from_numpy(types_hw), TYPES).permute(2, 0, 1).float().contiguous()

    def call() -> Any:
        found, inst_1hw = to_instances(prob_1hw, hv)
        return to_types(types_khw, found, inst_1hw)[0], inst_1hw

    return call


if __name__ == "__main__":
    cv2.setNumThreads(1)
    rows, seconds, peer = [], argument("seconds", 5), has_peer("monai")
    fixtures = names_of("nuclei/conftest.py")
    for side, count in [tile for tile in TILES if tile[0] <= argument("side", 2048)]:
        maps = fixtures["soften"](fixtures["draw_ellipses"](side, count))
        rows += instances(side, maps, seconds) + everything(side, maps, seconds, peer and side <= PEER_SIDE)
    finish("postprocessing", rows)
