import numpy as np
import pytest
import torch
from torch import nn

from ihc2he.errors import ConfigError
from ihc2he.models.translation.contrast import PatchContrast
from ihc2he.models.translation.cyclegan.networks import ResnetGenerator


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return ResnetGenerator(4, 1)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 2, 3, 20, 20, generator=generator) * 2 - 1


def draws():
    return np.random.default_rng(3)


def test_the_heads_are_the_reference_s_in_size():
    # Per layer of c channels: c x 256 + 256 and 256 x 256 + 256; the layers have 3, 128, 256, 256 and 256 channels.
    expected = sum(c * 256 + 256 + 256 * 256 + 256 for c in (3, 128, 256, 256, 256))
    for kind in ({}, {"downsample": "blur", "upsample": "blur"}):
        contrast = PatchContrast(ResnetGenerator(**kind))
        assert [head[0].in_features for head in contrast.heads] == [3, 128, 256, 256, 256]
        assert sum(p.numel() for p in contrast.parameters()) == expected == 560_384


def test_weights_of_the_heads_are_xavier_s_times_002():
    contrast = PatchContrast(ResnetGenerator())
    for layer in (contrast.heads[4][0], contrast.heads[4][2]):
        assert layer.weight.std().item() == pytest.approx(0.02 * (2 / (256 + 256)) ** 0.5, rel=0.03)
        assert (layer.bias == 0).all()


def test_it_is_the_mean_over_layers_of_what_the_heads_make_of_the_features(generator, images):
    source, made = images
    layers, found = [0, 4, 10], {}
    contrast = PatchContrast(generator, layers, n_patches=10**6, temperature=0.5, width=32)
    for i in layers:
        generator.model[i].register_forward_hook(lambda _, __, out, i=i: found.setdefault(i, []).append(out.detach()))
    value = contrast(generator, source, made, draws())
    losses = []
    for head, i in zip(contrast.heads, layers, strict=True):
        weights = [p.detach().numpy() for p in head.parameters()]
        key, query = (features(x.numpy(), *weights) for x in found[i])
        similar = np.exp(query @ key.transpose(0, 2, 1) / 0.5)
        losses.append(-np.log(np.diagonal(similar, axis1=1, axis2=2) / similar.sum(2)).mean())
    assert value.item() == pytest.approx(np.mean(losses), rel=1e-5)


def features(x_bchw, weight, bias, weight_2, bias_2):
    x_bnc = x_bchw.reshape(*x_bchw.shape[:2], -1).transpose(0, 2, 1)
    y_bnc = np.maximum(x_bnc @ weight.T + bias, 0) @ weight_2.T + bias_2
    return y_bnc / np.sqrt((y_bnc**2).sum(-1, keepdims=True))


def test_dropout_does_not_blur_the_features_and_stays_on_for_the_rest(images):
    generator = ResnetGenerator(4, 1, dropout=0.5)
    contrast = PatchContrast(generator, [0, 10])
    values = [contrast(generator, images[0], images[0], draws()).item() for _ in range(2)]
    assert values[0] == values[1] == contrast(generator.eval(), images[0], images[0], draws()).item()
    generator.train()
    contrast(generator, *images, draws())
    assert not torch.equal(generator(images[0]), generator(images[0]))


def test_places_are_those_of_the_draws(generator, images):
    contrast = PatchContrast(generator, [0, 4], n_patches=5, width=6)
    first, again, other = (contrast(generator, *images, np.random.default_rng(s)).item() for s in (0, 0, 1))
    assert first == again != other


def test_images_of_a_batch_do_not_compete(generator, images):
    source, made = images
    contrast = PatchContrast(generator, [0, 4, 10], n_patches=9, width=6)
    each = [contrast(generator, source[i : i + 1], made[i : i + 1], draws()) for i in range(2)]
    torch.testing.assert_close(contrast(generator, source, made, draws()), torch.stack(each).mean())


def test_features_of_mirrored_images_are_mirrored_back(generator, images):
    contrast = PatchContrast(generator, [0], n_patches=9, width=6)
    source, _ = images
    straight = contrast(generator, source, source, draws())
    assert contrast(generator, source, source.flip(-1), draws(), flipped=True).item() == straight.item()
    assert contrast(generator, source, source.flip(-1), draws()).item() != straight.item()


def test_gradients_reach_the_heads_the_generator_and_the_made_image_alone(generator, images):
    source, made = (x.clone().requires_grad_() for x in images)
    contrast = PatchContrast(generator, [0, 4, 10], n_patches=9, width=6)
    contrast(generator, source, made, draws(), trust=0.5).backward()
    assert source.grad is None
    assert made.grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in contrast.parameters())
    assert generator.model[4].weight.grad.abs().max() > 0
    assert generator.model[-2].weight.grad is None  # behind the last layer that is compared


def test_trust_weighs_the_patches(generator, images):
    contrast = PatchContrast(generator, [4], n_patches=9, width=6)
    plain, full, less = (contrast(generator, *images, draws(), trust=trust).item() for trust in (None, 1.0, 0.0))
    assert full == pytest.approx(plain, rel=1e-6)
    assert less != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        (
            ResnetGenerator(4, 1),
            {"layers": [0, 99]},
            r"model\.layers=\[0, 99\]: expected indices from 0 to 19, for Res",
        ),
        (ResnetGenerator(4, 1), {"layers": []}, r"model\.layers=\[\]: expected indices"),
        (nn.Conv2d(3, 3, 1), {}, "expected a generator with its layers in a Sequential `model`, for Conv2d"),
        (ResnetGenerator(4, 1), {"n_patches": 1}, "model.n_patches=1: expected 2 or more"),
        (ResnetGenerator(4, 1), {"temperature": 0.0}, "model.temperature=0.0: expected above 0"),
    ],
)
def test_wrong_settings_are_named(network, changes, message):
    with pytest.raises(ConfigError, match=message):
        PatchContrast(network, **changes)
