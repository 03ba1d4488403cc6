import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.translation.cyclegan.networks import PatchDiscriminator, ResnetGenerator, load_reference_weights


def generator_keys(width=64, n_blocks=9, second=5):
    """Write out the layout of the reference's `latest_net_G.pth`: keys and shapes of its weights."""
    shapes = {1: (width, 3, 7, 7), 4: (2 * width, width, 3, 3), 7: (4 * width, 2 * width, 3, 3)}
    layout = {f"model.{i}": shape for i, shape in shapes.items()}
    for i in range(10, 10 + n_blocks):
        layout |= {f"model.{i}.conv_block.{j}": (4 * width, 4 * width, 3, 3) for j in (1, second)}
    # A transposed convolution's weight has its input channels first.
    layout[f"model.{10 + n_blocks}"] = (4 * width, 2 * width, 3, 3)
    layout[f"model.{13 + n_blocks}"] = (2 * width, width, 3, 3)
    layout[f"model.{17 + n_blocks}"] = (3, width, 7, 7)
    return layout


def discriminator_keys(width=64):
    """Write out the layout of the reference's `latest_net_D.pth`."""
    return {
        "model.0": (width, 3, 4, 4),
        "model.2": (2 * width, width, 4, 4),
        "model.5": (4 * width, 2 * width, 4, 4),
        "model.8": (8 * width, 4 * width, 4, 4),
        "model.11": (1, 8 * width, 4, 4),
    }


def checkpoint(layout, n_transposed=0):
    """Return random weights and biases in a layout; the bias of a transposed convolution has its second dimension."""
    generator = torch.Generator().manual_seed(0)
    transposed = list(layout)[-1 - n_transposed : -1] if n_transposed else []
    state = {}
    for key, shape in layout.items():
        state[f"{key}.weight"] = 0.1 * torch.randn(shape, generator=generator)
        state[f"{key}.bias"] = 0.1 * torch.randn(shape[1 if key in transposed else 0], generator=generator)
    return state


def instance_norm(x):
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def reference_generator(x, weights, n_blocks, second=5):
    """Compute the reference generator from its checkpoint, layer by layer."""

    def conv(x, key, pad=0, **options):
        x = F.pad(x, (pad,) * 4, mode="reflect") if pad else x
        return F.conv2d(x, weights[f"model.{key}.weight"], weights[f"model.{key}.bias"], **options)

    def up(x, key):
        options = {"stride": 2, "padding": 1, "output_padding": 1}
        return F.conv_transpose2d(x, weights[f"model.{key}.weight"], weights[f"model.{key}.bias"], **options)

    x = instance_norm(conv(x, 1, pad=3)).relu()
    x = instance_norm(conv(x, 4, stride=2, padding=1)).relu()
    x = instance_norm(conv(x, 7, stride=2, padding=1)).relu()
    for i in range(10, 10 + n_blocks):
        inner = instance_norm(conv(x, f"{i}.conv_block.1", pad=1)).relu()
        x = x + instance_norm(conv(inner, f"{i}.conv_block.{second}", pad=1))
    x = instance_norm(up(x, 10 + n_blocks)).relu()
    x = instance_norm(up(x, 13 + n_blocks)).relu()
    return conv(x, 17 + n_blocks, pad=3).tanh()


def reference_discriminator(x, weights):
    """Compute the reference 70x70 PatchGAN from its checkpoint, layer by layer."""

    def conv(x, key, stride):
        return F.conv2d(x, weights[f"model.{key}.weight"], weights[f"model.{key}.bias"], stride=stride, padding=1)

    x = F.leaky_relu(conv(x, 0, 2), 0.2)
    x = F.leaky_relu(instance_norm(conv(x, 2, 2)), 0.2)
    x = F.leaky_relu(instance_norm(conv(x, 5, 2)), 0.2)
    x = F.leaky_relu(instance_norm(conv(x, 8, 1)), 0.2)
    return conv(x, 11, 1)


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


def blurred_generator_keys(width=64, n_blocks=9):
    """Write out the layout of CUT's `latest_net_G.pth`, whose constant filters are among the weights."""
    shapes = {1: (width, 3, 7, 7), 4: (2 * width, width, 3, 3), 8: (4 * width, 2 * width, 3, 3)}
    layout = {f"model.{i}": shape for i, shape in shapes.items()}
    for i in range(12, 12 + n_blocks):
        layout |= {f"model.{i}.conv_block.{j}": (4 * width, 4 * width, 3, 3) for j in (1, 5)}
    layout[f"model.{13 + n_blocks}"] = (2 * width, 4 * width, 3, 3)  # after a filter at 12 + n_blocks
    layout[f"model.{17 + n_blocks}"] = (width, 2 * width, 3, 3)
    layout[f"model.{21 + n_blocks}"] = (3, width, 7, 7)
    return layout


def blurred_discriminator_keys(width=64):
    """Write out the layout of CUT's `latest_net_D.pth`."""
    return {
        "model.0": (width, 3, 4, 4),
        "model.3": (2 * width, width, 4, 4),
        "model.7": (4 * width, 2 * width, 4, 4),
        "model.11": (8 * width, 4 * width, 4, 4),
        "model.14": (1, 8 * width, 4, 4),
    }


def filters(places, taps):
    """Return the constant filters that CUT saves, (C, 1, K, K), for channels by index of the layer."""
    tap = torch.tensor(taps)
    kernel = torch.outer(tap, tap) / tap.sum() ** 2 * (4 if len(taps) == 4 else 1)
    return {f"model.{i}.filt": kernel.expand(c, 1, -1, -1).clone() for i, c in places.items()}


def halved(x):
    """Blur by [1, 2, 1] with mirrored borders and keep every second pixel."""
    kernel = filters({0: x.shape[1]}, [1.0, 2.0, 1.0])["model.0.filt"]
    return F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), kernel, groups=x.shape[1])[..., ::2, ::2]


def doubled(x):
    """Put zeros between pixels and blur by [1, 3, 3, 1], with repeated borders."""
    n, c, h, w = x.shape
    padded = F.pad(x, (1,) * 4, mode="replicate")
    zeros = torch.zeros(n, c, 2 * h + 3, 2 * w + 3)
    zeros[..., ::2, ::2] = padded
    kernel = filters({0: c}, [1.0, 3.0, 3.0, 1.0])["model.0.filt"]
    return F.conv2d(F.pad(zeros, (1,) * 4), kernel, groups=c)[..., 1:-1, 1:-1]


def blurred_generator(x, weights, n_blocks):
    """Compute CUT's generator from its checkpoint, layer by layer."""

    def conv(x, key, pad=0, **options):
        x = F.pad(x, (pad,) * 4, mode="reflect") if pad else x
        return F.conv2d(x, weights[f"model.{key}.weight"], weights[f"model.{key}.bias"], **options)

    x = instance_norm(conv(x, 1, pad=3)).relu()
    x = halved(instance_norm(conv(x, 4, padding=1)).relu())
    x = halved(instance_norm(conv(x, 8, padding=1)).relu())
    for i in range(12, 12 + n_blocks):
        inner = instance_norm(conv(x, f"{i}.conv_block.1", pad=1)).relu()
        x = x + instance_norm(conv(inner, f"{i}.conv_block.5", pad=1))
    x = instance_norm(conv(doubled(x), 13 + n_blocks, padding=1)).relu()
    x = instance_norm(conv(doubled(x), 17 + n_blocks, padding=1)).relu()
    return conv(x, 21 + n_blocks, pad=3).tanh()


def blurred_discriminator(x, weights):
    """Compute CUT's discriminator from its checkpoint, layer by layer."""

    def conv(x, key):
        return F.conv2d(x, weights[f"model.{key}.weight"], weights[f"model.{key}.bias"], padding=1)

    x = halved(F.leaky_relu(conv(x, 0), 0.2))
    x = halved(F.leaky_relu(instance_norm(conv(x, 3)), 0.2))
    x = halved(F.leaky_relu(instance_norm(conv(x, 7)), 0.2))
    return conv(F.leaky_relu(instance_norm(conv(x, 11)), 0.2), 14)


def test_published_networks_of_cut_load_and_compute_the_same(tmp_path, image):
    weights = checkpoint(blurred_generator_keys(width=4, n_blocks=2))
    constant = filters({7: 8, 11: 16}, [1.0, 2.0, 1.0]) | filters({14: 16, 18: 8}, [1.0, 3.0, 3.0, 1.0])
    torch.save(weights | constant, tmp_path / "latest_net_G.pth")
    generator = ResnetGenerator(width=4, n_blocks=2, upsample="blur", **BLUR)
    load_reference_weights(generator, tmp_path / "latest_net_G.pth")
    torch.testing.assert_close(generator(image), blurred_generator(image, weights, 2))

    weights = checkpoint(blurred_discriminator_keys(width=4))
    torch.save(weights | filters({2: 4, 6: 8, 10: 16}, [1.0, 2.0, 1.0]), tmp_path / "latest_net_D.pth")
    discriminator = PatchDiscriminator(width=4, **BLUR)
    load_reference_weights(discriminator, tmp_path / "latest_net_D.pth")
    torch.testing.assert_close(discriminator(image), blurred_discriminator(image, weights))


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


@pytest.mark.parametrize(
    ("net", "layout"),
    [
        (lambda: ResnetGenerator(upsample="blur", **BLUR), blurred_generator_keys()),
        (lambda: PatchDiscriminator(**BLUR), blurred_discriminator_keys()),
        (ResnetGenerator, generator_keys()),
        (lambda: ResnetGenerator(n_blocks=6), generator_keys(n_blocks=6)),
        (lambda: ResnetGenerator(dropout=0.5), generator_keys(second=6)),
        (PatchDiscriminator, discriminator_keys()),
    ],
    ids=["CUT", "CUT's discriminator", "9 blocks", "6 blocks", "dropout", "discriminator"],
)
def test_keys_and_shapes_are_those_of_published_checkpoints(net, layout):
    with torch.device("meta"):
        state = net().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items() if key.endswith(".weight")} == {
        f"{key}.weight": shape for key, shape in layout.items()
    }
    assert {key for key in state if key.endswith(".bias")} == {f"{key}.bias" for key in layout}


@pytest.mark.parametrize(("dropout", "second"), [(0.0, 5), (0.5, 6)])
def test_a_published_generator_loads_and_computes_the_same(tmp_path, image, dropout, second):
    weights = checkpoint(generator_keys(width=4, n_blocks=2, second=second), n_transposed=2)
    torch.save(weights, tmp_path / "latest_net_G.pth")
    net = ResnetGenerator(width=4, n_blocks=2, dropout=dropout).eval()
    load_reference_weights(net, tmp_path / "latest_net_G.pth")
    torch.testing.assert_close(net(image), reference_generator(image, weights, 2, second))


def test_a_published_discriminator_loads_and_computes_the_same(tmp_path, image):
    weights = checkpoint(discriminator_keys(width=4))
    torch.save(weights, tmp_path / "latest_net_D.pth")
    net = PatchDiscriminator(width=4)
    load_reference_weights(net, tmp_path / "latest_net_D.pth")
    torch.testing.assert_close(net(image), reference_discriminator(image, weights))


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_old_files_load(tmp_path, prefix):
    weights = checkpoint(discriminator_keys(width=4))
    old = {prefix + key: value for key, value in weights.items()}
    for i in (3, 6, 9):  # where instance normalisation once kept statistics
        old |= {f"{prefix}model.{i}.{name}": torch.zeros(8) for name in ("running_mean", "running_var")}
        old[f"{prefix}model.{i}.num_batches_tracked"] = torch.tensor(7)
    torch.save(old, tmp_path / "old.pth")
    net = PatchDiscriminator(width=4)
    load_reference_weights(net, tmp_path / "old.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(value, weights[key])


def extra_key(state):
    return state | {"model.99.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: dict(list(state.items())[2:]), r"2 keys missing \['model.0.bias', 'model.0.weight'\]"),
        (extra_key, r"1 unknown \['model.99.weight'\]"),
        (lambda state: state | {"model.0.bias": torch.zeros(5)}, r"1 of another shape \['model.0.bias'\].*Check n_bl"),
        (lambda state: {"epoch": 3, "state_dict": state}, "expected a state dict of tensors, found dict"),
        (lambda state: PatchDiscriminator(width=4), r"cannot be read as a checkpoint of weights \(UnpicklingError"),
    ],
    ids=["missing", "unknown", "shape", "wrapped", "pickled module"],
)
def test_a_wrong_checkpoint_is_named_and_changes_nothing(tmp_path, spoil, message):
    torch.save(spoil(checkpoint(discriminator_keys(width=4))), tmp_path / "net.pth")
    net = PatchDiscriminator(width=4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(DataError, match=rf"net\.pth: .*{message}"):
        load_reference_weights(net, tmp_path / "net.pth")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.pth: cannot be read .*FileNotFoundError"):
        load_reference_weights(PatchDiscriminator(width=4), tmp_path / "gone.pth")


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
