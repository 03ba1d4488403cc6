"""Nuclei lost and invented, and brown that became blue, on drawn tiles."""

import math

import numpy as np
import pytest

from ihc2he.metrics.content import content_change
from ihc2he.stain.deconvolution import DAB, EOSIN, HEMATOXYLIN

MPP = 0.5
CENTRES = [(12, 12), (12, 44), (44, 12), (44, 44)]


def discs(centres, radius=6, side=60):
    """Return an instance map of discs."""
    inst_hw = np.zeros((side, side), np.int32)
    y, x = np.mgrid[:side, :side]
    for number, (cy, cx) in enumerate(centres, 1):
        inst_hw[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return inst_hw


def drawn(**densities_hw):
    vectors = {"hematoxylin": HEMATOXYLIN, "eosin": EOSIN, "dab": DAB}
    od_hwc = sum(
        density[..., None] * np.array(vectors[stain]) / np.linalg.norm(vectors[stain])
        for stain, density in densities_hw.items()
    )
    return np.rint(255 * 10**-od_hwc).astype(np.uint8)


@pytest.fixture
def ihc():
    inst_hw = discs(CENTRES)
    ring_hw = (discs(CENTRES, 9) > 0) & (inst_hw == 0)
    return drawn(hematoxylin=0.6 * (inst_hw > 0), dab=0.6 * ring_hw)


@pytest.mark.parametrize(
    ("kept", "others", "lost", "invented"),
    [(4, [], 0, 0), (3, [], 1, 0), (4, [(28, 28)], 0, 1), (1, [(28, 28), (28, 52)], 3, 2)],
)
def test_what_is_lost_and_invented_is_counted(ihc, kept, others, lost, invented):
    made = discs(CENTRES[:kept] + others) > 0
    he = drawn(hematoxylin=0.8 * made, eosin=np.full(made.shape, 0.2))
    change = content_change(ihc, he, discs(CENTRES), MPP)
    assert (change["lost"], change["invented"]) == (lost, invented)


def test_hematoxylin_counts_as_leakage_where_the_ihc_is_brown_and_no_nucleus_is(ihc):
    inst_hw = discs(CENTRES)
    ring_hw = (discs(CENTRES, 9) > 0) & (inst_hw == 0)
    clean = drawn(hematoxylin=0.6 * (inst_hw > 0))
    leaked = drawn(hematoxylin=0.6 * (inst_hw > 0) + 0.3 * ring_hw)
    assert content_change(ihc, clean, inst_hw, MPP)["dab_leakage"] == pytest.approx(0, abs=5e-3)
    assert content_change(ihc, leaked, inst_hw, MPP)["dab_leakage"] == pytest.approx(0.3, abs=5e-3)
    assert math.isnan(content_change(clean, clean, inst_hw, MPP)["dab_leakage"])


def test_a_tile_without_nuclei(ihc):
    blank = np.full((60, 60, 3), 255, np.uint8)
    change = content_change(blank, blank, np.zeros((60, 60), np.int32), MPP)
    assert (change["lost"], change["invented"]) == (0, 0)
    assert content_change(ihc, blank, discs(CENTRES), MPP)["lost"] == 4
