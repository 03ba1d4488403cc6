"""Several translators of a tile as one method."""

import numpy as np
import pytest
import torch

from ihc2he.images.source import ArraySource
from ihc2he.models.pipeline.fusing import Fused
from ihc2he.models.pipeline.inference import predict
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.pipeline.translators import Identity, Translator
from ihc2he.stain.white import FULL


class Red(Segmenter):
    """Its map is red."""

    mpp = 0.25

    def forward(self, x_bchw, member=0):
        return x_bchw[:, :1]

    def votes(self, maps_bkhw):
        return (maps_bkhw[:, 0] >= 0.5).float()


class Coarse(Translator):
    """Darkens by what it has prepared, at 0.5 um/px, with two members."""

    mpp = 0.5
    members = 2

    def __init__(self):
        super().__init__()
        self.seen = []

    def prepare(self, image):
        return 0.25

    def forward(self, x_bchw, member=0, states=()):
        self.seen.append((tuple(x_bchw.shape[-2:]), member, list(states)))
        return x_bchw * (states[0] + member)


def test_the_maps_are_the_mean_over_all_members_each_at_its_own_pixel_size():
    coarse = Coarse()
    fused = Fused({"none": Identity(), "coarse": coarse})
    x_bchw = torch.full((1, 3, 8, 12), 0.6)
    image = ArraySource(np.full((8, 12, 3), 153, np.uint8), 0.25)
    maps = predict(fused, {"s": Red()}, x_bchw, 0.25, states=[fused.prepare(image)])["s"]
    torch.testing.assert_close(maps.maps_bkhw, torch.full((1, 1, 8, 12), (0.6 + 0.25 * 0.6 + 1.25 * 0.6) / 3))
    assert coarse.seen == [((4, 6), 0, [0.25]), ((4, 6), 1, [0.25])]
    torch.testing.assert_close(maps.votes_bhw, torch.full((1, 8, 12), 2 / 3))
    torch.testing.assert_close(maps.he_bchw, 0.25 * x_bchw)  # of the first that translates


def test_the_white_point_is_that_of_the_mean_density():
    image = ArraySource(np.full((8, 8, 3), 200, np.uint8), 0.5)
    image.white = (200.0, 220.0, 240.0)

    class Lit(Identity):
        def white_of(self, image):
            return FULL

    found = Fused({"a": Identity(), "b": Lit()}).white_of(image)
    assert found == pytest.approx([(255 * value) ** 0.5 for value in image.white])
