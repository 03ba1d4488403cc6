"""The content terms of the CycleGAN: off they are not there, on they are their formulas, and nothing else changes."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from ihc2he.callbacks.bundles import Bundles
from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError
from ihc2he.losses.adversarial import together
from ihc2he.losses.content import nuclear_loss, segmentation_loss
from ihc2he.models.translation.cyclegan import module as cyclegan
from ihc2he.models.translation.cyclegan.module import CycleGAN
from ihc2he.models.translation.frozen import FrozenSegmenter

LOCAL = {"_target_": "ihc2he.models.translation.local.LocalUNet", "width": 4, "depth": 1}


@pytest.fixture
def on(monkeypatch, segmenter_bundle):
    """Return the settings with which all terms are on, for data of 0.5 um/px."""
    monkeypatch.setattr(CycleGAN, "data", DataInfo(mpp=0.5))
    terms = {"lambda_nuclear": 5.0, "nuclear_dab": 0.5, "lambda_segmentation": 2.0}
    return terms | {"segmenter": segmenter_bundle()}


class Plain(CycleGAN):
    """The losses as they were before there were content terms."""

    def generator_losses(self, batch):
        ihc, he = batch["ihc"], batch["he"]
        cycle, identity = self.lambda_cycle, self.lambda_cycle * self.lambda_identity
        fake_he = self.g_ihc2he(ihc)
        fake_ihc, again_ihc, same_ihc = together(self.g_he2ihc, he, fake_he, ihc)
        again_he, same_he = together(self.g_ihc2he, fake_ihc, he)
        losses = {
            "cycle_ihc": cycle * F.l1_loss(again_ihc.float(), ihc),
            "cycle_he": cycle * F.l1_loss(again_he.float(), he),
            "g_he": self.adversarial_loss("he", fake_he),
            "g_ihc": self.adversarial_loss("ihc", fake_ihc),
            "identity_he": identity * F.l1_loss(same_he.float(), he),
            "identity_ihc": identity * F.l1_loss(same_ihc.float(), ihc),
        }
        return losses, {"ihc": fake_ihc, "he": fake_he}


def test_off_they_cost_nothing_and_change_no_bit(small, fit, monkeypatch):
    def refuse(*args):
        raise AssertionError

    for name in ("nuclear_loss", "segmentation_loss", "FrozenSegmenter"):
        monkeypatch.setattr(cyclegan, name, refuse)
    module = small(segmenter="not_there")
    plain = small()
    plain.__class__ = Plain
    trainers = [fit(one, max_epochs=2, n=2) for one in (module, plain)]
    assert trainers[0].logged_metrics.keys() == trainers[1].logged_metrics.keys()
    assert all(torch.equal(value, trainers[1].logged_metrics[key]) for key, value in trainers[0].logged_metrics.items())
    states = [one.state_dict() for one in (module, plain)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_on_they_are_their_formulas_and_the_rest_stays(small, fit, tiles, on):
    module = small(**on)
    start, plain = copy.deepcopy(module), small()
    logged = fit(module, n=1).logged_metrics
    without = fit(plain, n=1).logged_metrics
    data, segmenter = tiles(1, 16), FrozenSegmenter(on["segmenter"], 0.5)
    with torch.no_grad():
        fake_he, fake_ihc = start.g_ihc2he(data.ihc), start.g_he2ihc(data.he)
        again, own = start.g_ihc2he(fake_ihc), segmenter(data.he)
        expected = {
            "nuclear_he": 5 * nuclear_loss(data.ihc, fake_he, 0.5),
            "nuclear_ihc": 5 * nuclear_loss(fake_ihc, data.he, 0.5),
            "segmentation_again": 2 * segmentation_loss(segmenter(again), own),
            "segmentation_ihc": 2 * segmentation_loss(segmenter(fake_ihc), own),
        }
    own_terms = {key: logged[f"train/loss_{key}"].item() for key in expected}
    assert own_terms == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-4)
    total = without["train/loss_g"].item() + sum(own_terms.values())
    assert logged["train/loss_g"].item() == pytest.approx(total, rel=1e-5)
    for key in ("cycle_ihc", "cycle_he", "identity_he", "g_he"):
        assert torch.equal(logged[f"train/loss_{key}"], without[f"train/loss_{key}"])


@pytest.mark.parametrize("term", ["lambda_nuclear", "lambda_segmentation"])
def test_each_term_moves_both_generators(small, tiles, on, fit, term):
    quiet = {"lambda_cycle": 0.0, "lambda_identity": 0.0, "lambda_nuclear": 0.0, "lambda_segmentation": 0.0}
    module = small(**on | quiet | {term: 1.0})
    fit(module, n=1)
    data = tiles(1, 16)
    losses, _ = module.generator_losses({"ihc": data.ihc, "he": data.he})
    terms = [value for name, value in losses.items() if name.startswith(term.removeprefix("lambda_"))]
    sum(terms).backward()
    for network in module.generators.values():
        assert all(p.grad.isfinite().all() for p in network.parameters())
        assert sum(p.grad.abs().sum() for p in network.parameters()) > 0


def test_the_segmenter_stays_as_it_was_and_out_of_checkpoints_and_optimisers(small, fit, on, tmp_path):
    modes = []

    class Modes(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            modes.append(pl_module.frozen.network.training)

    module = small(**on)
    names = set(module.state_dict())
    fit(module, LastCheckpoint(str(tmp_path)), Modes(), n=2)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == names == set(small().state_dict())
    assert checkpoint["hyper_parameters"]["segmenter"] == on["segmenter"]
    assert modes == [False, False]
    frozen = module.frozen.network
    fresh = FrozenSegmenter(on["segmenter"], 0.5).network
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in frozen.state_dict().items())
    held = {id(p) for optimizer in module.configure_optimizers()[0] for group in optimizer.param_groups
            for p in group["params"]}  # fmt: skip
    assert not held & {id(p) for p in frozen.parameters()}
    assert all(p.grad is None for p in frozen.parameters())


@pytest.mark.parametrize("generator", [None, LOCAL])
def test_a_run_in_two_parts_equals_the_run_in_one(small, fit, on, tmp_path, generator):
    settings = on | ({"generator": generator} if generator else {}) | {"n_epochs": 2, "n_epochs_decay": 2}
    whole = fit(small(**settings), max_epochs=4, n=2).lightning_module.state_dict()
    fit(small(**settings), LastCheckpoint(str(tmp_path)), max_epochs=2, n=2)
    again = fit(small(seed=9, **settings), max_epochs=4, n=2, ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(value, whole[key]) for key, value in again.lightning_module.state_dict().items())


def test_losses_are_float32_under_bf16(small, fit, tiles, on):
    module = small(generator=LOCAL, **on)
    trainer = fit(module, n=2, precision="bf16-mixed")
    assert all(torch.isfinite(value) for value in trainer.logged_metrics.values())
    data = tiles(1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        losses, made = module.generator_losses({"ihc": data.ihc, "he": data.he})
    assert made["he"].dtype == torch.bfloat16  # or the rest would prove nothing
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {"nuclear_he", "nuclear_ihc", "segmentation_again", "segmentation_ihc"} <= losses.keys()


def test_bundles_carry_the_terms_and_how_far_a_pixel_sees(small, fit, on, tmp_path):
    fit(small(generator=LOCAL, **on), Bundles(str(tmp_path / "on")), n=1)
    fit(small(lambda_identity=0.0), Bundles(str(tmp_path / "off")), n=1)
    info = {
        (run, name): json.loads((tmp_path / run / name / "config.json").read_text())
        for run in ("on", "off")
        for name in ("g_ihc2he", "g_he2ihc")
    }
    for (run, _), config in info.items():
        every = {"adversarial": 1.0, "cycle": 10.0, "identity": 5.0, "nuclear": 5.0, "segmentation": 2.0}
        assert config["terms"] == (every if run == "on" else {"adversarial": 1.0, "cycle": 10.0})
        assert config["halo"] == (11 if run == "on" else None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_nuclear": -1.0}, r"model\.lambda_nuclear=-1\.0"),
        ({"lambda_nuclear": 5.0}, r"model\.lambda_nuclear=5 needs model\.nuclear_dab: 1 .* or 0 "),
        ({"nuclear_dab": -0.5}, r"model\.nuclear_dab=-0\.5"),
        ({"lambda_segmentation": 1.0}, r"model\.segmenter=None.*a bundle"),
    ],
)
def test_wrong_settings_are_named(small, changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)
