"""Where the weights of a segmenter come from, and what it makes of images of any size."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ihc2he.config import config_dir, preflight
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.pipeline.finding import find_in_density
from ihc2he.models.pipeline.inference import predict
from ihc2he.models.pipeline.segmenters import Classical, Learned
from ihc2he.models.pipeline.translators import Identity
from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.segmentation.loading import PANNUKE
from ihc2he.nuclei.decoders.hover import HoverDecoder
from ihc2he.nuclei.instances import means
from ihc2he.nuclei.targets import hv_maps

ENCODER = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1]}
FILES = sorted((config_dir() / "model" / "segmenter").glob("*.yaml"))


def images(n=1, height=64, width=64, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_yaml_fits_its_class(file):
    preflight({"model": {"segmenters": {file.stem: OmegaConf.to_container(OmegaConf.load(file))}}})


# ------------------------------------------------------------------ where weights come from


def test_without_weights_the_error_says_what_makes_them():
    with pytest.raises(ConfigError, match=r"experiment=hovernet_pannuke.*RUN/bundles/segmenter.*\[classical\]"):
        Learned(None)


def test_a_bundle_knows_all_that_is_needed(segmenter_bundle, hovernet):
    segmenter = Learned(segmenter_bundle(mpp=0.5, keep_unmarked=False))
    assert (segmenter.mpp, segmenter.classes, segmenter.members) == (0.5, PANNUKE, 1)
    assert segmenter.decoder == HoverDecoder(keep_unmarked=False)
    with torch.no_grad():
        assert torch.allclose(segmenter(images()), HoverDecoder().join(hovernet()(images())), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("info", "mpp", "message"),
    [
        ({"mpp": 0.5}, 0.25, r"mpp=0\.25: .*segmenter was trained at 0\.5 um/px"),
        ({"mpp": None}, None, r"segmenter: does not say its pixel size.*segmenters\.hovernet\.mpp"),
    ],
)
def test_a_bundle_that_says_otherwise_or_too_little(segmenter_bundle, info, mpp, message):
    with pytest.raises(ConfigError, match=message):
        Learned(segmenter_bundle(**info), mpp)


def test_a_bundle_without_names_of_types_is_refused(segmenter_bundle):
    bundle = Path(segmenter_bundle())
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "classes"}))
    with pytest.raises(DataError, match=r"segmenter: config\.json has no list of classes"):
        Learned(str(bundle))


def test_the_bundle_of_a_generator_is_no_segmenter(generator_bundle):
    with pytest.raises(ConfigError, match="expected the bundle of a segmenter, found 'translator'"):
        Learned(generator_bundle())


def checkpoint(path, **hparams):
    optimizer = {"_target_": "torch.optim.Adam"}
    module = HoverNetSegmenter(ENCODER, optimizer, classes=["a", "b"], width=32, window=64, overlap=8, **hparams)
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    torch.save({"pytorch-lightning_version": "2.6.4", **content}, path)
    return str(path), module.network.eval()


def test_a_checkpoint_needs_to_be_told_its_pixel_size(tmp_path):
    path, network = checkpoint(tmp_path / "last.ckpt", keep_unmarked=False)
    with pytest.raises(ConfigError, match=r"last\.ckpt: does not say its pixel size"):
        Learned(path)
    segmenter = Learned(path, mpp=0.4)
    assert (segmenter.mpp, segmenter.classes) == (0.4, ["a", "b"])
    assert segmenter.decoder == HoverDecoder(keep_unmarked=False)
    with torch.no_grad():
        assert torch.allclose(segmenter(images()), HoverDecoder().join(network(images())), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["none.ckpt", "broken.ckpt", "none.tar", "broken.tar"])
def test_files_that_are_missing_or_broken_are_named(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        Learned(str(tmp_path / name), mpp=0.25)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    other = {"pytorch-lightning_version": "2.6.4", "hyper_parameters": {"generator": {}}, "state_dict": {}}
    torch.save(other, tmp_path / "g.ckpt")
    with pytest.raises(ConfigError, match=r"g\.ckpt: holds no description of a segmenter.*RUN/bundles/segmenter"):
        Learned(str(tmp_path / "g.ckpt"), mpp=0.25)


def test_the_authors_file_has_five_types_and_a_quarter_of_a_micron(tmp_path, monkeypatch):
    path = tmp_path / "hovernet_fast_pannuke_type_tf2pytorch.tar"
    small = functools.partial(HoverNet, width=32)
    monkeypatch.setattr("ihc2he.models.segmentation.loading.HoverNet", lambda encoder, n_types: small(ENCODER, n_types))
    theirs = small(ENCODER, 5)
    # Their file has the encoder at the top, and its layers in another spelling.
    state = {key.removeprefix("encoder."): value for key, value in theirs.state_dict().items()}
    state = {f"module.{key}".replace("conv0.conv.", "conv0./."): value for key, value in state.items()}
    torch.save({"desc": state}, path)
    segmenter = Learned(str(path))
    assert (segmenter.mpp, list(segmenter.classes)) == (0.25, PANNUKE)
    with torch.no_grad():
        maps_bkhw = segmenter(images())
        assert maps_bkhw.shape == (1, 3 + 6, 64, 64)  # nucleus, two HV maps, background and five types
        assert torch.allclose(maps_bkhw, HoverDecoder().join(theirs.eval()(images())), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"trained at 0\.25 um/px"):
        Learned(str(path), mpp=0.5)


@pytest.mark.parametrize("classes", [["a", "b"], []])
def test_the_likeliest_type_is_all_that_is_handed_on_of_types(segmenter_bundle, classes):
    segmenter = Learned(segmenter_bundle(classes=classes))
    maps_bkhw = torch.rand(2, 3 + (1 + len(classes) if classes else 0), 8, 8)
    reduced_bkhw = segmenter.reduced(maps_bkhw)
    assert torch.equal(reduced_bkhw[:, :3], maps_bkhw[:, :3])
    if classes:
        assert torch.equal(reduced_bkhw[:, 3:], maps_bkhw[:, 3:].argmax(1, keepdim=True).float())
    assert reduced_bkhw.shape[1] == (4 if classes else 3)


# ------------------------------------------------------------------ settings of the decoder


def test_settings_of_the_decoder_replace_those_of_the_weights(segmenter_bundle):
    bundle = segmenter_bundle(keep_unmarked=False)
    segmenter = Learned(bundle, decoder={"threshold": 0.3, "keep_unmarked": None})
    assert segmenter.decoder == HoverDecoder(keep_unmarked=False, threshold=0.3)
    assert segmenter.find == segmenter.decoder.find
    assert segmenter.facts()["decoder"]["threshold"] == 0.3
    assert Learned(bundle).decoder == Learned(bundle, decoder={"threshold": None}).decoder == HoverDecoder(False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.3}, r"decoder\.treshold: the HoverDecoder of .*segmenter has no .*Did you mean 'threshold'"),
        ({"_target_": "torch.nn.Linear"}, r"decoder\._target_: .* has no such setting"),
        ({"threshold": 1.5}, r"decoder\.threshold=1\.5: expected above 0 and below 1"),
        ({"threshold": "low"}, "threshold='low'; expected a number"),
    ],
)
def test_settings_that_the_decoder_does_not_have_are_refused(segmenter_bundle, settings, message):
    with pytest.raises(ConfigError, match=message):
        Learned(segmenter_bundle(), decoder=settings)


# ------------------------------------------------------------------ ensembles


@pytest.mark.parametrize("other", [{"mpp": 0.5}, {"classes": ["a", "b"]}, {"keep_unmarked": False}])
def test_bundles_that_differ_are_both_named(segmenter_bundle, other):
    first, second = segmenter_bundle("first"), segmenter_bundle("second", **other)
    with pytest.raises(ConfigError, match=f"{re.escape(first)} .* and {re.escape(second)} .*cannot be averaged"):
        Learned([first, second])


def test_an_ensemble_averages_maps_and_votes(segmenter_bundle):
    sources = [segmenter_bundle(f"s{seed}", seed=seed) for seed in (0, 1)]
    both = Learned(sources)
    assert both.members == 2
    found = predict(Identity(), {"both": both}, images(2), 0.25)["both"]
    with torch.no_grad():
        singles = [Learned(source)(images(2)) for source in sources]
    assert torch.allclose(found.maps_bkhw, (singles[0] + singles[1]) / 2, rtol=1e-3, atol=1e-3)
    nucleus = [(maps_bkhw[:, 0] >= 0.5).float() for maps_bkhw in singles]
    assert torch.equal(found.votes_bhw, (nucleus[0] + nucleus[1]) / 2)
    assert 0 < (found.votes_bhw == 0.5).float().mean() < 1  # they disagree somewhere


# ------------------------------------------------------------------ maps and nuclei


@pytest.mark.parametrize(("height", "width"), [(37, 51), (3, 40), (1, 1), (100, 70)])
def test_images_of_any_size_get_maps_of_theirs(segmenter_bundle, height, width):
    segmenter = Learned(segmenter_bundle(), window=64, overlap=16)
    with torch.no_grad():
        assert segmenter(images(2, height, width)).shape == (2, 9, height, width)
    assert Classical()(images(2, height, width)).shape == (2, 1, height, width)


@pytest.mark.parametrize("side", [1, 2, 9])
def test_the_tiniest_tiles_have_no_nuclei_and_no_crash(side):
    for tile in (images(1, side, side), torch.ones(1, 3, side, side)):
        nuclei = find_in_density(Classical()(tile)[0].numpy(), 0.5)
        assert len(nuclei.centres_n2) == len(nuclei.scores_n)


def test_autocast_leaves_the_maps_float32(segmenter_bundle):
    segmenter = Learned(segmenter_bundle())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps_bkhw = segmenter(images())
        density = Classical()(images())
    assert maps_bkhw.dtype == density.dtype == torch.float32
    with torch.no_grad():
        assert (maps_bkhw - segmenter(images()))[:, 0].abs().mean() < 0.02
    assert torch.equal(density, Classical()(images()))


def test_nuclei_of_maps_have_the_mean_probability_as_score():
    inst_hw = np.zeros((40, 60), np.int32)
    inst_hw[5:20, 5:20], inst_hw[20:36, 30:46] = 1, 2
    prob_hw = np.select([inst_hw == 1, inst_hw == 2], [0.9, 0.7], 0.1).astype(np.float32)
    types_hw = np.select([inst_hw == 1, inst_hw == 2], [2, 1], 0).astype(np.float32)
    found = HoverDecoder().find(np.stack([prob_hw, *hv_maps(inst_hw), types_hw]), 0.25)
    assert np.array_equal(found.nuclei.inst_hw, inst_hw)
    assert found.nuclei.types_n.tolist() == [2, 1]
    assert found.scores_n == pytest.approx([0.9, 0.7])
    assert found.centres_n2.tolist() == [[12, 12], [37.5, 27.5]]
    untyped = HoverDecoder().find(np.concatenate([prob_hw[None], hv_maps(inst_hw)]), 0.25)
    assert untyped.nuclei.types_n.tolist() == [0, 0]


def test_unmarked_blobs_are_kept_as_the_weights_say():
    prob_hw = np.zeros((40, 40), np.float32)
    prob_hw[10:30, 18:24] = 1  # a blob on flat HV maps, which hold no marker
    maps_khw = np.concatenate([prob_hw[None], np.zeros((2, 40, 40), np.float32)])
    kept, lost = (HoverDecoder(keep_unmarked).find(maps_khw, 0.25) for keep_unmarked in (True, False))
    assert (len(kept.centres_n2), len(lost.centres_n2)) == (1, 0)


def test_the_classical_score_is_density_up_to_one():
    od_hw = np.zeros((60, 60), np.float32)
    od_hw[10:24, 10:24], od_hw[34:48, 34:48] = 0.6, 1.8
    found = find_in_density(od_hw[None], 0.5)
    assert found.scores_n == pytest.approx(np.minimum(means(od_hw, found.nuclei.inst_hw), 1))
    assert found.scores_n.max() == 1
    assert not found.nuclei.types_n.any()
