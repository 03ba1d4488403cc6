"""The network against the reference's numbers, key layout and formulas, written out here from its description."""

import math

import pytest
import torch
import torch.nn.functional as F

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import load_bundle, save_bundle
from ihc2he.models.segmentation.encoders import PreactResNet, SmpEncoder
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.segmentation.hovernet.weights import load_encoder, load_reference

RESNET50 = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet"}
SMALL = RESNET50 | {"width": 8, "units": [1, 1, 1, 1]}
SMP = {"_target_": "ihc2he.models.segmentation.encoders.SmpEncoder", "weights": None}
UNITS = (3, 4, 6, 3)


def millions(net):
    return round(sum(p.numel() for p in net.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("mode", "n_types", "expected"),
    [("fast", 0, 33.63), ("fast", 5, 37.64), ("same", 5, 37.64), ("original", 0, 45.03), ("original", 5, 54.74)],
)
def test_the_number_of_parameters_is_the_reference_s(mode, n_types, expected):
    with torch.device("meta"):
        assert millions(HoverNet(RESNET50, n_types, mode)) == expected


@pytest.mark.parametrize(("mode", "side", "expected"), [("fast", 256, 164), ("original", 270, 80), ("same", 256, 256)])
def test_the_output_has_the_size_of_the_mode(mode, side, expected):
    net = HoverNet(SMALL, 5, mode, width=32).eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 3, side, side))
    shapes = {name: tuple(map_bchw.shape) for name, map_bchw in maps.items()}
    assert shapes == {name: (1, c, expected, expected) for name, c in (("tp", 6), ("np", 2), ("hv", 2))}
    assert side - 2 * net.margin == expected


@pytest.mark.parametrize("size", [(8, 8), (40, 64), (61, 50), (100, 8)])
def test_same_mode_takes_any_size(size):
    with torch.no_grad():
        assert HoverNet(SMALL, 0, "same", 32)(torch.rand(2, 3, *size))["hv"].shape == (2, 2, *size)


def test_an_odd_size_is_padded_by_reflection():
    net = HoverNet(SMALL, 0, "same", 32).eval()
    x = torch.rand(1, 3, 21, 24)
    with torch.no_grad():
        assert torch.equal(net(x)["np"], net(F.pad(x, (0, 0, 0, 3), mode="reflect"))["np"][..., :21, :])


@pytest.mark.parametrize(("mode", "side"), [("fast", 250), ("fast", 88), ("original", 256), ("original", 190)])
def test_sizes_that_a_valid_mode_cannot_take_are_named(mode, side):
    with pytest.raises(ValueError, match=f"An input of {side}x{side} px does not fit this mode"):
        HoverNet(SMALL, 0, mode, 32)(torch.rand(1, 3, side, side))


@pytest.mark.parametrize(("encoder", "size"), [(SMALL, (7, 40)), (SMP | {"name": "resnet18"}, (64, 31))])
def test_sides_below_the_encoder_s_stride_are_named(encoder, size):
    with pytest.raises(
        ValueError, match=f"An input of {size[1]}x{size[0]} px is too small: expected sides of at least"
    ):
        HoverNet(encoder, 0, "same", 32)(torch.rand(1, 3, *size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mode": "fst"}, "Did you mean 'fast'"), ({"width": 40}, "expected a multiple of 32")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HoverNet(SMALL, **arguments)


@pytest.mark.parametrize("encoder", [SMALL, SMP | {"name": "resnet18"}])
def test_every_parameter_gets_a_gradient(encoder):
    net = HoverNet(encoder, 2, "same", 32)
    sum(map_bchw.square().sum() for map_bchw in net(torch.rand(2, 3, 32, 32)).values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


# ---------------------------------------------------------------------- parity with the reference


def official_layout(n_types: int, kernel: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a state dict of the published checkpoints' layout, with random values; types include the background."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, c_out, c_in, k, groups=1, bias=False):
        scale = 1 / math.sqrt(c_in // groups * k * k)
        state[f"{name}.weight"] = scale * torch.randn(c_out, c_in // groups, k, k, generator=generator)
        if bias:
            state[f"{name}.bias"] = torch.randn(c_out, generator=generator)

    def bn(name, c):
        state[f"{name}.weight"] = 1 + 0.1 * torch.rand(c, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(c, generator=generator)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(c, generator=generator)
        state[f"{name}.running_var"] = 0.5 + torch.rand(c, generator=generator)

    conv("conv0./", 64, 3, 7)
    bn("conv0.bn", 64)
    c_in = 64
    for block, n in enumerate(UNITS):
        c, c_out = 64 * 2**block, 256 * 2**block
        for unit in range(n):
            name = f"d{block}.units.{unit}"
            if unit:
                bn(f"{name}.preact/bn", c_out)
            conv(f"{name}.conv1", c, c_out if unit else c_in, 1)
            bn(f"{name}.conv1/bn", c)
            conv(f"{name}.conv2", c, c, 3)
            bn(f"{name}.conv2/bn", c)
            conv(f"{name}.conv3", c_out, c, 1)
        conv(f"d{block}.shortcut", c_out, c_in, 1)
        bn(f"d{block}.blk_bna.bn", c_out)
        c_in = c_out
    conv("conv_bot", 1024, 2048, 1)
    for branch, c_last in ((("tp", n_types),) if n_types else ()) + (("np", 2), ("hv", 2)):
        for stage, c_in, c, n in (("u3", 1024, 256, 8), ("u2", 512, 128, 4)):
            name = f"decoder.{branch}.{stage}"
            conv(f"{name}.conva", c, c_in, kernel)
            for unit in range(n):
                bn(f"{name}.dense.units.{unit}.preact_bna/bn", c + 32 * unit)
                conv(f"{name}.dense.units.{unit}.conv1", 128, c + 32 * unit, 1)
                bn(f"{name}.dense.units.{unit}.conv1/bn", 128)
                conv(f"{name}.dense.units.{unit}.conv2", 32, 128, kernel, groups=4)
            bn(f"{name}.dense.blk_bna.bn", c + 32 * n)
            conv(f"{name}.convf", c + 32 * n, c + 32 * n, 1)
        conv(f"decoder.{branch}.u1.conva", 64, 256, kernel)
        bn(f"decoder.{branch}.u0.bn", 64)
        conv(f"decoder.{branch}.u0.conv", c_last, 64, 1, bias=True)
    state["upsample2x.unpool_mat"] = torch.ones(2, 2)
    return state


def official_forward(state, x, kernel):
    """Return what the reference computes in evaluation, as its paper and configuration describe it."""

    def conv(name, x, stride=1, padding=0, groups=1):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding, groups=groups)

    def bn_relu(name, x):
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        scale = weight / (var + 1e-5).sqrt()
        return ((x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]).relu()

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def cut(x, px):  # in all, on each axis
        side = x.shape[-1] - px
        return x[..., px // 2 : px // 2 + side, px // 2 : px // 2 + side]

    x = bn_relu("conv0.bn", conv("conv0./", x, padding=3 if kernel == 3 else 0))
    d = []
    for block, n in enumerate(UNITS):
        stride = 2 if block else 1
        shortcut = conv(f"d{block}.shortcut", x, stride)
        for unit in range(n):
            name = f"d{block}.units.{unit}"
            y = bn_relu(f"{name}.preact/bn", x) if unit else x
            y = bn_relu(f"{name}.conv1/bn", conv(f"{name}.conv1", y))
            at_end = stride == 2 and not unit
            y = F.pad(y, (0, 1, 0, 1) if at_end else (1, 1, 1, 1))
            y = bn_relu(f"{name}.conv2/bn", conv(f"{name}.conv2", y, stride if not unit else 1))
            x = shortcut = conv(f"{name}.conv3", y) + shortcut
        x = bn_relu(f"d{block}.blk_bna.bn", x)
        d.append(x)
    d[3] = conv("conv_bot", d[3])
    d[0], d[1] = (cut(d[0], 184), cut(d[1], 72)) if kernel == 5 else (cut(d[0], 92), cut(d[1], 36))
    maps = {}
    for branch in ("tp", "np", "hv"):
        x = d[3]
        for stage, skip, n in (("u3", d[2], 8), ("u2", d[1], 4)):
            name = f"decoder.{branch}.{stage}"
            x = conv(f"{name}.conva", double(x) + skip)
            for unit in range(n):
                one = f"{name}.dense.units.{unit}"
                y = conv(f"{one}.conv1", bn_relu(f"{one}.preact_bna/bn", x))
                y = conv(f"{one}.conv2", bn_relu(f"{one}.conv1/bn", y), groups=4)
                x = torch.cat([cut(x, kernel - 1), y], 1)
            x = conv(f"{name}.convf", bn_relu(f"{name}.dense.blk_bna.bn", x))
        x = conv(f"decoder.{branch}.u1.conva", double(x) + d[0], padding=kernel // 2)
        maps[branch] = conv(f"decoder.{branch}.u0.conv", bn_relu(f"decoder.{branch}.u0.bn", x))
    return maps


@pytest.mark.parametrize(("mode", "kernel", "side"), [("fast", 3, 104), ("original", 5, 198)])
@torch.no_grad()
def test_official_checkpoints_load_and_mean_the_same(mode, kernel, side, tmp_path):
    state = official_layout(6, kernel)
    path = tmp_path / f"hovernet_{mode}_pannuke_type_tf2pytorch.tar"
    torch.save({"desc": state}, path)
    net = HoverNet(RESNET50, 5, mode).eval()
    load_reference(net, path)
    x = torch.rand(1, 3, side, side)
    expected, found = official_forward(state, x, kernel), net(x)
    assert found.keys() == expected.keys()
    for name, map_bchw in expected.items():
        torch.testing.assert_close(found[name], map_bchw, rtol=1e-3, atol=1e-4 * float(map_bchw.abs().max()))


@torch.no_grad()
def test_fast_weights_serve_the_same_mode_which_agrees_far_from_the_border():
    fast, same = HoverNet(SMALL, 2, "fast", 32).eval(), HoverNet(SMALL, 2, "same", 32).eval()
    same.load_state_dict(fast.state_dict())
    x = torch.rand(1, 3, 256, 256)
    inner = same(x)["hv"][..., 47:-47, 47:-47]
    # The outermost pixel differs: the last 3x3 convolution is padded in `fast` mode too.
    torch.testing.assert_close(fast(x)["hv"][..., 1:-1, 1:-1], inner, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_types", [0, 6])
def test_every_key_of_a_checkpoint_is_used_in_either_spelling_wrapped_or_not(n_types, tmp_path):
    state = official_layout(n_types, 3)
    # As a checkpoint of the reference's own training has it: other names, several GPUs, counters.
    other = {f"module.{k.replace('conv0./', 'conv0.conv').replace('/', '_')}": v for k, v in state.items()}
    other |= {k.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for k in other if "running_mean" in k}
    loaded = []
    for content in ({"desc": state}, state, {"desc": other}):
        torch.save(content, tmp_path / "checkpoint.tar")
        net = HoverNet(RESNET50, max(n_types - 1, 0), "same")
        load_reference(net, tmp_path / "checkpoint.tar")
        loaded.append({k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")})
    assert len(loaded[0]) == len(state) - 1  # all but the constant of the enlarging
    assert sorted(v.double().sum().item() for v in loaded[0].values()) == sorted(
        v.double().sum().item() for k, v in state.items() if not k.startswith("upsample2x")
    )
    for others in loaded[1:]:
        assert all(torch.equal(v, others[k]) for k, v in loaded[0].items())


def test_a_checkpoint_of_other_types_is_named_with_both_numbers(tmp_path):
    torch.save({"desc": official_layout(6, 3)}, tmp_path / "six.tar")
    with pytest.raises(
        DataError, match=r"six.tar: .*decoder.tp.u0.conv.bias \(6,\) instead of \(3,\).* Check mode, classes"
    ):
        load_reference(HoverNet(RESNET50, 2, "fast"), tmp_path / "six.tar")
    with pytest.raises(DataError, match=r"139 unknown \['decoder.tp"):
        load_reference(HoverNet(RESNET50, 0, "fast"), tmp_path / "six.tar")


def test_both_spellings_of_keys_load_and_the_encoder_alone(tmp_path):
    state = {k: v for k, v in official_layout(6, 3).items() if k.startswith(("conv0", "d"))}
    encoder_only = {k: v for k, v in state.items() if not k.startswith("decoder")}
    other = {f"module.{k.replace('conv0./', 'conv0.conv').replace('/', '_')}": v for k, v in encoder_only.items()}
    encoders = []
    for i, desc in enumerate((encoder_only, other)):
        torch.save({"desc": desc}, tmp_path / f"{i}.tar")
        encoder = PreactResNet(weights=str(tmp_path / f"{i}.tar"))
        encoder.load_pretrained()
        encoders.append(encoder.state_dict())
    assert all(torch.equal(encoders[0][k], encoders[1][k]) for k in encoders[0])
    assert torch.equal(encoders[0]["d1.units.1.preact_bn.running_var"], state["d1.units.1.preact/bn.running_var"])


def test_a_checkpoint_that_does_not_fit_is_named_with_what_differs(tmp_path):
    path = tmp_path / "other.tar"
    torch.save({"desc": {"conv0./.weight": torch.zeros(1), "linear.weight": torch.zeros(1)}}, path)
    net = HoverNet(SMALL, 0, "fast", 32)
    with pytest.raises(
        DataError, match=r"other.tar: does not fit HoverNet: .* keys missing .* 1 unknown .*1 of another"
    ):
        load_reference(net, path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"other.tar: cannot be read as a checkpoint"):
        load_encoder(net.encoder, path)


# ---------------------------------------------------------------------- other encoders and bundles


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-b0", "tu-convnext_atto"])
def test_encoders_of_the_libraries_fit(name):
    net = HoverNet(SMP | {"name": name}, 5, "same", 32).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, 40, 70))["tp"].shape == (1, 6, 40, 70)


def test_an_unknown_encoder_is_named_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"model.encoder.name=resnet51: there is no such encoder. Did you mean 'resnet"
    ):
        SmpEncoder("resnet51")


def test_pretrained_weights_that_cannot_be_had_say_so(monkeypatch):
    from segmentation_models_pytorch import encoders

    encoder = SmpEncoder("resnet18")  # building needs no net

    def offline(*args, **kwargs):
        raise OSError("no net")

    monkeypatch.setattr(encoders, "get_encoder", offline)
    with pytest.raises(
        ConfigError, match=r"'imagenet' of the encoder 'resnet18' cannot be had.*model.encoder.weights=nu"
    ):
        encoder.load_pretrained()


@torch.no_grad()
def test_a_bundle_gives_the_same_maps_without_pretrained_weights(tmp_path):
    node = {
        "_target_": "ihc2he.models.segmentation.hovernet.networks.HoverNet",
        "encoder": SMALL | {"weights": "not/there.tar"},
        "n_types": 2,
        "width": 32,
    }
    net = HoverNet(node["encoder"], 2, width=32).eval()
    loaded, _ = load_bundle(save_bundle(net, tmp_path / "segmenter", {"module": node}))
    x = torch.rand(1, 3, 32, 32)
    assert all(torch.equal(net(x)[name], map_bchw) for name, map_bchw in loaded(x).items())
