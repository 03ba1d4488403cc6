"""H&E painted as IHC: what is stained, what stays white, what the same seed gives."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.errors import ConfigError
from ihc2he.simulate.stains import absorb
from ihc2he.stain.deconvolution import separate
from ihc2he.stain.looks import SITES, Look, Ranges, draw_look
from ihc2he.stain.painting import paint, paint_as
from ihc2he.stain.recolour import EOSIN, HEMATOXYLIN

PLAIN = Look(
    site="nucleus", hematoxylin=(0.650, 0.704, 0.286), dab=(0.268, 0.570, 0.776), counterstain=0.3, pallor=0.5,
    flatness=0.5, positive=1.0, clustering=0.0, by_type=False, strength=0.6, spread=0.0, texture=0.0, blocking=1.0,
    edge=0.02, leak=0.0, reach=3.0, width=0.7, completeness=1.2, background=0.0, unevenness=0.0, grain=0.0,
    stroma=0.0, warmth=0.5, scatter=0.0, glare=0.0, glass=(1.0, 1.0, 1.0), blur=0.0, sharpening=0.0, noise=0.0, jpeg=0,
)  # fmt: skip


def tissue(side_um=48.0, mpp=0.25, spacing_um=12.0, radius_um=3.0, glass_um=12.0):
    """H&E with round nuclei on a grid and a strip of glass on the left; nuclei, and types 1 (upper half) and 2."""
    side = round(side_um / mpp)
    y_hw, x_hw = (np.mgrid[:side, :side] + 0.5) * mpp
    row_hw, column_hw = y_hw // spacing_um, x_hw // spacing_um
    away_hw = np.hypot(y_hw % spacing_um - spacing_um / 2, x_hw % spacing_um - spacing_um / 2)
    inst_hw = ((away_hw < radius_um) & (x_hw > glass_um)) * (1 + row_hw * (side_um // spacing_um) + column_hw)
    inst_hw = inst_hw.astype(np.int32)
    type_hw = np.where(inst_hw > 0, np.where(y_hw < side_um / 2, 1, 2), 0).astype(np.int32)
    amounts_hws = np.stack([0.1 + 0.5 * (inst_hw > 0), np.where(inst_hw > 0, 0.1, 0.3)], -1)
    od_hwc = absorb(amounts_hws, (HEMATOXYLIN, EOSIN)) * (x_hw > glass_um)[..., None]
    return np.round(255 * 10**-od_hwc).astype(np.uint8), inst_hw, type_hw


def dab_of(image):
    return separate(image, (PLAIN.hematoxylin, PLAIN.dab))[..., 1]


def painted(look=PLAIN, mpp=0.25, seed=0, types=None, **changed):
    image, inst_hw, _ = tissue(mpp=mpp)
    return paint_as(replace(look, **changed), image, inst_hw, mpp, np.random.default_rng(seed), types)


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_dab_is_in_nuclei_and_nowhere_else(mpp):
    _, inst_hw, _ = tissue(mpp=mpp)
    dab_hw = dab_of(painted(mpp=mpp))
    inner_hw, outer_hw = (
        change((inst_hw > 0).astype(np.uint8), np.ones((5, 5))) > 0 for change in (cv2.erode, cv2.dilate)
    )
    assert dab_hw[inner_hw] == pytest.approx(0.6, abs=0.05)
    assert np.abs(dab_hw[~outer_hw]).max() < 0.03


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_membranes_are_around_nuclei_as_far_away_in_um_at_any_pixel_size(mpp):
    image, inst_hw, _ = tissue(mpp=mpp)
    look = replace(PLAIN, site="membrane", strength=1.0, completeness=2.0)
    dab_hw = dab_of(paint_as(look, image, inst_hw, mpp, np.random.default_rng(0)))
    centre = round(18 / mpp)  # um, of a nucleus
    profile = dab_hw[centre, centre:]  # to the right
    reached_um = np.argmax(profile[: round(6 / mpp)]) * mpp
    assert profile[: round(2 / mpp)].max() < 0.05  # nothing on the nucleus
    assert 3.5 < reached_um < 6  # its radius of 3 um and what is reached of 3 um
    assert profile[: round(6 / mpp)].max() > 0.5


def test_broken_membranes_are_less_than_complete_ones():
    whole, broken = (
        dab_of(painted(site="membrane", completeness=completeness)).clip(0).mean() for completeness in (1.2, 0.3)
    )
    assert 0.1 * whole < broken < 0.7 * whole


def test_cytoplasmic_dab_is_around_nuclei_and_little_in_them():
    _, inst_hw, _ = tissue()
    dab_hw = dab_of(painted(site="cytoplasm"))
    y_hw, x_hw = np.mgrid[:192, :192] * 0.25
    away_hw = np.hypot(y_hw % 12 - 6, x_hw % 12 - 6)
    ring_hw = (away_hw > 3.3) & (away_hw < 3.8) & (x_hw > 12)
    assert dab_hw[ring_hw].mean() > 3 * dab_hw[inst_hw > 0].mean()


@pytest.mark.parametrize("site", SITES)
def test_without_positive_cells_and_background_there_is_no_dab(site):
    assert np.abs(dab_of(painted(site=site, positive=0.0))).max() < 0.02


def test_background_is_on_tissue_alone():
    dab_hw = dab_of(painted(positive=0.0, background=0.3))
    assert dab_hw[:, 60:].mean() > 0.15
    assert np.abs(dab_hw[:, :40]).max() == 0


def test_hematoxylin_shines_through_dab_and_less_where_it_blocks():
    _, inst_hw, _ = tissue()
    through, blocked = (
        separate(painted(blocking=blocking), (PLAIN.hematoxylin, PLAIN.dab))[inst_hw > 0, 0].mean()
        for blocking in (0.0, 2.0)
    )
    assert through == pytest.approx(0.3, abs=0.05)
    assert blocked == pytest.approx(through * np.exp(-2 * 0.6), abs=0.05)


def test_the_share_of_positive_nuclei_and_their_spread_are_those_of_the_look():
    image, inst_hw, _ = tissue(side_um=240.0)
    look = replace(PLAIN, positive=0.3, spread=0.4, flatness=1.0)
    dab_hw = dab_of(paint_as(look, image, inst_hw, 0.25, np.random.default_rng(1)))
    of_each = np.array([np.median(dab_hw[inst_hw == label]) for label in np.unique(inst_hw)[1:]])
    positive = of_each > 0.1
    assert len(of_each) == 380
    assert positive.mean() == pytest.approx(0.3, abs=0.07)
    assert np.log(of_each[positive]).std() == pytest.approx(0.4, abs=0.1)


def test_types_can_differ_in_their_share():
    image, inst_hw, type_hw = tissue()
    shares = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        dab_hw = dab_of(paint_as(replace(PLAIN, by_type=True), image, inst_hw, 0.25, rng, type_hw))
        shares.append([(dab_hw[type_hw == kind] > 0.3).mean() for kind in (1, 2)])
    apart = np.abs(np.diff(shares)[:, 0])
    assert (apart > 0.6).sum() >= 5
    assert (apart < 0.4).sum() >= 5
    alike = dab_of(painted(types=tissue()[2]))
    assert (alike[inst_hw > 0] > 0.3).mean() > 0.95


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), mpp=st.sampled_from([0.25, 0.5]), typed=st.booleans())
def test_any_look_leaves_labels_as_they_are_and_the_same_seed_gives_the_same_bytes(seed, mpp, typed):
    image, inst_hw, type_hw = tissue(mpp=mpp)
    before = image.copy(), inst_hw.copy(), type_hw.copy()
    types = type_hw if typed else None
    first, again, other = (
        paint(image, inst_hw, mpp, np.random.default_rng(one), type_hw=types) for one in (seed, seed, seed + 1)
    )
    assert (first == again).all()
    assert (first != other).any()
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    assert all((now == was).all() for now, was in zip((image, inst_hw, type_hw), before, strict=True))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(1, 70))
def test_white_stays_white_as_glass_is(seed, side):
    rng = np.random.default_rng(seed)
    look = replace(draw_look(Ranges(), rng), noise=0.0, jpeg=0)
    white = np.full((side, side + 3, 3), 255, np.uint8)
    made = paint_as(look, white, np.ones((side, side + 3), np.int32), 0.25, rng)
    assert np.abs(made - np.rint(255 * np.array(look.glass))).max() <= 1


def test_glass_beside_tissue_stays_white():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        look = replace(draw_look(Ranges(), rng), noise=0.0, jpeg=0, sharpening=0.0)
        image, inst_hw, _ = tissue()
        glass = paint_as(look, image, inst_hw, 0.25, rng)[:, : round(10 / 0.25)]
        assert np.abs(glass - np.rint(255 * np.array(look.glass))).max() <= 1


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("labels", [[], [(5, 5)], [(0, 0), (39, 39)]], ids=["empty", "one pixel", "corners"])
def test_maps_of_few_tiny_nuclei(site, labels):
    inst_hw = np.zeros((40, 40), np.int32)
    for number, at in enumerate(labels):
        inst_hw[at] = 70_000 * (number + 1)
    image = np.full((40, 40, 3), (190, 120, 180), np.uint8)
    made = paint_as(replace(PLAIN, site=site), image, inst_hw, 0.25, np.random.default_rng(0))
    assert made.shape == image.shape


def test_labels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"labels of the image's size \(8, 8\), found \(8, 9\)"):
        paint(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.int32), 0.25, np.random.default_rng(0))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_looks_are_within_their_ranges(seed):
    ranges = Ranges()
    look = draw_look(ranges, np.random.default_rng(seed))
    for name in ("counterstain", "strength", "spread", "background", "stroma", "blur", "noise"):
        low, high = getattr(ranges, name)
        assert low <= getattr(look, name) <= high
    assert look.jpeg == 0 or 60 <= look.jpeg <= 95
    assert np.linalg.norm(look.dab) == pytest.approx(1)
    assert all(0.8 < value <= 1 for value in look.glass)


def test_sites_come_as_often_as_they_should():
    ranges = Ranges(sites=(0.2, 0.5, 0.3), none=0.25, all=0.25)
    looks = [draw_look(ranges, np.random.default_rng(seed)) for seed in range(1000)]
    for site, share in zip(SITES, ranges.sites, strict=True):
        assert np.mean([look.site == site for look in looks]) == pytest.approx(share, abs=0.05)
    for positive in (0.0, 1.0):
        assert np.mean([look.positive == positive for look in looks]) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": (1.0, 0.5)}, r"ranges.strength=\[1.0, 0.5\]: expected two numbers in order, from 0"),
        ({"positive": (0.0, 1.5)}, r"ranges.positive=\[0.0, 1.5\]: expected two numbers in order, from 0 to 1"),
        ({"sites": (0.5, 0.6, 0.1)}, r"ranges.sites=\(0.5, 0.6, 0.1\): expected chances of nucleus, membrane"),
        ({"none": 0.7, "all": 0.7}, r"ranges.none=0.7 and all=0.7: expected chances that add to 1 at most"),
        ({"by_type": -0.1}, r"ranges.by_type=-0.1: expected a chance from 0 to 1"),
        ({"dab": ((0.2, 0.5), (0.2, 0.5))}, r"ranges.dab=.*: expected two stain vectors"),
    ],
)
def test_impossible_ranges_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Ranges(**wrong)
