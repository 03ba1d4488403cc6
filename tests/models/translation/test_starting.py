"""Training of a translation that starts from trained generators: where it starts, what does not fit, continuing."""

import logging
import shutil

import pytest
import torch
from lightning.pytorch import Callback

from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import save_bundle

NETWORKS = "ihc2he.models.translation.cyclegan.networks"


class Start(Callback):
    """Keeps the weights of the first step."""

    def on_train_start(self, trainer, pl_module):
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.fixture
def begun(small, fit):
    """Return `begun(**changes)`, the weights with which the training of a small CycleGAN begins."""

    def run(**changes):
        start = Start()
        fit(small(**changes), start, n=1)
        return start.state

    return run


@pytest.fixture
def bundles(tmp_path):
    """Return `bundles(module, *names, **changes)`, which saves some or all of its generators, and their folder."""

    def save(module, *names, **changes):
        for name, (network, info) in module.exports().items():
            if not names or name in names:
                save_bundle(network, tmp_path / "bundles" / name, info | {"mpp": 0.46} | changes)
        return str(tmp_path / "bundles")

    return save


def part(state, name):
    """Return the tensors of one network."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_all_networks_start_from_a_checkpoint_the_generators_from_the_averaged_ones(
    small, fit, begun, tmp_path, caplog
):
    trained = fit(small(7, ema_decay=0.5), LastCheckpoint(str(tmp_path))).lightning_module.state_dict()
    with caplog.at_level(logging.INFO, logger="ihc2he"):
        state = begun(init=str(tmp_path / "last.ckpt"), ema_decay=0.9)
    assert "last.ckpt: g_ihc2he, g_he2ihc, d_ihc, d_he." in caplog.text
    for name in ("g_ihc2he", "g_he2ihc"):
        averaged = part(trained, f"g_ema.{name}")
        assert equal(part(state, name), averaged)
        assert equal(part(state, f"g_ema.{name}"), averaged)
        assert not equal(part(trained, name), averaged)
    for name in ("d_ihc", "d_he"):
        assert equal(part(state, name), part(trained, name))
    plain = begun(init=str(tmp_path / "last.ckpt"))  # a model without averages
    assert equal(part(plain, "g_ihc2he"), part(trained, "g_ema.g_ihc2he"))


def test_a_discriminator_of_another_size_starts_at_random_and_it_says_so(small, fit, begun, tmp_path, caplog):
    trained = fit(small(7), LastCheckpoint(str(tmp_path))).lightning_module.state_dict()
    other = {"_target_": f"{NETWORKS}.PatchDiscriminator", "width": 8, "n_layers": 1}
    with caplog.at_level(logging.INFO, logger="ihc2he"):
        state = begun(init=str(tmp_path / "last.ckpt"), discriminator=other)
    assert "g_ihc2he, g_he2ihc; with random weights: d_ihc, d_he." in caplog.text
    assert equal(part(state, "g_he2ihc"), part(trained, "g_he2ihc"))
    assert equal(part(state, "d_he"), part(small(discriminator=other).state_dict(), "d_he"))


def test_generators_start_from_the_folder_of_bundles_or_from_one(small, begun, bundles, caplog):
    trained = small(7)
    folder = bundles(trained)
    with caplog.at_level(logging.INFO, logger="ihc2he"):
        both, one = begun(init=folder), begun(init=f"{folder}/g_he2ihc")
    assert f"{folder}: g_ihc2he, g_he2ihc; with random weights: d_ihc, d_he." in caplog.text
    (warned,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "g_he2ihc: g_he2ihc; with random weights: g_ihc2he, d_ihc, d_he." in warned.getMessage()
    own = small().state_dict()
    for name in ("g_ihc2he", "g_he2ihc"):
        assert equal(part(both, name), part(trained.state_dict(), name))
    assert equal(part(one, "g_he2ihc"), part(trained.state_dict(), "g_he2ihc"))
    assert equal(part(one, "g_ihc2he"), part(own, "g_ihc2he"))
    assert equal(part(both, "d_he"), part(own, "d_he"))


@pytest.mark.parametrize("source", ["bundle", "checkpoint"])
def test_a_generator_of_another_size_is_named_with_what_to_pass(small, fit, begun, bundles, tmp_path, source):
    other = {"_target_": f"{NETWORKS}.ResnetGenerator", "width": 8, "n_blocks": 1, "upsample": "resize"}
    trained = small(7, generator=other)
    init = bundles(trained)
    if source == "checkpoint":
        fit(trained, LastCheckpoint(str(tmp_path)), n=1)
        init = str(tmp_path / "last.ckpt")
    message = r"its g_ihc2he is another network .*Pass model.generator.width=8 model.generator.upsample=resize\.$"
    with pytest.raises(ConfigError, match=message):
        begun(init=init)


def test_what_is_no_translation_is_named(small, begun, bundles, tmp_path):
    folder = bundles(small(7), "g_ihc2he", stain_in="PAS")
    with pytest.raises(ConfigError, match=r"bundles/g_ihc2he: this is the bundle of a translator from PAS to H&E"):
        begun(init=folder)
    with pytest.raises(ConfigError, match=r"model.init=no/last.ckpt: there is no such file. Pass a checkpoint, or"):
        begun(init="no/last.ckpt")
    with pytest.raises(DataError, match=r"nowhere: expected the folder of a bundle"):
        begun(init="nowhere")
    content = {"state_dict": {"network.weight": torch.ones(1)}, "pytorch-lightning_version": "2.6.0"}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match=r"other.ckpt: holds no generators, and this model trains g_ihc2he and g_he2"):
        begun(init=str(tmp_path / "other.ckpt"))


def test_a_continued_run_is_exact_and_needs_the_weights_no_more(small, fit, bundles, tmp_path):
    settings = {"init": bundles(small(7)), "ema_decay": 0.9}
    whole = fit(small(**settings), max_epochs=3).lightning_module.state_dict()
    fit(small(**settings), LastCheckpoint(str(tmp_path)), max_epochs=1)
    shutil.rmtree(settings["init"])
    again = fit(small(5, **settings), max_epochs=3, ckpt_path=tmp_path / "last.ckpt").lightning_module.state_dict()
    assert equal(whole, again)
    without = fit(small(ema_decay=0.9), max_epochs=3).lightning_module.state_dict()
    assert not equal(whole, without)
