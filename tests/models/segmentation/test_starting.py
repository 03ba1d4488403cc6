"""Training that starts from trained weights: where it starts, what becomes of types, what does not fit, continuing."""

import csv
import logging
import shutil

import pytest
import torch
from lightning.pytorch import Callback

from ihc2he.callbacks.averaging import AveragedWeights
from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.callbacks.finetuning import TwoPhases
from ihc2he.callbacks.results import Results
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import save_bundle
from ihc2he.models.segmentation.encoders import PreactResNet
from ihc2he.models.segmentation.unet.module import UNetSegmenter

DECODERS = "ihc2he.nuclei.decoders"
UNET = {
    "encoder": {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1]},
    "decoder": {"_target_": f"{DECODERS}.hover.HoverDecoder"},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.OneCycleLR"},
    "classes": ["round", "square"],
    "width": 4,
    "window": 64,
    "overlap": 16,
    "workers": 0,
}


@pytest.fixture
def unet():
    """Return `unet(seed, **changes)`, a small U-Net with weights of this seed."""

    def build(seed=0, **changes):
        torch.manual_seed(seed)
        return UNetSegmenter(**(UNET | changes))

    return build


@pytest.fixture
def bundle(tmp_path):
    """Return `bundle(module, **changes)`, which saves the network of a segmenter, and its folder."""

    def save(module, **changes):
        network, info = module.exports()["segmenter"]
        return str(save_bundle(network, tmp_path / "trained", info | {"mpp": 0.25} | changes))

    return save


class Start(Callback):
    """Keeps the weights that the check before training validates, and those of the first step."""

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if trainer.sanity_checking:
            self.validated = copy_of(pl_module)

    def on_train_start(self, trainer, pl_module):
        self.trained = copy_of(pl_module)


def copy_of(module):
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def differing(a, b):
    assert a.keys() == b.keys()
    return {name for name, value in a.items() if not torch.equal(value, b[name])}


def begun(fit, module, data, *callbacks):
    start = Start()
    fit(module, data, start, *callbacks, limit_val_batches=1)
    return start


@pytest.mark.parametrize("kind", ["hovernet", "unet"])
@pytest.mark.parametrize("source", ["bundle", "checkpoint"])
def test_a_training_starts_exactly_at_the_weights(segmenter, unet, bundle, fit, data, tmp_path, kind, source):
    build = {"hovernet": segmenter, "unet": unet}[kind]
    trained = build(7)
    init = bundle(trained)
    if source == "checkpoint":
        fit(trained, data(), LastCheckpoint(str(tmp_path)))
        init = str(tmp_path / "last.ckpt")
    start = begun(fit, build(init=init), data(), AveragedWeights(0.9))
    assert differing(start.trained, copy_of(trained)) == set()
    assert differing(start.validated, start.trained) == set()
    assert differing(start.trained, copy_of(build())) != set()


def test_the_weights_of_the_encoder_are_not_asked_for_and_it_may_be_frozen(
    segmenter, bundle, fit, data, monkeypatch, caplog
):
    monkeypatch.setattr(PreactResNet, "load_pretrained", lambda self: pytest.fail("asked for"))
    module = segmenter(init=bundle(segmenter(7)))
    assert module.pretrained
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="ihc2he"):
        start = begun(fit, module, data(), TwoPhases(2))
    assert "trained. Its types go on: round, square." in caplog.text
    after = module.encoder.state_dict()
    assert all(torch.equal(value, start.trained[f"encoder.{name}"]) for name, value in after.items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("kind", ["hovernet", "unet"])
def test_types_of_the_same_name_go_on_and_others_start_anew(segmenter, unet, bundle, fit, data, caplog, kind):
    build = {"hovernet": segmenter, "unet": unet}[kind]
    trained = build(7, classes=["flat", "square", "star"])
    own = build(0)
    random = copy_of(own)
    with caplog.at_level(logging.INFO, logger="ihc2he"):
        started = begun(fit, build(0, init=bundle(trained)), data()).trained
    assert "Types that go on: square; that start anew: round." in caplog.text
    head = {"hovernet": "decoder.tp.u0.conv.", "unet": "heads.tp."}[kind]
    theirs = copy_of(trained)
    for part in ("weight", "bias"):
        value = started.pop(head + part)
        assert torch.equal(value[[0, 2]], theirs[head + part][[0, 2]])  # background and square
        assert torch.equal(value[1], random[head + part][1])
        theirs.pop(head + part)
    assert differing(started, theirs) == set()


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (["a", "b"], ["round", "square"], "All types start anew: round, square; it has a, b."),
        ([], ["round", "square"], "All types start anew: round, square; it has none."),
        (["a", "b"], [], "Its types (a, b) are left out."),
        ([], [], "All of its weights are taken."),
    ],
)
def test_without_a_common_type_the_types_start_anew(unet, bundle, fit, data, caplog, was, now, said):
    trained = unet(7, classes=was)
    with caplog.at_level(logging.INFO, logger="ihc2he"):
        started = begun(fit, unet(0, classes=now, init=bundle(trained)), data()).trained
    assert said in caplog.text
    theirs, random = copy_of(trained), copy_of(unet(0, classes=now))
    for name, value in started.items():
        assert torch.equal(value, (random if name.startswith("heads.tp.") else theirs)[name]), name


def test_weights_are_judged_before_any_training(unet, bundle, trainer, data, tmp_path):
    trained = unet(7)
    module = unet(init=bundle(trained))
    assert not module.requires_checkpoint
    assert unet().requires_checkpoint
    values = []
    for one, folder in ((module, "init"), (trained, "own")):
        trainer(callbacks=[Results(str(tmp_path / folder))]).test(one, datamodule=data(), verbose=False)
        with (tmp_path / folder / "results.csv").open() as stream:
            values.append(list(csv.DictReader(stream)))
    assert values[0] == values[1]
    anew = unet(init=bundle(unet(7, classes=["a"])))
    with pytest.raises(ConfigError, match=r"no weights for round, square, so a test would show random types"):
        trainer().test(anew, datamodule=data(), verbose=False)
    with pytest.raises(ConfigError, match=r"no weights for round, square"):
        trainer().validate(anew, datamodule=data(), verbose=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 8}, r"trained: holds a UNet on PreactResNet .*such as .*Pass model.width=8\.$"),
        (
            {"encoder": UNET["encoder"] | {"width": 8}},
            r"holds a UNet on PreactResNet with a HoverDecoder, .*Pass model.encoder.width=8\.$",
        ),
        (
            {"decoder": {"_target_": f"{DECODERS}.centres.CentresDecoder"}},
            r"with a CentresDecoder, and .* with a HoverDecoder .*Pass model/decoder=centres\.$",
        ),
        (
            {
                "encoder": {
                    "_target_": "ihc2he.models.segmentation.encoders.SmpEncoder",
                    "name": "resnet18",
                    "weights": None,
                }
            },
            r"on SmpEncoder .*Pass model/encoder=NAME with _target_ ihc2he.*SmpEncoder\.$",
        ),
    ],
)
def test_weights_of_another_network_are_named_with_what_to_pass(unet, bundle, fit, data, changes, message):
    init = bundle(unet(7, **changes))
    with pytest.raises(ConfigError, match=message) as error:
        fit(unet(init=init), data())
    assert "\n" not in str(error.value)


def test_weights_of_another_model_or_of_nothing_are_named(unet, segmenter, bundle, fit, data, tmp_path, small):
    init = bundle(segmenter(7))
    with pytest.raises(
        ConfigError, match=r"holds a HoverNet on .*this configuration has a UNet .*by its config.yaml\.$"
    ):
        fit(unet(init=init), data())
    network, info = small().exports()["g_ihc2he"]
    generator = str(save_bundle(network, tmp_path / "g", info | {"mpp": 0.46}))
    with pytest.raises(ConfigError, match="expected the bundle of a segmenter, found 'translator'"):
        fit(unet(init=generator), data())
    with pytest.raises(DataError, match=r"nowhere.ckpt: there is no such file"):
        fit(unet(init="nowhere.ckpt"), data())
    with pytest.raises(ConfigError, match=r"model.weights=a.tar and model.init=b: expected one of them"):
        segmenter(weights="a.tar", init="b")


def test_another_pixel_size_and_other_thresholds_are_said(unet, bundle, fit, data, caplog):
    decoder = UNET["decoder"] | {"threshold": 0.4}
    fit(unet(init=bundle(unet(7, decoder=decoder), mpp=0.5)), data())
    assert "was trained at 0.5 um/px and this data has 0.25" in caplog.text
    assert "pass data.target_mpp=0.5." in caplog.text
    assert "other settings of its decoder. For these pass model.decoder.threshold=0.4." in caplog.text


@pytest.mark.parametrize("kind", ["hovernet", "unet"])
def test_a_continued_run_is_exact_and_needs_the_weights_no_more(
    segmenter, unet, bundle, fit, trainer, data, tmp_path, kind
):
    build = {"hovernet": segmenter, "unet": unet}[kind]
    init = bundle(build(7))

    def part(name, seed, epochs, ckpt=None):
        callbacks = [AveragedWeights(0.8), LastCheckpoint(str(tmp_path / name))]
        return fit(build(seed, init=init, scheduler=None), data(), *callbacks, max_epochs=epochs, ckpt_path=ckpt)

    part("whole", 0, 3)
    part("parts", 0, 1)
    shutil.rmtree(init)
    runner = part("parts", 5, 3, tmp_path / "parts" / "last.ckpt")
    whole, parts = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    for key in ("state_dict", "current_model_state"):
        assert differing(whole[key], parts[key]) == set()
    trained = copy_of(runner.lightning_module)
    runner.test(runner.lightning_module, datamodule=data(), verbose=False)  # the next stage of the same run
    assert differing(copy_of(runner.lightning_module), trained) == set()
    fresh = build(init=init)
    trainer().test(fresh, datamodule=data(), ckpt_path=tmp_path / "parts" / "last.ckpt", verbose=False)
    assert differing(copy_of(fresh), trained) == set()
    with pytest.raises(DataError, match="trained"):
        fit(build(init=init), data())
