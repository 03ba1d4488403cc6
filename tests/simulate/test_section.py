from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from ihc2he.simulate.cells import NUCLEUS, draw_masks, spread
from ihc2he.simulate.optics import plain
from ihc2he.simulate.scene import cut, cut_neighbour, draw_block, truth
from ihc2he.simulate.stains import absorb, expression, he_concentrations, ihc_concentrations
from ihc2he.simulate.tile import photograph_he, photograph_ihc
from ihc2he.simulate.tissue import BREAST, CONNECTIVE, ENDOMETRIUM, EPITHELIAL, NEOPLASTIC, Marker
from ihc2he.stain.deconvolution import separate


def two_discs(distance):
    """Two round nuclei of 10 um side by side, `distance` um apart, at 0.5 um/px."""
    nuclei = np.zeros(2, NUCLEUS)
    nuclei["x"], nuclei["y"] = (30, 30 + distance / 0.5), 30
    nuclei["length"] = nuclei["width"] = 10
    return nuclei


def test_a_mask_has_the_area_of_its_ellipse():
    nuclei = two_discs(100)[:1]
    nuclei["length"], nuclei["width"], nuclei["angle"] = 12, 8, 0.7
    top, _, cover = draw_masks(nuclei, (80, 80), 0.25)
    expected = np.pi / 4 * 12 * 8 / 0.25**2
    nuclei["x"] = nuclei["y"] = 40
    top, _, cover = draw_masks(nuclei, (80, 80), 0.25)
    assert abs((top == 1).sum() / expected - 1) < 0.03
    assert abs(cover.sum() / expected - 1) < 0.05


def test_overlaps_belong_to_the_topmost_nucleus():
    nuclei = two_discs(6)
    top, bottom, _ = draw_masks(nuclei, (60, 90), 0.5)
    alone = [draw_masks(nuclei[i : i + 1], (60, 90), 0.5)[0] > 0 for i in range(2)]
    overlap = alone[0] & alone[1]
    assert overlap.sum() > 20
    assert (top[overlap] == 2).all()
    assert (bottom[overlap] == 1).all()
    np.testing.assert_array_equal(top > 0, alone[0] | alone[1])


@pytest.mark.parametrize(("spacing", "both"), [(1.0, False), (0.85, True)])
def test_spacing_says_how_close_nuclei_may_come(spacing, both):
    stays = spread(two_discs(9), np.full(2, spacing), 0.5)
    assert stays.tolist() == [True, both]


def test_of_three_in_a_row_the_first_in_the_table_decide():
    nuclei = np.concatenate([two_discs(8), two_discs(16)[1:]])
    assert spread(nuclei, np.ones(3), 0.5).tolist() == [True, False, True]


def test_truth_is_dense_and_fits_the_table(section_and_case):
    section, _ = section_and_case
    instances, nuclei = truth(section)
    assert instances.shape == (160, 160)
    assert np.unique(instances).tolist() == list(range(len(nuclei) + 1))
    assert set(nuclei["type"]) <= {1, 2, 3, 4, 5}
    # Each nucleus holds its own centre, but where another covers it or the tile ends.
    inside = (nuclei["x"] > 0) & (nuclei["x"] < 159) & (nuclei["y"] > 0) & (nuclei["y"] < 159)
    at = nuclei["y"][inside].round().astype(int), nuclei["x"][inside].round().astype(int)
    assert (instances[at] == np.flatnonzero(inside) + 1).mean() > 0.9


def test_epithelium_and_stroma_hold_the_types_that_live_there(section_and_case):
    section, _ = section_and_case
    nuclei, depth = section.nuclei, section.plan.depth_hw
    d = depth[nuclei["y"].astype(int), nuclei["x"].astype(int)]
    assert (d[np.isin(nuclei["type"], (NEOPLASTIC, EPITHELIAL))] > 0).all()
    assert (d[nuclei["type"] == CONNECTIVE] < 0).all()


def test_nuclei_hold_more_hematoxylin_than_their_surroundings(section_and_case):
    section, case = section_and_case
    ihc = replace(case.ihc, positive=0.5)
    marked_in_ihc = expression(section.nuclei, ihc, case.marker) > 0
    stains = [
        (he_concentrations(section, case.he), np.zeros_like(marked_in_ihc)),
        (ihc_concentrations(section, ihc, case.marker), marked_in_ihc),
    ]
    for concentrations, marked in stains:
        h = concentrations[..., 0]
        checked = 0
        for i in range(len(section.nuclei)):
            mask = section.top_hw == i + 1
            ring = ndimage.binary_dilation(mask, iterations=4) & (section.top_hw == 0)
            if mask.sum() < 12 or ring.sum() < 12 or marked[i]:
                continue
            checked += 1
            assert h[mask].mean() > h[ring].mean()
        assert checked > 5


def test_without_background_nuclear_dab_sits_in_positive_nuclei_only(draw_section):
    section, case = draw_section(ENDOMETRIUM, 4, unfocused=0.0)
    slide = replace(case.ihc, background=0.0, positive=0.5)
    dab = ihc_concentrations(section, slide, case.marker)[..., 1]
    positive = np.concatenate([[False], expression(section.nuclei, slide, case.marker) > 0])
    assert 0.2 < positive[1:].mean() < 0.7
    marked = positive[section.top_hw] | positive[section.bottom_hw]
    assert (dab[marked] > 0).mean() > 0.95
    outside = ~ndimage.binary_dilation(marked, np.ones((5, 5)))  # outlines are soft
    assert dab[outside].max() == 0
    negative = (section.top_hw > 0) & ~marked
    assert dab[negative].max() == 0


def test_her2_levels_rise_in_strength_and_completeness(draw_section):
    section, case = draw_section(BREAST, 7, epithelium=0.85)
    slide = replace(case.ihc, background=0.0)
    lines = (section.membrane_hw < 0.3) & (section.plan.depth_hw > 2) & (section.top_hw == 0)
    dab = [ihc_concentrations(section, slide, Marker("membrane", level))[..., 1] for level in range(4)]
    assert dab[0].max() == 0
    mean = [d[lines].mean() for d in dab]
    complete = [(d[lines] > 0.1 * slide.counter).mean() for d in dab]
    assert mean[1] < 0.5 * mean[2] < 0.5 * mean[3]
    assert complete[1] < 0.8 * complete[2] < complete[3]
    assert all(d[section.plan.depth_hw < -2].max() == 0 for d in dab)
    epithelial = np.isin(section.nuclei["type"], (NEOPLASTIC, EPITHELIAL))
    states = [expression(section.nuclei, slide, Marker("membrane", level)) for level in range(4)]
    assert [s[epithelial].min() for s in states] == sorted({s[epithelial].max() for s in states})
    assert all(s[~epithelial].max() == 0 for s in states)


@pytest.mark.parametrize("stain", ["he", "ihc"])
def test_concentrations_come_back_through_colour_deconvolution(section_and_case, stain):
    section, case = section_and_case
    slide = getattr(case, stain)
    concentrations = (
        he_concentrations(section, slide) if stain == "he" else ihc_concentrations(section, slide, case.marker)
    )
    image = plain(absorb(concentrations, slide.vectors))
    bright = image.min(-1) >= 20  # below that, one grey level is too much of an optical density
    assert bright.mean() > 0.7
    error = np.abs(separate(image, slide.vectors) - concentrations)[bright]
    assert error.max() < 0.1
    assert error.mean() < 0.006


def test_a_neighbouring_section_keeps_the_structures_but_not_all_cells():
    rng = np.random.default_rng(0)
    block = draw_block(BREAST, 256, 0.46, rng)
    here = cut(block, rng)
    there = cut_neighbour(block, here, 4.0, rng)
    a, b = here.plan.depth_hw > 0, there.plan.depth_hw > 0
    assert (a == b).mean() > 0.8
    assert not (a == b).all()

    # Shared cells fall into place after the best shift of the whole section.
    tree = cKDTree(np.stack([there.nuclei["x"], there.nuclei["y"]], -1) * 0.46)
    at = np.stack([here.nuclei["x"], here.nuclei["y"]], -1) * 0.46
    shifts = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 2), -1).reshape(-1, 2)
    found = [(tree.query(at + shift)[0] < 1.0).mean() for shift in shifts]
    assert 0.2 < max(found) < 0.8
    assert max(found) > 8 * np.median(found)  # of unrelated cells


def test_equal_seeds_give_equal_pixels(draw_section):
    images = []
    for seed in (7, 7, 8):
        section, case = draw_section(BREAST, seed, "membrane", 2, size=64)
        rng = np.random.default_rng(seed)
        images.append((photograph_he(section, case, rng), photograph_ihc(section, case, rng)))
    for k in range(2):
        assert images[0][k].shape == (64, 64, 3)
        np.testing.assert_array_equal(images[0][k], images[1][k])
        assert (images[0][k] != images[2][k]).any()
