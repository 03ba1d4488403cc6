"""The light U-Net as a segmenter: decoders, schedule, averaged weights, and continuing exactly."""

import contextlib

import pytest
import torch
from lightning.pytorch import Callback

from ihc2he.callbacks.averaging import AveragedWeights
from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.callbacks.finetuning import TwoPhases
from ihc2he.errors import ConfigError
from ihc2he.models.segmentation.loading import load_segmenter
from ihc2he.models.segmentation.unet.module import UNetSegmenter

DECODERS = "ihc2he.nuclei.decoders"
CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "pct_start": 0.5}
SMALL = {
    "encoder": {"_target_": "ihc2he.models.segmentation.encoders.EfficientNetLite0", "weights": None, "plain": True},
    "decoder": {"_target_": f"{DECODERS}.hover.HoverDecoder"},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3},
    "scheduler": CYCLE,
    "lr_encoder": 1e-3,
    "classes": ["round", "square"],
    "width": 4,
    "window": 64,
    "overlap": 16,
    "workers": 0,
}


def segmenter(**changes):
    torch.manual_seed(0)
    return UNetSegmenter(**(SMALL | changes))


class Rates(Callback):
    """Notes of the learning rates of each step; stops the run at a step."""

    def __init__(self, stop=None):
        self.stop, self.rates = stop, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.stop:
            raise KeyboardInterrupt
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_each_decoder_has_its_maps_and_its_loss(data):
    batch = next(iter(data().train_dataloader()))
    batch["centre"] = (batch["inst"] > 0).float()
    for kind, name in (("hover.HoverDecoder", "np_ce"), ("centres.CentresDecoder", "centre")):
        module = segmenter(decoder={"_target_": f"{DECODERS}.{kind}"})
        losses = module.terms(module.network(batch["image"]), batch)
        assert name in losses
        assert {"types", "nc_ce"} & losses.keys()


def test_a_decoder_without_a_loss_is_refused(monkeypatch):
    from ihc2he.nuclei.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "__abstractmethods__", frozenset())
    with pytest.raises(ConfigError, match=r"has losses for centres and hover, not for Decoder. Derive from"):
        segmenter(decoder=Decoder())


def test_one_cycle_reaches_both_learning_rates_and_ends_near_0(fit, data):
    rates = Rates()
    fit(segmenter(), data(n=8), rates, max_epochs=3)
    assert len(rates.rates) == 12
    assert max(rates.rates) == pytest.approx([3e-3, 1e-3])
    assert rates.rates[5] == max(rates.rates)
    assert rates.rates[-1][0] < 3e-4


def test_the_second_phase_has_a_cycle_of_its_own_that_ends_with_the_training(fit, data, tmp_path):
    phases, rates = TwoPhases(2, batch_size=1), Rates()
    fit(segmenter(), data(), phases, rates, LastCheckpoint(str(tmp_path)), max_epochs=4)
    first, second = rates.rates[:4], rates.rates[4:]
    assert len(second) == 8  # batches of half the size
    assert first[-1][0] > 1e-3
    assert max(second) == pytest.approx([3e-3, 1e-3])
    assert second[-1][0] < 6e-4
    again = Rates()
    (tmp_path / "stopped").mkdir()
    stopped = LastCheckpoint(str(tmp_path / "stopped"))
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        fit(segmenter(), data(), TwoPhases(2, batch_size=1), Rates(8), stopped, max_epochs=4)
    ckpt = str(tmp_path / "stopped" / "last.ckpt")
    fit(segmenter(), data(), TwoPhases(2, batch_size=1), again, max_epochs=4, ckpt_path=ckpt)
    assert again.rates == second[4:]


@pytest.mark.parametrize("stop", [4, 8])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(fit, data, tmp_path, stop):
    """In the middle of a cycle, with averaged weights."""
    ends = []
    for name, stops in (("whole", [None]), ("parts", [stop, None])):
        for i, stopped in enumerate(stops):
            rates, last = Rates(stopped), LastCheckpoint(str(tmp_path / name))
            ckpt = str(tmp_path / name / "last.ckpt") if i else None
            try:
                fit(segmenter(), data(n=8), rates, last, AveragedWeights(0.8), max_epochs=3, ckpt_path=ckpt)
            except (KeyboardInterrupt, SystemExit):
                assert stopped is not None
        ends.append((torch.load(tmp_path / name / "last.ckpt", weights_only=True), rates.rates))
    (whole, all_rates), (parts, later_rates) = ends
    assert all_rates[-len(later_rates) :] == later_rates
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert whole[key].keys() == parts[key].keys()
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items()), key


def test_the_average_is_what_a_checkpoint_and_a_test_have(fit, data, trainer, tmp_path, recwarn):
    class Seen(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            self.average = {k: v.clone() for k, v in pl_module.network.state_dict().items()}

    seen, last = Seen(), LastCheckpoint(str(tmp_path))
    module = segmenter()
    fit(module, data(), AveragedWeights(0.5), seen, last, max_epochs=2, limit_val_batches=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    inside = {k.removeprefix("network."): v for k, v in saved["state_dict"].items()}
    trained = {k.removeprefix("network."): v for k, v in saved["current_model_state"].items()}
    loaded = load_segmenter(str(tmp_path / "last.ckpt")).network.state_dict()
    for name, value in seen.average.items():
        assert torch.equal(value, inside[name])
        assert torch.equal(value, loaded[name])
    assert any(not torch.equal(value, trained[name]) for name, value in inside.items())
    fresh = segmenter()
    trainer(callbacks=[AveragedWeights(0.5)]).test(
        fresh, datamodule=data(), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False
    )
    assert all(torch.equal(value, inside[name]) for name, value in fresh.network.state_dict().items())
    assert not [w for w in recwarn if "WeightAveraging" in str(w.message)]


def test_a_run_that_is_made_longer_than_its_cycle_is_refused(fit, data, tmp_path):
    fit(segmenter(), data(), LastCheckpoint(str(tmp_path)), max_epochs=2)
    with pytest.raises(ConfigError, match=r"has 0 steps left, and trainer.max_epochs=3 makes 2. Continue with"):
        fit(segmenter(), data(), max_epochs=3, ckpt_path=str(tmp_path / "last.ckpt"))


def test_shares_that_are_no_average_are_refused():
    with pytest.raises(ConfigError, match=r"callbacks.average.decay=1.0: expected from 0 to below 1"):
        AveragedWeights(1.0)
