"""Stains of IHC tiles are measured: on simulated tissue with a known truth, and on what is painted."""

from dataclasses import replace

import numpy as np
import pytest

from ihc2he.simulate.scene import cut, draw_block
from ihc2he.simulate.tile import draw_case, photograph_ihc, tile_rng
from ihc2he.simulate.tissue import BREAST, ENDOMETRIUM, Marker
from ihc2he.stain.looks import Ranges, look_like
from ihc2he.stain.measuring import StainStatistics, measure

NUCLEAR = Marker("nucleus")


def simulated(seed, positive=0.9, marker=NUCLEAR, tissue=ENDOMETRIUM, **changed):
    """The IHC slide of a simulated case and one of its tiles."""
    case = draw_case(tissue, marker, seed, 0)
    case = replace(case, ihc=replace(case.ihc, positive=positive, **changed))
    rng = tile_rng(seed, 0)
    return case, photograph_ihc(cut(draw_block(case.tissue, 256, 0.5, rng), rng), case, rng)


@pytest.mark.parametrize("seed", range(3))
def test_colours_of_stains_and_glass_are_found(seed):
    case, image = simulated(seed, positive=0.5)
    found = measure(image, 0.5)
    for vector, truth in ((found.hematoxylin, case.ihc.vectors[0]), (found.dab, case.ihc.vectors[1])):
        assert np.degrees(np.arccos(np.dot(vector, truth))) < 8
    assert np.array(found.glass) * 255 == pytest.approx(case.ihc_scanner.white, abs=6)


def test_more_positive_nuclei_are_found_where_there_are_more():
    for seed in range(3):
        few, many = (measure(simulated(seed, positive)[1], 0.5).positive for positive in (0.2, 0.9))
        assert few == pytest.approx(0.2, abs=0.2)
        assert many == pytest.approx(0.9, abs=0.12)


@pytest.mark.parametrize(
    ("name", "key"), [("hematoxylin", "counterstain"), ("counter", "strength"), ("background", "background")]
)
def test_twice_as_much_stain_is_found_as_twice_as_much(name, key):
    little = simulated(0)[0].ihc
    once, twice = (
        getattr(measure(simulated(0, positive=0.5, **{name: factor * getattr(little, name)})[1], 0.5), key)
        for factor in (0.6, 1.2)
    )
    assert 1.4 < twice / once < 2.6


def test_membranes_are_told_from_nuclei():
    nuclear = measure(simulated(0)[1], 0.5).solid
    membranous = measure(simulated(7, marker=Marker("membrane", 2), tissue=BREAST)[1], 0.5).solid
    assert membranous < 0.5 < 0.8 < nuclear


def test_nuclei_within_complete_membranes_are_told_from_brown_nuclei():
    around = [
        measure(simulated(seed, marker=Marker("membrane", 3), tissue=BREAST)[1], 0.5).enclosed for seed in range(3)
    ]
    assert np.median(around) > 0.1
    assert max(measure(simulated(seed)[1], 0.5).enclosed for seed in range(3)) < 0.03


def test_of_an_empty_tile_nothing_is_measured():
    assert measure(np.full((64, 64, 3), 240, np.uint8), 0.5) is None


def test_without_brown_there_is_no_dab():
    found = measure(simulated(0, counter=0.0, background=0.0)[1], 0.5)
    assert (found.dab, found.strength, found.solid, found.positive) == (None, None, None, 0.0)
    look = look_like(found, Ranges(), np.random.default_rng(0))
    assert look.positive == 0
    assert look.counterstain == pytest.approx(found.counterstain, rel=0.6)


TILE = StainStatistics(
    glass=(0.9, 0.91, 0.92), hematoxylin=(0.8, 0.5, 0.33), dab=(0.3, 0.55, 0.78), counterstain=0.25, positive=0.7,
    strength=0.8, spread=0.3, background=0.05, solid=0.95, enclosed=0.0,
)  # fmt: skip


def test_a_look_like_a_tile_has_its_stains():
    looks = [look_like(TILE, Ranges(), np.random.default_rng(seed)) for seed in range(200)]
    assert {look.site for look in looks} == {"nucleus"}
    assert {look.glass for look in looks} == {TILE.glass}
    for name in ("counterstain", "strength", "spread", "background", "positive"):
        values = [getattr(look, name) for look in looks]
        assert np.median(values) == pytest.approx(getattr(TILE, name), rel=0.2)
        assert len(set(values)) > 100
    for name in ("hematoxylin", "dab"):
        mean = np.mean([getattr(look, name) for look in looks], axis=0)
        assert mean == pytest.approx(np.array(getattr(TILE, name)), abs=0.02)


@pytest.mark.parametrize(
    ("measured", "sites"), [({"solid": 0.3}, {"membrane"}), ({"enclosed": 0.2}, {"membrane", "cytoplasm"})]
)
def test_a_look_like_a_tile_has_its_marker_where_the_tile_has(measured, sites):
    tile = replace(TILE, **measured)
    assert {look_like(tile, Ranges(), np.random.default_rng(seed)).site for seed in range(50)} == sites
