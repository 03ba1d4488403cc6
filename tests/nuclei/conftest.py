import cv2
import numpy as np
import pytest


def draw_ellipses(side, count, seed=0):
    """Return an int32 map of `count` ellipses of 6 to 15 px half axes, many of them touching; later ones lie on top."""
    rng = np.random.default_rng(seed)
    inst_hw = np.zeros((side, side), np.int32)
    for number in range(1, count + 1):
        x, y = (int(value) for value in rng.integers(0, side, 2))
        axes = [int(value) for value in rng.integers(6, 16, 2)]
        cv2.ellipse(inst_hw, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, number, -1)
    return inst_hw


def soften(inst_hw, seed=0):
    """Return maps as a network would predict them, blurred and noisy: probability (H, W) and hv (2, H, W), float32."""
    from ihc2he.nuclei.targets import hv_maps

    rng = np.random.default_rng(seed)
    noise_3hw = cv2.GaussianBlur(rng.normal(0, 1, (*inst_hw.shape, 3)), (0, 0), 2).transpose(2, 0, 1)
    prob_hw = cv2.GaussianBlur((inst_hw > 0).astype(np.float32), (0, 0), 1.5) + 0.3 * noise_3hw[0]
    hv_2hw = np.stack([cv2.GaussianBlur(channel, (0, 0), 1) for channel in hv_maps(inst_hw)]) + 0.2 * noise_3hw[1:]
    return prob_hw.clip(0, 1).astype(np.float32), hv_2hw.astype(np.float32)


@pytest.fixture(scope="session")
def ellipses():
    return draw_ellipses


@pytest.fixture(scope="session")
def softened():
    return soften
