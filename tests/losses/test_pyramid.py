"""The pyramid loss against BCI's formula: both images blurred and halved, in plain NumPy and pixel by pixel."""

import numpy as np
import pytest
import torch

from ihc2he.losses.pyramid import pyramid_l1


def blurred(image_hw):
    tap = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / 2)
    tap /= tap.sum()
    padded = np.pad(image_hw, 1, mode="reflect")
    result = np.zeros_like(image_hw)
    for (y, x), weight in np.ndenumerate(np.outer(tap, tap)):
        result += weight * padded[y : y + image_hw.shape[0], x : x + image_hw.shape[1]]
    return result


def reference(made, real, octaves):
    """Sum over octaves of the mean of |F_i(real) - F_i(made)|, where F_i blurs four times and keeps every second px."""
    total = 0.0
    for _ in range(octaves):
        for _ in range(4):
            made, real = (np.stack([[blurred(channel) for channel in image] for image in x]) for x in (made, real))
        made, real = made[..., ::2, ::2], real[..., ::2, ::2]
        total += np.abs(made - real).mean()
    return total


@pytest.mark.parametrize("octaves", [1, 3])
@pytest.mark.parametrize("size", [(32, 24), (19, 33)])
def test_it_is_the_formula(octaves, size):
    made, real = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3, *size))
    found = pyramid_l1(torch.from_numpy(made), torch.from_numpy(real), octaves)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reference(made, real, octaves), rel=1e-5)


def test_fine_misalignment_costs_less_than_at_full_resolution():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = image.roll(2, -1)
    assert pyramid_l1(image, moved, octaves=1) < (image - moved).abs().mean() / 2


def test_it_is_float32_and_has_a_gradient_under_autocast():
    made = torch.rand(1, 3, 16, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pyramid_l1(made, torch.zeros(1, 3, 16, 16))
    loss.backward()
    assert loss.dtype == torch.float32
    assert made.grad.abs().max() > 0
