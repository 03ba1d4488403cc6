import sys

import numpy as np
import pytest

from ihc2he.errors import ConfigError, DataError
from ihc2he.stain.normalise import normaliser, pooled, statistics, target_statistics, with_statistics

METHODS = ("reinhard", "macenko")
LAB = (np.array([64.0, 22.0, -17.0]), np.array([17.0, 8.0, 7.0]))
TARGETS = {"reinhard": LAB, "macenko": None}


@pytest.fixture(autouse=True)
def _torchstain():
    pytest.importorskip("torchstain", reason="the extra 'stain' is not installed")


def tissue(seed=0, first=(0.65, 0.70, 0.29), second=(0.27, 0.57, 0.78), strength=1.0):
    """Return a tile of two stains in natural optical density, in patches, with noise."""
    rng = np.random.default_rng(seed)
    amounts_hw2 = rng.gamma(1.0, 0.7, (8, 8, 2)).repeat(8, 0).repeat(8, 1)
    od_hwc = strength * amounts_hw2 @ np.array([first, second]) + 0.02 * rng.random((64, 64, 3))
    return (240 * np.exp(-od_hwc)).clip(0, 255).astype(np.uint8)


def apply(method, image, given="default"):
    target = target_statistics(method, TARGETS[method] if given == "default" else given)
    own = statistics(method, image)
    return None if own is None else with_statistics(method, target, own, image)


def one_pixel():
    tile = np.full((64, 64, 3), 250, np.uint8)
    tile[30, 30] = (90, 60, 120)
    return tile


BARREN = {
    "white": np.full((64, 64, 3), 255, np.uint8),
    "black": np.zeros((64, 64, 3), np.uint8),
    "one colour": np.full((64, 64, 3), (120, 70, 130), np.uint8),
    "one pixel of tissue": one_pixel(),
    "noise on glass": np.random.default_rng(0).integers(240, 256, (64, 64, 3), np.uint8),
    "a single pixel": np.full((1, 1, 3), 90, np.uint8),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BARREN)
@pytest.mark.parametrize("method", METHODS)
def test_a_tile_without_statistics_is_refused_without_a_warning(method, name):
    assert apply(method, BARREN[name]) is None


@pytest.mark.filterwarnings("error")
def test_two_colours_of_one_stain_hold_no_two_stains():
    tile = np.full((64, 64, 3), (120, 70, 130), np.uint8)
    tile[:32] = np.round(240 * (np.array([121, 71, 131]) / 240) ** 0.5).astype(np.uint8)  # half as much of it
    assert apply("macenko", tile) is None
    assert apply("reinhard", tile) is not None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_tissue_comes_back_as_an_image_of_other_colours(method, seed):
    tile = tissue(seed)
    made = apply(method, tile)
    assert (made.shape, made.dtype) == (tile.shape, np.uint8)
    assert np.abs(made.astype(int) - tile).mean() > 5


def test_reinhard_gives_the_means_and_deviations_of_the_target():
    from skimage.color import rgb2lab

    target = (np.array([60.0, 15.0, -12.0]), np.array([10.0, 4.0, 4.0]))  # small, so that no colour leaves RGB
    lab = rgb2lab(apply("reinhard", tissue(), target)).reshape(-1, 3)
    assert lab.mean(0) == pytest.approx(target[0], abs=0.6)  # torchstain rounds down to grey levels
    assert lab.std(0) == pytest.approx(target[1], abs=0.6)


def test_macenko_gives_the_stains_of_the_target():
    tile = tissue(first=(0.6, 0.7, 0.4), second=(0.25, 0.85, 0.45))
    vectors_c2, strongest_2 = pooled("macenko", [apply("macenko", tile)])
    reference = normaliser("macenko")
    assert vectors_c2 == pytest.approx(reference.HERef / np.linalg.norm(reference.HERef, axis=0), abs=0.05)
    assert strongest_2 == pytest.approx(reference.maxCRef, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_brought_to_its_own_statistics_stays_as_it_was(method):
    tile = tissue()
    made = apply(method, tile, pooled(method, [tile]))
    assert np.abs(made.astype(int) - tile).mean() < 3


def test_statistics_of_several_tiles_are_their_means_and_differences_between_tiles_add_no_contrast():
    tiles = [tissue(0), tissue(1, strength=0.5)]
    (mean_0, std_0), (mean_1, std_1) = (pooled("reinhard", [tile]) for tile in tiles)
    mean, std = pooled("reinhard", [*tiles, BARREN["white"]])
    assert mean == pytest.approx((mean_0 + mean_1) / 2)
    assert std == pytest.approx(np.sqrt((std_0**2 + std_1**2) / 2))
    vectors_c2, strongest_2 = pooled("macenko", tiles)
    assert np.linalg.norm(vectors_c2, axis=0) == pytest.approx([1, 1])
    assert strongest_2 == pytest.approx(sum(pooled("macenko", [tile])[1] for tile in tiles) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_targets_without_tissue_are_an_error(method):
    with pytest.raises(DataError, match=f"None of the target tiles has the tissue that {method} needs"):
        pooled(method, BARREN.values())


@pytest.mark.parametrize("method", METHODS)
def test_without_torchstain_the_error_says_what_to_install(method, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchstain"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchstain", None)
    with pytest.raises(ConfigError, match=rf'{method} needs the package torchstain: pip install "ihc2he\[stain\]"'):
        normaliser(method)
