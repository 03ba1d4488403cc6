"""Translation, ensembles and large tiles, with translators and segmenters whose answers are known."""

from contextlib import closing

import numpy as np
import pytest
import torch

from ihc2he.images.masks import find_ink
from ihc2he.images.source import ArraySource
from ihc2he.models.handover import Handover
from ihc2he.models.pipeline.assembly import Assembly, assemble
from ihc2he.models.pipeline.inference import predict, submit
from ihc2he.models.pipeline.segmenters import Classical, Segmenter
from ihc2he.models.pipeline.translators import Identity, Translator
from ihc2he.nuclei.classical import detect_nuclei, segment_nuclei
from ihc2he.nuclei.decoders.hover import HoverDecoder
from ihc2he.nuclei.targets import hv_maps
from ihc2he.stain.white import FULL, white_point
from ihc2he.tiling.windows import divide


class Shift(Translator):
    """Its member i adds i / 10 to red."""

    members = 2
    mpp = None

    def forward(self, x_bchw, member=0):
        return x_bchw + member / 10 * torch.tensor([1.0, 0, 0]).view(3, 1, 1)


class FromColour(Segmenter):
    """Reads its maps off the image: red is the probability; the HV maps come from the pieces of red."""

    find = staticmethod(HoverDecoder().find)
    turned_back = staticmethod(HoverDecoder().turned_back)

    def __init__(self, mpp=0.25, members=1):
        super().__init__()
        self.mpp, self.members, self.seen = mpp, members, []

    def forward(self, x_bchw, member=0):
        self.seen.append(tuple(x_bchw.shape[-2:]))
        maps = []
        for image in x_bchw:
            from skimage.measure import label

            inst_hw = label(image[0].numpy() > 0.5, connectivity=1).astype(np.int32)
            maps.append(np.concatenate([image[:1].numpy(), hv_maps(inst_hw)]))
        return torch.from_numpy(np.stack(maps)).float()

    def votes(self, maps_bkhw):
        return (maps_bkhw[:, 0] >= 0.5).float()


def discs(height, width, step=40, radius=9):
    """Return an image with red discs on a lattice, and their centres."""
    rows, columns = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3), np.uint8)
    centres = [(x, y) for y in range(step // 2, height, step) for x in range(step // 2, width, step)]
    for x, y in centres:
        image[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2, 0] = 230
    return image, np.array(centres)


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def nuclei_of(image, segmenter, mpp, translator=None, views=(0,), block=10_000, overlap=0, whites=()):
    translator = translator or Identity()
    blocks = divide(*image.shape[:2], block, overlap)
    with closing(Handover(0)) as pool:
        parts = []
        for b in blocks:
            maps = predict(translator, {"s": segmenter}, tensor(image[b.rows, b.columns]), mpp, views)["s"]
            parts += submit(pool, segmenter, maps, whites)
        return assemble(image.shape[:2], blocks, parts)


def test_nuclei_come_back_on_the_grid_of_the_tile():
    image, centres = discs(120, 160)
    segmenter = FromColour(mpp=0.25)
    he, nuclei = nuclei_of(image, segmenter, mpp=0.5)
    assert segmenter.seen == [(240, 320)]
    assert he.shape == image.shape
    assert nuclei.inst_hw.shape == (120, 160)
    assert nuclei.agreement_n is None
    order = np.lexsort(nuclei.centres_n2.round().T)
    assert nuclei.centres_n2[order] == pytest.approx(centres[np.lexsort(centres.T)], abs=0.6)


@pytest.mark.parametrize("overlap", [24, 40])
def test_blocks_count_every_nucleus_once(overlap):
    image, centres = discs(330, 250)
    _, whole = nuclei_of(image, FromColour(), mpp=0.25)
    he, nuclei = nuclei_of(image, FromColour(), mpp=0.25, block=100, overlap=overlap)
    assert len(divide(330, 250, 100, overlap)) > 6
    assert len(nuclei.centres_n2) == len(whole.centres_n2) == len(centres)
    assert sorted(np.unique(nuclei.inst_hw)) == list(range(len(centres) + 1))
    assert ((nuclei.inst_hw > 0) == (whole.inst_hw > 0)).mean() > 0.999
    assert np.abs(he.astype(int) - image).max() <= 1
    for number, (x, y) in enumerate(nuclei.centres_n2, 1):
        assert nuclei.inst_hw[round(y), round(x)] == number


def test_views_and_members_are_averaged_and_vote():
    image, centres = discs(80, 80)
    image[..., 0][image[..., 0] > 0] = 118  # of 255: below one half, and above it with the second member
    segmenter = FromColour(members=2)
    _, nuclei = nuclei_of(image, segmenter, mpp=0.25, translator=Shift(), views=range(8))
    assert len(segmenter.seen) == 2 * 8 * 2
    assert len(nuclei.centres_n2) == len(centres)
    assert nuclei.agreement_n == pytest.approx(np.full(len(centres), 0.5), abs=0.02)


def test_views_change_nothing_for_a_segmenter_that_is_equivariant():
    image, _ = discs(120, 90)
    _, plain = nuclei_of(image, FromColour(), mpp=0.3)
    _, averaged = nuclei_of(image, FromColour(), mpp=0.3, views=range(8))
    assert ((plain.inst_hw > 0) == (averaged.inst_hw > 0)).mean() > 0.998
    assert len(plain.centres_n2) == len(averaged.centres_n2)


def test_the_classical_segmenter_is_the_classical_detector():
    rng = np.random.default_rng(0)
    image, _ = discs(100, 100)
    tile = 240 - image[..., :1] // 2 * np.ones((1, 1, 3), np.uint8) - rng.integers(0, 10, (100, 100, 3), np.uint8)
    _, nuclei = nuclei_of(tile, Classical(), mpp=0.5, whites=[white_point(tile)])
    assert np.array_equal(nuclei.inst_hw, segment_nuclei(tile))
    assert np.array_equal(nuclei.centres_n2, detect_nuclei(tile))


def test_an_empty_tile_has_no_nuclei():
    for segmenter in (FromColour(), Classical()):
        _, nuclei = nuclei_of(np.zeros((50, 60, 3), np.uint8), segmenter, mpp=0.25)
        assert nuclei.centres_n2.shape == (0, 2)
        assert not nuclei.inst_hw.any()


def test_nuclei_under_ink_are_dropped_and_do_not_move_the_threshold():
    image, centres = discs(120, 160)
    tile = 240 - image[..., :1] // 2 * np.ones((1, 1, 3), np.uint8)
    tile[40:90] = (30, 50, 150)
    ink = find_ink(ArraySource(tile, 0.5), FULL)
    ink_hw = ink.region(slice(None), slice(None))
    blocks = divide(*tile.shape[:2], 10_000, 0)
    with closing(Handover(0)) as pool:
        maps = predict(Identity(), {"s": Classical()}, tensor(tile), 0.5)["s"]
        parts = submit(pool, Classical(), maps, [white_point(tile)], [ink_hw])
        _, nuclei = assemble(tile.shape[:2], blocks, parts, ink)
    outside = [(x, y) for x, y in centres if not 30 <= y <= 100]
    assert len(outside) > 2
    for x, y in outside:
        assert nuclei.inst_hw[round(y), round(x)] > 0
    assert not ink_hw[tuple(np.rint(nuclei.centres_n2).astype(int).T[::-1])].any()


def test_strips_are_the_whole_and_final_when_they_leave():
    image, _ = discs(330, 250)
    blocks = divide(330, 250, 100, 24)
    with closing(Handover(0)) as pool:
        parts = []
        for b in blocks:
            maps = predict(Identity(), {"s": FromColour()}, tensor(image[b.rows, b.columns]), 0.25)["s"]
            parts += submit(pool, FromColour(), maps)
        he, nuclei = assemble(image.shape[:2], blocks, parts)
        assembly = Assembly((330, 250), blocks)
        strips = [(number, strip) for number, part in enumerate(parts) if (strip := assembly.add(part)) is not None]
    columns = sum(block.rows == blocks[0].rows for block in blocks)
    assert [number + 1 for number, _ in strips] == [columns * row for row in range(1, len(blocks) // columns + 1)]
    top = count = 0
    for _, strip in strips:
        assert strip.top == top
        top += len(strip.inst_hw)
        assert np.array_equal(he[strip.top : top], strip.he)
        assert np.array_equal(nuclei.inst_hw[strip.top : top], strip.inst_hw)
        own = np.unique(strip.nuclei.inst_hw)[1:]
        assert own.tolist() == list(range(count + 1, count + 1 + len(strip.nuclei.types_n)))
        reach = strip.nuclei.inst_hw
        there = nuclei.inst_hw[strip.top : strip.top + len(reach)]
        assert np.array_equal(np.where(np.isin(there, own), there, 0), reach)  # with all of their pixels
        count += len(own)
    assert (top, count) == (330, len(nuclei.types_n))
