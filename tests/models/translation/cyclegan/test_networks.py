"""The networks of a CycleGAN: sizes, initial weights, gradients, and arguments that are refused."""

import pytest
import torch
from torch import nn

from ihc2he.errors import ConfigError
from ihc2he.models.translation.cyclegan.networks import PatchDiscriminator, ResnetGenerator


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 36, generator=torch.Generator().manual_seed(1)) * 2 - 1


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_the_default_networks_are_the_reference_s_in_size():
    with torch.device("meta"):
        assert n_parameters(ResnetGenerator()) == 11_378_179
        assert n_parameters(ResnetGenerator(n_blocks=6)) == 7_837_699
        discriminator = PatchDiscriminator()
        assert n_parameters(discriminator) == 2_764_737
        assert discriminator(torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)


BLUR = {"downsample": "blur", "initialisation": "xavier"}


def test_the_networks_of_cut_and_pix2pix_are_the_references_in_size():
    with torch.device("meta"):
        assert n_parameters(ResnetGenerator(upsample="blur", **BLUR)) == 11_378_179
        assert n_parameters(PatchDiscriminator(**BLUR)) == 2_764_737
        # pix2pix's has 3 x 64 x 4 x 4 weights more for the source; the 2,768,705 of the reference count its batch
        # normalisation, 2 x 896 for 896 biases, which is instance normalisation here as at a batch of one.
        assert n_parameters(PatchDiscriminator(channels=6)) == 2_764_737 + 3072 == 2_768_705 - 2 * 896 + 896
    assert PatchDiscriminator(width=1, **BLUR)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_blurred_networks_keep_a_flat_image_flat():
    """No checkerboard, up to the border."""
    up = ResnetGenerator(4, 1, upsample="blur").model[11]
    assert torch.equal(up(torch.ones(1, 16, 8, 8)), torch.ones(1, 16, 16, 16))


def test_xavier_weights_depend_on_the_layer_s_size():
    net = ResnetGenerator(16, 2, initialisation="xavier")
    for layer in (net.model[4], net.model[10].conv_block[1]):
        fan_out, fan_in = (9 * n for n in layer.weight.shape[:2])
        assert layer.weight.std().item() == pytest.approx(0.02 * (2 / (fan_in + fan_out)) ** 0.5, rel=0.05)
        assert (layer.bias == 0).all()


def test_each_logit_sees_70_px():
    net = PatchDiscriminator(width=4)
    for i, layer in enumerate(net.model):
        if isinstance(layer, nn.InstanceNorm2d):  # its mean and variance see the whole image
            net.model[i] = nn.Identity()
    x_bchw = torch.randn(1, 3, 256, 256, requires_grad=True)
    net(x_bchw)[0, 0, 15, 15].backward()
    seen_hw = x_bchw.grad[0].abs().sum(0) > 0
    rows, columns = seen_hw.any(1).nonzero(), seen_hw.any(0).nonzero()
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


@pytest.mark.parametrize(
    "net", [ResnetGenerator(16, 2), ResnetGenerator(16, 2, upsample="resize"), PatchDiscriminator(16)]
)
def test_weights_start_normal_with_deviation_002_and_biases_at_zero(net):
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    weights = torch.cat([layer.weight.flatten() for layer in layers])
    assert abs(weights.mean()) < 0.001
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert (weights.abs() < 0.02).float().mean().item() == pytest.approx(0.6827, abs=0.01)  # normal, not uniform
    assert all((layer.bias == 0).all() for layer in layers)


@pytest.mark.parametrize("upsample", ["transpose", "resize", "blur"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_every_parameter_gets_a_gradient(image, upsample, dropout):
    generator = ResnetGenerator(4, 2, dropout, upsample, "blur" if upsample == "blur" else "stride")
    for net in (generator, PatchDiscriminator(4), PatchDiscriminator(4, 3, True), PatchDiscriminator(4, **BLUR)):
        net(image).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert name.endswith("bias") or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("upsample", ["transpose", "resize", "blur"])
@pytest.mark.parametrize("size", [(16, 16), (17, 18), (19, 32), (31, 21)])
def test_any_size_comes_back_at_its_own(size, upsample):
    net = ResnetGenerator(4, 1, upsample=upsample, downsample="blur" if upsample == "blur" else "stride")
    x_bchw = torch.rand(1, 3, *size) * 2 - 1
    y_bchw = net(x_bchw)
    assert y_bchw.shape == x_bchw.shape
    # What is added at the bottom and right mirrors the image without its last line, and is cut off again.
    bottom, right = (-side % 4 for side in size)
    whole = torch.cat([x_bchw, x_bchw[:, :, -1 - bottom : -1].flip(2)], 2)
    whole = torch.cat([whole, whole[..., -1 - right : -1].flip(3)], 3)
    assert whole.shape[2] % 4 == whole.shape[3] % 4 == 0
    torch.testing.assert_close(y_bchw, net(whole)[..., : size[0], : size[1]])


def test_resize_upsampling_has_no_transposed_convolution(image):
    net = ResnetGenerator(4, 1, upsample="resize")
    assert not any(isinstance(layer, nn.ConvTranspose2d) for layer in net.modules())
    assert [layer.mode for layer in net.modules() if isinstance(layer, nn.Upsample)] == ["nearest", "nearest"]
    # A flat image stays flat, up to the border: no checkerboard. A transposed convolution's does not.
    for kind, is_flat in (("resize", True), ("transpose", False)):
        up = ResnetGenerator(4, 1, upsample=kind).model[11](torch.ones(1, 16, 8, 8))[..., 2:-2, 2:-2]
        assert (up.std((2, 3)).max() < 1e-6) == is_flat


def test_dropout_is_off_in_evaluation(image):
    net = ResnetGenerator(4, 1, dropout=0.5)
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))
    assert not any(isinstance(layer, nn.Dropout) for layer in ResnetGenerator(4, 1).modules())


def test_spectral_norm_holds_the_largest_singular_value_at_one(image):
    torch.manual_seed(0)
    net = PatchDiscriminator(4, spectral_norm=True).train()
    with torch.no_grad():
        for layer in net.model:
            if isinstance(layer, nn.Conv2d):
                layer.parametrizations.weight.original.mul_(50)
        for _ in range(50):
            net(image)
    net.eval()
    largest = [torch.linalg.matrix_norm(x.weight.flatten(1), 2).item() for x in net.model if isinstance(x, nn.Conv2d)]
    assert largest == pytest.approx([1.0] * 5, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upsample": "resise"}, "no upsampling 'resise'. Did you mean 'resize'?"),
        ({"downsample": "blurr"}, "no downsampling 'blurr'. Did you mean 'blur'?"),
        ({"initialisation": "xaver"}, "no initialisation 'xaver'. Did you mean 'xavier'?"),
        ({"n_blocks": 0}, "at least 1, found 64 and 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ResnetGenerator(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"downsample": "strides"}, "no downsampling 'strides'. Did you mean 'stride'?"),
        ({"channels": 0}, "at least 1, found 64, 3 and 0"),
    ],
)
def test_wrong_arguments_of_a_discriminator_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PatchDiscriminator(**arguments)
