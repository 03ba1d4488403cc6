"""One training step of pix2pix and its terms for misaligned pairs, against the papers' formulas; runs and settings."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader

from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError
from ihc2he.losses.patchnce import adaptive_weights, patchnce
from ihc2he.losses.pyramid import pyramid_l1
from ihc2he.models.translation.pix2pix.module import Pix2Pix

NETWORKS = "ihc2he.models.translation.cyclegan.networks"
SMALL = {
    "generator": {"_target_": f"{NETWORKS}.ResnetGenerator", "width": 4, "n_blocks": 1},
    "discriminator": {"_target_": f"{NETWORKS}.PatchDiscriminator", "width": 4, "n_layers": 1, "channels": 6},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 2e-3, "betas": [0.5, 0.999]},
    "layers": [0, 4, 10],
    "n_patches": 8,
    "width": 8,
}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.05}
EVERYWHERE = 10**6  # patches: all places, in whatever order
ALL = {"lambda_pyramid": 25.0, "lambda_asp": 10.0, "lambda_nce": 10.0}


@pytest.fixture(scope="module")
def small():
    """Return `small(**changes)`, which builds a pix2pix from a fixed seed of its weights."""

    def build(start=0, **changes):
        torch.manual_seed(start)
        return Pix2Pix(**(SMALL | changes))

    return build


def features(generator, x, layers):
    found = []
    for i, layer in enumerate(generator.model):
        x = layer(x)
        if i in layers:
            found.append(x.flatten(2).transpose(1, 2))
    return found


def contrast(m, generator, other, made, trust):
    """Mean over layers of the weighted PatchNCE of all places, whose own formulas have tests of their own."""
    losses = []
    both = (features(generator, x, m.contrast.layers) for x in (other, made))
    for head, key, query in zip(m.contrast.heads, *both, strict=True):
        k, q = head(key), head(query)
        losses.append((adaptive_weights(q, k, trust) * patchnce(q, k, 0.07)).mean())
    return sum(losses) / len(losses)


def reference_terms(m, batch, source, to, trust):
    generator, d = m.get_submodule(f"g_{source}2{to}"), m.get_submodule(f"d_{to}")
    made, real = generator(batch[source]), batch[to]
    judged = d(torch.cat([batch[source], made], 1))
    return {
        f"g_{to}": F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged)),
        "l1": 100 * (made - real).abs().mean(),
        "pyramid": 25 * pyramid_l1(made, real, 3),
        "nce": 10 * contrast(m, generator, batch[source], made, 1.0),
        "asp": 10 * contrast(m, generator, real, made, trust),
    }, made.detach()


@pytest.mark.parametrize("to", ["he", "ihc"])
def test_one_step_is_the_reference_s(small, fit, tiles, to):
    source = {"he": "ihc", "ihc": "he"}[to]
    module = small(optimizer=SGD, n_patches=EVERYWHERE, to=to, **ALL)
    m = copy.deepcopy(module)
    trainer = fit(module, n=2, batch_size=2)

    data = tiles(2, 16)
    batch = {"ihc": data.ihc, "he": data.he}
    terms, made = reference_terms(m, batch, source, to, 1.0)
    d, before = m.get_submodule(f"d_{to}"), copy.deepcopy(m.get_submodule(f"d_{to}").state_dict())
    d.zero_grad()
    real, fake = (d(torch.cat([batch[source], x], 1)) for x in (batch[to], made))
    terms[f"d_{to}"] = 0.5 * (
        F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    )
    terms[f"d_{to}"].backward()
    logged = {k.removeprefix("train/loss_"): v.item() for k, v in trainer.logged_metrics.items()}
    expected = {name: value.item() for name, value in terms.items()}
    expected |= {"d": expected[f"d_{to}"], "g": sum(v for k, v in expected.items() if k != f"d_{to}")}
    assert logged == pytest.approx(expected, rel=1e-4)
    stepped = {name: before[name] - SGD["lr"] * p.grad for name, p in d.named_parameters()}
    torch.testing.assert_close(module.get_submodule(f"d_{to}").state_dict(), stepped, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("term", ["l1", "pyramid", "nce", "asp"])
def test_each_term_is_a_switch(small, tiles, term):
    off = {"lambda_l1": 0.0, "lambda_pyramid": 0.0, "lambda_nce": 0.0, "lambda_asp": 0.0}
    data = tiles(1, 16)
    batch = {"ihc": data.ihc, "he": data.he}
    module = small(**off | {f"lambda_{term}": 2.0})
    losses, _ = module.generator_losses(batch)
    assert set(losses) == {"g_he", term}
    assert hasattr(module, "contrast") == (term in ("nce", "asp"))
    twice, _ = small(**off | {f"lambda_{term}": 4.0}).generator_losses(batch)
    assert twice[term].item() == pytest.approx(2 * losses[term].item(), rel=1e-5)


def test_the_trust_in_pairs_falls_in_the_epochs_of_the_decay(small, fit, tiles, monkeypatch):
    module, seen = small(lambda_asp=1.0, n_epochs=2, n_epochs_decay=3), []
    forward = module.contrast.forward

    def spy(*args, **kwargs):
        seen.append(kwargs["trust"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(module.contrast, "forward", spy)
    fit(module, n=1, max_epochs=5)
    assert seen == pytest.approx([1, 1, 1, 2 / 3, 1 / 3])


def test_the_discriminator_sees_the_source_first(small, tiles, monkeypatch):
    module, data, seen = small(), tiles(1, 16), []
    monkeypatch.setattr(module, "discriminator_loss", lambda d, real, fake: seen.append((real, fake)) or real.sum())
    made = torch.zeros(1, 3, 16, 16)
    module.discriminator_losses({"ihc": data.ihc, "he": data.he}, {"he": made})
    ((real, fake),) = seen
    assert torch.equal(real, torch.cat([data.ihc, data.he], 1))
    assert torch.equal(fake, torch.cat([data.ihc, made], 1))


def test_a_run_in_two_parts_equals_the_run_in_one(small, fit, tmp_path):
    schedule = {"n_epochs": 2, "n_epochs_decay": 2, "ema_decay": 0.9, "accumulate": 2, "gradient_clip_val": 1.0, **ALL}

    def state(trainer):
        trainer.save_checkpoint(tmp_path / "state.ckpt")
        return torch.load(tmp_path / "state.ckpt", weights_only=True)

    whole = state(fit(small(**schedule), max_epochs=4))
    fit(small(**schedule), LastCheckpoint(str(tmp_path)), max_epochs=2)
    again = state(fit(small(start=99, **schedule), max_epochs=4, ckpt_path=tmp_path / "last.ckpt"))
    other = state(fit(small(seed=1, **schedule), max_epochs=4))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(again[part], whole[part], atol=0, rtol=0)
    assert any(not torch.equal(value, other["state_dict"][name]) for name, value in whole["state_dict"].items())


class Data(LightningDataModule):
    """Tiles whose stains are pairs, or are not, or may be."""

    def __init__(self, tiles, paired):
        super().__init__()
        self.tiles, self.info = tiles(1, 16), DataInfo(mpp=0.46, paired=paired)

    def train_dataloader(self):
        return DataLoader(self.tiles)


class Epochs(Callback):
    def __init__(self):
        self.done = 0

    def on_train_epoch_end(self, *args):
        self.done += 1


@pytest.mark.parametrize("paired", [True, None])
def test_pairs_are_trained_on(small, tiles, trainer, paired):
    epochs = Epochs()
    trainer(callbacks=[epochs]).fit(small(), datamodule=Data(tiles, paired))
    assert epochs.done == 1


def test_data_without_pairs_are_refused(small, tiles, trainer):
    with pytest.raises(ConfigError, match=r"trained on pairs\. Pass data\.paired=true with data=bci"):
        trainer().fit(small(), datamodule=Data(tiles, False))


def test_they_are_judged_without_training(small, tiles):
    module = small()
    module.trainer = SimpleNamespace(datamodule=Data(tiles, False), precision="32-true", global_rank=0)
    module.setup("test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "he2ihc"}, "model.to=he2ihc: expected"),
        ({"lambda_asp": -1.0}, "model.lambda_asp=-1.0: expected 0 or more"),
        ({"octaves": 0}, "model.octaves=0: expected 1 or more"),
        ({"lambda_asp": 1.0, "layers": [99]}, "expected indices from 0 to"),
    ],
)
def test_wrong_settings_are_named(small, changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)
