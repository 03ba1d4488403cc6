import cv2
import numpy as np
import pytest
import torch

from ihc2he.export.instances import CentresToLabels
from ihc2he.nuclei.decoders.centres import CentresDecoder

MPP = 0.5


@pytest.fixture(scope="module")
def scripted():
    return torch.jit.script(CentresToLabels(CentresDecoder(0.5, 0.4), MPP))


def smooth(rng, shape, sigma):
    map_hw = cv2.GaussianBlur(rng.random(shape).astype(np.float32), (0, 0), sigma)
    return (map_hw - map_hw.min()) / np.ptp(map_hw)


def maps(seed, shape, kinds):
    rng = np.random.default_rng(seed)
    types_khw = rng.dirichlet(np.ones(kinds), shape).transpose(2, 0, 1) if kinds else np.zeros((0, *shape))
    return np.concatenate([[smooth(rng, shape, 3)], [smooth(rng, shape, 1.5)], types_khw]).astype(np.float32)


def same_partition(a_hw, b_hw):
    pairs = np.unique(np.stack([a_hw.ravel(), b_hw.ravel()]), axis=1).shape[1]
    return pairs == len(np.unique(a_hw)) == len(np.unique(b_hw))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kinds", [0, 4])
def test_the_same_nuclei_as_those_of_the_decoder(scripted, seed, kinds):
    maps_khw = maps(seed, (40 + 31 * seed, 150 - 17 * seed), kinds)
    decoder = CentresDecoder(0.5, 0.4)
    found = decoder.find(decoder.reduced(torch.from_numpy(maps_khw)[None])[0].numpy(), MPP).nuclei
    labels_hw, types_n = scripted(torch.from_numpy(maps_khw))
    assert found.inst_hw.max() > 5
    assert same_partition(labels_hw.numpy(), found.inst_hw)
    for number, kind in enumerate(types_n.tolist(), 1):
        (own,) = np.unique(found.inst_hw[labels_hw.numpy() == number])
        assert kind == found.types_n[own - 1]


def test_a_hole_belongs_to_its_nucleus_and_a_gap_between_two_to_none(scripted):
    mask_hw = np.zeros((40, 60), np.float32)
    mask_hw[5:25, 5:25] = mask_hw[5:25, 30:50] = 0.9
    mask_hw[12:15, 12:15] = 0
    heat_hw = cv2.GaussianBlur(mask_hw, (0, 0), 3)
    labels_hw = scripted(torch.from_numpy(np.stack([mask_hw, heat_hw])))[0].numpy()
    assert labels_hw[13, 13] == labels_hw[6, 6] > 0
    assert labels_hw[13, 27] == 0
    assert labels_hw[13, 40] not in (0, labels_hw[6, 6])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_map_without_structure(scripted, value):
    labels_hw, types_n = scripted(torch.full((2, 33, 41), value))
    assert (labels_hw == int(value)).all()
    assert len(types_n) == int(value)
