"""Times H&E painted as IHC against the strongest change of colours of the same crop by albumentations.

    python benchmarks/painting.py [seconds=5]

Crops of 256 px of simulated tissue, each of another slide. The reference is `HEStain` with random stain vectors, which
changes the colours of H&E; it draws no marker. A row for each pixel size has all kinds of slides in their usual shares;
three more have one site of the marker each, without JPEG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle

import albumentations as A
import cv2
import numpy as np
from timing import Row, argument, finish, ratios, take_turns

from ihc2he.simulate.scene import cut, draw_block, truth
from ihc2he.simulate.tile import draw_case, photograph_he, tile_rng
from ihc2he.simulate.tissue import BREAST, Marker
from ihc2he.stain.looks import SITES, Look, Ranges, draw_look
from ihc2he.stain.painting import paint_as

CROP = 256  # px
SLIDES = 40  # painted in each round


def crop(mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Return simulated H&E and its nuclei."""
    case, rng = draw_case(BREAST, Marker("nucleus"), 0, 0), tile_rng(0, 0)
    section = cut(draw_block(case.tissue, CROP, mpp, rng), rng)
    return photograph_he(section, case, rng), truth(section)[0]


def measure(case: str, mpp: float, looks: Iterable[Look], seconds: int) -> list[Row]:
    """Return the row of a pixel size, timed for so many seconds or a little more."""
    image, inst_hw = crop(mpp)
    rng, slides = np.random.default_rng(0), cycle(looks)
    change = A.HEStain(method="random_preset", p=1)

    def of_many(one: Callable[[], object]) -> Callable[[], None]:
        def all_of_them() -> None:
            for _ in range(SLIDES):
                one()

        return all_of_them

    calls = {
        "HEStain of albumentations": of_many(lambda: change(image=image)),
        "ours": of_many(lambda: paint_as(next(slides), image, inst_hw, mpp, rng)),
    }
    spent = {name: [cost / SLIDES for cost in costs] for name, costs in take_turns(calls, seconds).items()}
    return ratios(f"painting, {case}", spent, {"HEStain of albumentations": "another task"})


if __name__ == "__main__":
    cv2.setNumThreads(1)
    rng, seconds = np.random.default_rng(0), argument("seconds", 5)
    looks = [draw_look(Ranges(), rng) for _ in range(200)]
    rows = [row for mpp in (0.25, 0.5) for row in measure(f"{CROP} px at {mpp:g} um/px", mpp, looks, seconds)]
    for site in SITES:
        own = [replace(look, site=site, positive=max(look.positive, 0.3), jpeg=0) for look in looks]
        rows += measure(f"the marker in the {site}", 0.25, own, seconds)
    finish("painting", rows)
