import json
import logging
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ihc2he.build import build
from ihc2he.config import config_dir, preflight
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.source import ArraySource
from ihc2he.models.bundle import save_bundle
from ihc2he.models.pipeline.translators import (
    Identity,
    LearnedTranslator,
    Macenko,
    Recolour,
    Reinhard,
    Rendered,
    Translator,
)
from ihc2he.models.translation import loading
from ihc2he.stain.recolour import recolour

FILES = sorted((config_dir() / "model" / "translator").glob("*.yaml"))
GENERATOR = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator", "width": 4, "n_blocks": 1}
INFO = {"role": "translator", "stain_in": "IHC", "stain_out": "H&E", "value_range": [-1.0, 1.0], "mpp": 0.46}
LAB = {"lab_mean": [69.0, 19.0, -14.0], "lab_std": [18.0, 8.0, 8.0]}


class Affine(nn.Module):
    """A generator without surroundings, and so the same in windows."""

    def __init__(self, factor: float = -1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.offset = offset
        self.seen = []

    def forward(self, x_bchw):
        self.seen.append((tuple(x_bchw.shape[-2:]), x_bchw.is_contiguous(memory_format=torch.channels_last)))
        return self.factor * x_bchw + self.offset


def tiles(n=2, h=40, w=56):
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bundle(tmp_path):
    """Return `bundle(name, **changes)`, which writes a bundle of a small generator."""

    def write(name="g_ihc2he", seed=0, **changes):
        torch.manual_seed(seed)
        return str(save_bundle(build(GENERATOR, nn.Module), tmp_path / name, {"module": GENERATOR, **INFO, **changes}))

    return write


@pytest.fixture
def affine(monkeypatch):
    """Return `affine(network, value_range)`, a LearnedTranslator around it."""

    def around(network, value_range=(-1.0, 1.0), **changes):
        info = {**INFO, "value_range": list(value_range)}
        monkeypatch.setattr(loading, "load_bundle", lambda source: (network, info))
        return LearnedTranslator("anything", **changes)

    return around


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_yaml_fits_its_class_and_says_how_to_get_what_is_missing(file):
    node = OmegaConf.to_container(OmegaConf.load(file))
    preflight({"model": {"translators": {file.stem: node}}})
    if file.stem in ("cyclegan", "cut"):
        found = rf"experiment={file.stem}_bci.*model\.translators\.{file.stem}\.weights=PATH"
        with pytest.raises(ConfigError, match=found):
            build(node, Translator)
        return
    if file.stem in ("reinhard", "macenko"):
        pytest.importorskip("torchstain")
    translator = build(node, Translator)
    made = translator(tiles(3, 20, 33))
    assert made.shape == (3, 3, 20, 33)
    assert made.dtype == torch.float32
    assert 0 <= made.min() <= made.max() <= 1
    assert (translator.mpp, translator.members, translator.needs_he) == (None, 1, file.stem == "rendered")


def test_none_and_rendered_change_nothing():
    assert torch.equal(Identity()(tiles()), tiles())
    assert torch.equal(Rendered()(tiles()), tiles())


def test_recolour_is_the_function_with_the_constants_of_the_config():
    constants = {"h_gain": 1.0, "dab_gain": 0.5, "eosin_level": 0.1, "eosin_gain": 0.0}
    assert torch.equal(Recolour(**constants)(tiles()), recolour(tiles(), **constants))


# ------------------------------------------------------------------ classical normalisation


def stained(seed=0):
    """Return an image of two stains in patches, (3, 64, 64) in [0, 1]."""
    rng = np.random.default_rng(seed)
    od_hwc = rng.gamma(1.0, 0.7, (8, 8, 2)).repeat(8, 0).repeat(8, 1) @ np.array([[0.65, 0.7, 0.29], [0.27, 0.87, 0.4]])
    return torch.from_numpy(np.exp(-od_hwc)).permute(2, 0, 1).float()


def write(path, image_chw):
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), (image_chw.permute(1, 2, 0) * 255).round().byte().numpy()[..., ::-1])
    return path


@pytest.mark.parametrize("kind", ["reinhard", "macenko"])
def test_images_that_cannot_be_normalised_come_back_and_are_counted_once_at_the_end(kind, caplog):
    pytest.importorskip("torchstain")
    translator = Macenko(None) if kind == "macenko" else Reinhard(None, **LAB)
    blank = torch.full((3, 64, 64), 250 / 255)
    with caplog.at_level(logging.WARNING):
        first = translator(torch.stack([stained(), blank]))
        translator(blank[None])
        assert caplog.text == ""
        translator.finish()
        translator.finish()
    assert torch.equal(first[1], blank)
    assert (first[0] - stained()).abs().mean() > 0.02
    (record,) = caplog.records
    assert record.getMessage().startswith(f"The translator {kind} left 2 of 3 images unchanged")


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("kind", ["reinhard", "macenko"])
def test_a_target_lends_its_colours(kind, folder, tmp_path):
    pytest.importorskip("torchstain")
    file = write(tmp_path / "he" / "a.png", stained(1))
    target = str(file.parent if folder else file)
    translator = Macenko(target) if kind == "macenko" else Reinhard(target, **LAB)
    assert (translator(stained(1)[None]) - stained(1)).abs().mean() < 0.02  # its own colours already
    faint = stained(1) ** 0.6  # six tenths of the stain
    assert (translator(faint[None]) - stained(1)).abs().mean() < 0.3 * (faint - stained(1)).abs().mean()


@pytest.mark.parametrize("content", [None, b"", b"no image"], ids=["missing", "empty", "text"])
def test_a_target_that_is_no_image_is_named(content, tmp_path):
    file = tmp_path / "he.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(file))}: no readable image"):
        Macenko(str(file))


def test_a_target_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))}: no image in this folder"):
        Reinhard(str(tmp_path), **LAB)


def test_without_torchstain_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchstain"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchstain", None)
    with pytest.raises(ConfigError, match=r'pip install "ihc2he\[stain\]"'):
        build({"_target_": "ihc2he.models.pipeline.translators.Macenko", "target": None}, Translator)


# ------------------------------------------------------------------ generators


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_images_reach_the_generator_in_its_own_range_and_come_back(low, high, affine):
    translator = affine(Affine(-1.0, low + high), (low, high))  # turns bright into dark in that range
    assert torch.allclose(translator(tiles()), 1 - tiles(), atol=1e-6)


def test_what_leaves_the_range_is_cut_off(affine):
    made = affine(Affine(3.0))(tiles())
    assert (made.min(), made.max()) == (0, 1)


@pytest.mark.parametrize(("h", "w", "seen"), [(40, 40, 1), (40, 41, 2), (100, 40, 3), (100, 100, 9)])
def test_only_what_is_larger_than_the_window_is_divided(h, w, seen, affine):
    network = Affine()
    made = affine(network, window=40, overlap=8)(tiles(1, h, w))
    assert torch.allclose(made, 1 - tiles(1, h, w), atol=1e-5)
    assert len(network.seen) == seen
    assert all(shape == (40, 40) and channels_last for shape, channels_last in network.seen)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 40), (17, 30), (15, 16)])
def test_images_of_any_size_are_translated(h, w, bundle):
    made = LearnedTranslator(bundle())(tiles(2, h, w))
    assert made.shape == (2, 3, h, w)
    assert torch.isfinite(made).all()


def test_half_precision_around_it_gives_float32(bundle):
    with torch.autocast("cpu", torch.bfloat16):
        made = LearnedTranslator(bundle(), window=32, overlap=8)(tiles())
    assert made.dtype == torch.float32


LOCAL = {"_target_": "ihc2he.models.translation.local.LocalUNet", "width": 6, "depth": 2}


def loud(node):
    """Return a generator whose image has contrast: its last weights begin small."""
    torch.manual_seed(0)
    network = build(node, nn.Module)
    with torch.no_grad():
        [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1].weight.mul_(20)
    return network.eval()


@pytest.mark.parametrize("size", [(200, 150), (97, 333)])
def test_windows_of_a_local_generator_are_the_whole(size, affine, tmp_path):
    source = save_bundle(loud(LOCAL), tmp_path / "local", {"module": LOCAL, **INFO})
    whole, parts = (LearnedTranslator(str(source), window=window)(tiles(1, *size)) for window in (512, 96))
    assert whole.std() > 0.05
    torch.testing.assert_close(parts, whole, atol=5e-6, rtol=0)


def test_windows_of_the_reference_generator_are_not_the_whole_whatever_their_halo(affine):
    network = loud(GENERATOR)
    whole, parts = (affine(network, window=window, overlap=90)(tiles(1, 200, 150)) for window in (512, 128))
    network.halo, network.stride = 40, 4  # its convolutions see less far: normalisation is what differs
    with_halo = affine(network, window=128)(tiles(1, 200, 150))
    assert (parts - whole).abs().max() > 0.01
    assert (with_halo - whole).abs().max() > 0.01
    for layer in network.modules():
        if isinstance(layer, nn.InstanceNorm2d):
            layer.forward = lambda x_bchw: x_bchw / 2
    whole, with_halo = (affine(network, window=window)(tiles(1, 200, 150)) for window in (512, 128))
    torch.testing.assert_close(with_halo, whole, atol=1e-5, rtol=0)


def test_a_window_that_is_too_small_for_the_halo_is_named(affine):
    with pytest.raises(ConfigError, match=r"window=59: anything sees 27 px around each pixel; expected 60 or more"):
        affine(loud(LOCAL), window=59)
    assert affine(loud(LOCAL), window=60)(tiles(1, 100, 70)).shape == (1, 3, 100, 70)


def test_a_deep_local_generator_translates_tiny_images(affine):
    deep = loud(LOCAL | {"depth": 4})
    assert affine(deep)(tiles(1, 5, 20)).shape == (1, 3, 5, 20)


def test_members_are_kept_apart(bundle):
    sources = [bundle("a", seed=0), bundle("b", seed=1)]
    ensemble = LearnedTranslator(sources)
    assert (ensemble.members, ensemble.mpp) == (2, 0.46)
    for member, source in enumerate(sources):
        assert torch.equal(ensemble(tiles(), member), LearnedTranslator(source)(tiles()))
    assert not torch.equal(ensemble(tiles(), 0), ensemble(tiles(), 1))
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert not ensemble.networks[0].training


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_checkpoint_gives_the_generator_that_its_run_would_export(ema_decay, small, fit, tmp_path):
    module = small(ema_decay=ema_decay)
    fit(module).save_checkpoint(tmp_path / "last.ckpt")
    network, info = module.exports()["g_ihc2he"]
    module.eval()
    folder = save_bundle(network, tmp_path / "g_ihc2he", {**info, "mpp": 0.46})
    translator = LearnedTranslator([str(tmp_path / "last.ckpt"), str(folder)], mpp=0.46)
    expected = (module.translate(2 * tiles() - 1, "he") + 1) / 2
    assert torch.allclose(translator(tiles(), 0), expected, atol=1e-6)
    assert torch.equal(translator(tiles(), 0), translator(tiles(), 1))


def test_a_checkpoint_without_pixel_size_is_refused(small, fit, tmp_path):
    path = tmp_path / "last.ckpt"
    fit(small()).save_checkpoint(path)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: does not say.*cyclegan\.mpp=0\.46, or the bundle"):
        LearnedTranslator(str(path))


def test_members_of_different_pixel_sizes_are_both_named(bundle):
    a, b = bundle("a"), bundle("b", mpp=0.5)
    with pytest.raises(ConfigError, match=rf"{re.escape(a)} has 0\.46 um/px and {re.escape(b)} 0\.5;"):
        LearnedTranslator([a, b])
    with pytest.raises(ConfigError, match=r"g has 0\.46 um/px and model\.translators\.cyclegan\.mpp 0\.25;"):
        LearnedTranslator(bundle("g"), mpp=0.25)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stain_in": "H&E", "stain_out": "IHC"}, "a translator from H&E to IHC"),
        ({"role": "segmenter", "stain_in": "H&E", "stain_out": None}, "a segmenter from H&E to None"),
    ],
)
def test_another_bundle_says_what_it_is(changes, said, bundle):
    with pytest.raises(ConfigError, match=rf"this is the bundle of {said}; expected a translator from IHC to H&E"):
        LearnedTranslator(bundle(**changes))


def test_a_bundle_without_value_range_is_refused(bundle, tmp_path):
    source = bundle()
    config = json.loads((tmp_path / "g_ihc2he" / "config.json").read_text())
    del config["value_range"]
    (tmp_path / "g_ihc2he" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has no value_range"):
        LearnedTranslator(source)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    for path, content in ((tmp_path / "gone.ckpt", None), (tmp_path / "cut.ckpt", b"PK\x03\x04")):
        if content:
            path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path.name}: (there is no such file|not a readable checkpoint)"):
            LearnedTranslator(str(path), mpp=0.5)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"hyper_parameters": {"generator": Evil()}, "state_dict": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(DataError, match=r"evil\.ckpt: not a readable checkpoint.*nothing else is loaded"):
        LearnedTranslator(str(tmp_path / "evil.ckpt"), mpp=0.5)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    other = {"pytorch-lightning_version": "2.6.4", "hyper_parameters": {"encoder": GENERATOR}, "state_dict": {}}
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match=r"other\.ckpt: holds no generator.*RUN/bundles/g_ihc2he"):
        LearnedTranslator(str(tmp_path / "other.ckpt"), mpp=0.5)


def test_grey_glass_gets_no_eosin():
    white = (216.0, 216.0, 225.0)
    tile = np.full((64, 64, 3), white, np.uint8)
    tile[20:40, 20:40] = (110, 80, 60)
    translator = Recolour(h_gain=1.7, dab_gain=0.2, eosin_level=0.22, eosin_gain=1.0)
    x_bchw = torch.from_numpy(tile).permute(2, 0, 1)[None] / 255
    state = translator.prepare(ArraySource(tile))
    assert state == white
    assert translator(x_bchw, 0, [state])[..., :10, :].min() > 0.99
    assert translator(x_bchw)[:, 1, :10].max() < 0.9  # counted from 255 it would be pink
