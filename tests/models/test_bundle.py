import json
import shutil
import time

import pytest
import safetensors.torch
import torch

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import load_bundle, save_bundle
from ihc2he.models.translation.cyclegan.networks import ResnetGenerator

NODE = {
    "_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator",
    "width": 4,
    "n_blocks": 1,
    "dropout": 0.5,
}
INFO = {
    "module": NODE,
    "role": "translator",
    "stain_in": "IHC",
    "stain_out": "H&E",
    "mpp": 0.46,
    "metrics": {"val/he/ssim": 0.375},
}


@pytest.fixture
def network():
    return ResnetGenerator(4, 1, dropout=0.5)


@pytest.fixture
def bundle(network, tmp_path):
    return save_bundle(network, tmp_path / "bundles" / "g_ihc2he", INFO)


def test_a_loaded_network_computes_the_same_and_is_in_evaluation_mode(bundle, network):
    loaded, info = load_bundle(bundle)
    x_bchw = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(x_bchw), network.eval()(x_bchw))
    assert not loaded.training
    assert info["stain_out"] == "H&E"


def test_config_and_card_say_what_one_must_know(bundle):
    config = json.loads((bundle / "config.json").read_text())
    assert {key: config[key] for key in INFO} == INFO
    assert config["format"] == 2
    assert set(config["versions"]) == {"ihc2he", "torch"}
    card = (bundle / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: ihc2he" in card
    for row in ("| stain_out | H&E |", "| mpp | 0.46 |", "| val/he/ssim | 0.375 |"):
        assert row in card
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_channels_last_weights_survive(network, tmp_path):
    loaded, _ = load_bundle(save_bundle(network.to(memory_format=torch.channels_last), tmp_path / "b", INFO))
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("module", [None, {"width": 4}, "ihc2he.Net"])
def test_a_network_that_nobody_can_build_is_refused(network, tmp_path, module):
    with pytest.raises(ConfigError, match="needs the configuration node of its network"):
        save_bundle(network, tmp_path / "b", {**INFO, "module": module})
    assert list(tmp_path.iterdir()) == []


def rewrite(bundle, **changes):
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: (b / "model.safetensors").unlink(), "not a model bundle; model.safetensors missing. Fit writes"),
        (lambda b: [p.unlink() for p in b.iterdir()], "config.json and model.safetensors missing"),
        (lambda b: cut(b / "model.safetensors"), "ValueError: model.safetensors is not the file that was saved"),
        (lambda b: cut(b / "config.json"), "damaged or of another version .JSONDecodeError"),
        (lambda b: (b / "config.json").write_bytes(b"\xff\xfe"), "damaged or of another version .UnicodeDecodeError"),
        (lambda b: (b / "config.json").write_text("[]"), "ValueError: config.json: found no 'module'"),
        (lambda b: (b / "config.json").write_text("{}"), "ValueError: config.json: found no 'module'"),
        (
            lambda b: rewrite(b, module=NODE | {"width": 8}),
            "damaged or of another version .RuntimeError.*size mismatch",
        ),
        (lambda b: rewrite(b, module=NODE | {"widht": 8}), "ConfigError: Building .*widht"),
        (
            lambda b: rewrite(b, module={"_target_": "ihc2he.models.gone.Net"}),
            "ConfigError.*no 'gone' in 'ihc2he.models'",
        ),
    ],
)
def test_a_damaged_bundle_is_named(bundle, spoil, message):
    spoil(bundle)
    with pytest.raises(DataError, match=message) as caught:
        load_bundle(bundle)
    assert str(caught.value).startswith(str(bundle))
    assert len(str(caught.value)) < len(str(bundle)) + 360
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": 0}, "mpp 0, expected um/px above 0"),
        ({"mpp": "0.5"}, "mpp '0.5', expected um/px above 0"),
        ({"value_range": [1, -1]}, r"value_range \[1, -1\], expected two numbers"),
        ({"classes": ["a", "a"]}, "classes: the name 'a' is repeated"),
        ({"classes": ["all"]}, "classes: the name 'all' is reserved"),
        ({"format": 1, "keep_unmarked": "no"}, "keep_unmarked 'no', expected true or false"),
        ({"format": 3}, "format 3, expected at most 2: written by a newer ihc2he"),
    ],
)
def test_values_that_cannot_be_right_are_named(bundle, change, message):
    rewrite(bundle, **change)
    with pytest.raises(DataError, match=message):
        load_bundle(bundle)


def test_a_changed_weight_is_noticed(bundle):
    path = bundle / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"is not the file that was saved with config.json, by its sha256"):
        load_bundle(bundle)


def resave(bundle, name, change):
    weights = safetensors.torch.load_file(bundle / "model.safetensors")
    weights[name] = change(weights[name])
    safetensors.torch.save_file(weights, bundle / "model.safetensors")
    config = json.loads((bundle / "config.json").read_text())
    del config["sha256"]  # as in a bundle that another program wrote
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda w: w * float("nan"), "NaN or infinite"), (lambda w: w.to(torch.int32), "torch.int32 values, expected")],
)
def test_weights_that_are_no_numbers_are_refused(bundle, network, change, message):
    resave(bundle, next(iter(network.state_dict())), change)
    with pytest.raises(DataError, match=message):
        load_bundle(bundle)


def test_code_beside_the_weights_is_not_executed(bundle, monkeypatch):
    monkeypatch.syspath_prepend(bundle.parent.parent)  # as the working directory is
    (bundle / "code.py").write_text("from pathlib import Path; Path(__file__).with_name('owned').touch(); Net = None")
    rewrite(bundle, module={"_target_": "bundles.g_ihc2he.code.Net"})
    with pytest.raises(DataError, match=r"'bundles\.g_ihc2he\.code\.Net' is none of torch\.nn and ihc2he"):
        load_bundle(bundle)
    assert not (bundle / "owned").exists()


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.Popen", "builtins.eval", "torch.hub.load",
     "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3"],  # a Module that reads a pickle
)  # fmt: skip
def test_a_bundle_can_build_nothing_but_networks(bundle, tmp_path, target):
    rewrite(bundle, module=NODE | {"inner": {"_target_": target, "_args_": [f"touch {tmp_path}/owned"]}})
    with pytest.raises(DataError, match=f"'{target}' is none of torch.nn and ihc2he"):
        load_bundle(bundle)
    assert not (tmp_path / "owned").exists()


def test_a_bundle_cannot_read_the_environment(bundle):
    rewrite(bundle, module=NODE | {"upsample": "${oc.env:HOME}"})
    with pytest.raises(DataError, match="Expected plain values without interpolations"):
        load_bundle(bundle)


def test_a_package_of_the_users_own_can_be_trusted(bundle, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from ihc2he.models.translation.cyclegan.networks import ResnetGenerator\nclass Net(ResnetGenerator): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(bundle, module=NODE | {"_target_": "own_networks.Net"})
    with pytest.raises(DataError, match="set IHC2HE_TRUSTED=own_netw"):
        load_bundle(bundle)
    monkeypatch.setenv("IHC2HE_TRUSTED", "own_networks")
    assert type(load_bundle(bundle)[0]).__name__ == "Net"


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "/no/such/folder", "a/b/c"])
def test_neither_a_folder_nor_a_hub_id(source):
    with pytest.raises(DataError, match=f"{source}: expected the folder of a bundle"):
        load_bundle(source)


def test_a_hub_that_cannot_be_reached_is_said_soon():
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"someone/g_ihc2he: no such folder, and the hub did not give it \(.*network"):
        load_bundle("someone/g_ihc2he")
    assert time.perf_counter() - started < 5


def test_a_rewrite_that_fails_leaves_the_old_bundle(bundle, network, monkeypatch):
    old = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_bundle(network, bundle, {**INFO, "mpp": 9.9})
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == old
    monkeypatch.undo()
    save_bundle(network, bundle, {**INFO, "mpp": 9.9})
    assert load_bundle(bundle)[1]["mpp"] == 9.9
    assert list(bundle.parent.iterdir()) == [bundle]


def test_an_interruption_while_the_old_one_is_removed_leaves_a_whole_bundle(bundle, network, monkeypatch):
    remove = shutil.rmtree

    def interrupted(path, *args, **kwargs):
        if path.exists():
            (path / "config.json").unlink()
            raise KeyboardInterrupt
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(network, bundle, {**INFO, "mpp": 9.9})
    assert load_bundle(bundle)[1]["mpp"] == 9.9


def test_half_precision_keeps_what_it_cannot_hold(tmp_path):
    network = ResnetGenerator(4, 1)
    with torch.no_grad():
        first, second = list(network.parameters())[:2]
        first.fill_(1 / 3)
        second.fill_(1e5)
    network.register_buffer("variance", torch.tensor([1e6, 1e-9]))
    save_bundle(network, tmp_path / "half", {"module": {"_target_": NODE["_target_"], "width": 4, "n_blocks": 1}}, True)
    saved = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    kept = [name for name, value in saved.items() if value.dtype != torch.float16]
    assert sorted(kept) == sorted(["variance", [name for name, _ in network.named_parameters()][1]])
    assert all(value.isfinite().all() for value in saved.values())
    assert torch.equal(saved["variance"], network.variance)


def test_metrics_without_a_value_are_left_out_so_that_any_program_reads_the_description(network, tmp_path):
    folder = save_bundle(network, tmp_path / "b", INFO | {"metrics": {"val/f1": 0.5, "val/mpq": float("nan")}})
    assert "NaN" not in (folder / "config.json").read_text()
    assert load_bundle(folder)[1]["metrics"] == {"val/f1": 0.5}
