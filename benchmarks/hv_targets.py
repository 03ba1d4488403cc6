"""Times our HoVer targets against the published ones and MONAI's.

    python benchmarks/hv_targets.py [seconds=5] [side=1024]

The published method (a transcription, the oracle of `tests/nuclei/test_targets.py`) separates the pieces of cut nuclei
first; so do we in its rows. MONAI does not; in its rows neither do we. The difference from the published values is that
of `reference_quirks` and ought to be 0.
"""

from __future__ import annotations

import numpy as np
from timing import Row, argument, finish, has_peer, names_of, ratios, take_turns

from ihc2he.nuclei.targets import hv_maps, relabel_pieces

TILES = ((256, 40), (1024, 600))  # side in px, nuclei


def against_published(side: int, count: int, seconds: int) -> list[Row]:
    """Return the row of a tile, timed for so many seconds or a little more."""
    inst_hw = names_of("nuclei/conftest.py")["draw_ellipses"](side, count)
    published = names_of("nuclei/test_targets.py")["reference_hv"]
    difference = np.abs(hv_maps(relabel_pieces(inst_hw), reference_quirks=True) - published(inst_hw)).max()
    calls = {"published": lambda: published(inst_hw), "ours": lambda: hv_maps(relabel_pieces(inst_hw))}
    return ratios(
        f"HoVer targets, {side} px", take_turns(calls, seconds), {"published": f"difference {difference:.0e}"}
    )


def against_monai(side: int, count: int, seconds: int) -> list[Row]:
    """Return the row of a tile, timed for so many seconds or a little more."""
    from monai.transforms import ComputeHoVerMaps

    inst_hw = names_of("nuclei/conftest.py")["draw_ellipses"](side, count)
    monai = ComputeHoVerMaps()
    difference = np.abs(hv_maps(inst_hw) - monai(inst_hw[None]).numpy()).max()
    calls = {"MONAI": lambda: monai(inst_hw[None]), "ours": lambda: hv_maps(inst_hw)}
    return ratios(
        f"HoVer targets, one piece each, {side} px",
        take_turns(calls, seconds),
        {"MONAI": f"difference {difference:.0e}"},
    )


if __name__ == "__main__":
    contenders = [against_published, *([against_monai] if has_peer("monai") else [])]
    tiles = [tile for tile in TILES if tile[0] <= argument("side", 1024)]
    finish("hv_targets", [row for tile in tiles for rows in contenders for row in rows(*tile, argument("seconds", 5))])
