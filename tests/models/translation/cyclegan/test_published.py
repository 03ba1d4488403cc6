"""The published networks of CycleGAN and CUT: their checkpoints load, and give what the reference computes."""

import pytest
import torch
import torch.nn.functional as F

from ihc2he.errors import DataError
from ihc2he.models.translation.cyclegan.networks import PatchDiscriminator, ResnetGenerator, load_reference_weights

BLUR = {"downsample": "blur", "initialisation": "xavier"}


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 36, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ------------------------------------------------------------------ what the references save and compute


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


# ------------------------------------------------------------------ loading


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
