import os
from pathlib import Path

import numpy as np
import pytest

from ihc2he.images.decoding import read_image
from ihc2he.stain.deconvolution import IHC, optical_density, separate
from ihc2he.stain.white import FULL, relative_to_white, white_point

REALDATA = os.environ.get("IHC2HE_REALDATA")
real = pytest.mark.skipif(not REALDATA, reason="IHC2HE_REALDATA names no folder of real tiles")


def tile(seed: int = 0, side: int = 200, glass: float = 0.3) -> np.ndarray:
    """Brown and blue tissue of rough texture, with glass at 250 on one side."""
    rng = np.random.default_rng(seed)
    image = rng.normal((150, 110, 90), 25, (side, side, 3)).clip(0, 225)
    image[:, : round(glass * side)] = rng.normal(250, 1, (side, round(glass * side), 3))
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("white", [(216, 216, 216), (226, 224, 235), (250, 250, 250), (240, 232, 236)])
def test_the_colour_of_glass_is_found(white):
    scanned = (tile() * (np.array(white) / 250)).round().clip(0, 255).astype(np.uint8)
    assert np.abs(np.array(white_point(scanned)) - white).max() <= 1


def test_densities_do_not_depend_on_the_light_of_the_scanner():
    image = tile().clip(20, 250)
    dimmed = (image * (np.array((216, 216, 225)) / 250)).round().astype(np.uint8)
    apart = [separate(relative_to_white(one, white_point(one)), IHC) for one in (image, dimmed)]
    assert np.abs(apart[0].mean((0, 1)) - apart[1].mean((0, 1))).max() < 0.003
    assert np.abs(separate(image, IHC).mean((0, 1)) - separate(dimmed, IHC).mean((0, 1))).max() > 0.03


def test_without_glass_nothing_is_changed():
    image = tile(glass=0)
    assert white_point(image) == FULL
    assert relative_to_white(image, white_point(image)) is image


def test_no_pixels_stay_no_pixels():
    assert relative_to_white(np.zeros((0, 1, 3), np.uint8), (200, 200, 200)).shape == (0, 1, 3)


def test_pale_tissue_and_bright_specks_are_no_glass():
    rng = np.random.default_rng(0)
    pink = rng.normal((236, 205, 222), 2, (100, 100, 3)).clip(0, 255).astype(np.uint8)  # smooth, but coloured
    rough = np.repeat(rng.normal(215, 12, (100, 100, 1)), 3, 2).clip(0, 255).astype(np.uint8)  # grey, but rough
    assert white_point(pink) == FULL
    assert white_point(rough) == FULL
    specks = tile()
    specks[50:53, 5:8] = 255
    assert max(white_point(specks)) <= 251


def test_a_large_image_is_judged_as_its_parts_are():
    assert np.abs(np.array(white_point(np.tile(tile(), (6, 6, 1)))) - 250).max() <= 1


def test_glass_gets_no_density():
    image = tile()
    glass = optical_density(relative_to_white(image, white_point(image)))[:, :50]
    assert glass.mean() < 0.003


@real
def test_one_field_on_two_scanners_has_glass_of_two_colours():
    folder = Path(str(REALDATA)) / "ihc_unlabelled"
    grey = white_point(read_image(folder / "OS-2-vsi.png"))
    bluish = white_point(read_image(folder / "OS-2-ndpi.png"))
    assert grey == pytest.approx((215, 215, 215), abs=3)
    assert bluish == pytest.approx((225, 224, 235), abs=3)
