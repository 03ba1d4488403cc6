"""Steps of training against the formulas, written out; and whole runs: continued, averaged, checked."""

import copy
from collections.abc import Mapping
from math import log

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.errors import ConfigError
from ihc2he.losses.adversarial import gradient_penalty
from ihc2he.models.generation.draws import Draws
from ihc2he.models.generation.module import Gan
from ihc2he.models.generation.statistics import measure_statistics

NAMES = ("dcgan", "acgan", "wgan_gp", "sngan")
SGD = {"_target_": "torch.optim.SGD", "lr": 0.01}


def differing(a, b, path=""):
    """Return the paths at which two nested states are not bit for bit equal."""
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return [p for key in a for p in differing(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [p for i, pair in enumerate(zip(a, b, strict=True)) for p in differing(*pair, f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [path]


def first_batch(data):
    (batch, *_) = data.train_dataloader()
    return batch


def reference_losses(name, real, fake, label):
    """Return the losses of discriminator and generator by name of the GAN, of logits (and levels) and labels."""
    (real_logits, real_levels), (fake_logits, fake_levels) = real, fake
    if name == "sngan":
        d = 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
        return d, -fake_logits.mean()
    if name == "wgan_gp":
        return 0.5 * (fake_logits.mean() - real_logits.mean()), -fake_logits.mean()
    ones, zeros = torch.ones_like(real_logits), torch.zeros_like(fake_logits)
    bce = F.binary_cross_entropy_with_logits
    d, g = 0.5 * (bce(real_logits, ones) + bce(fake_logits, zeros)), bce(fake_logits, ones)
    if name == "acgan":
        d = d + 0.5 * (F.cross_entropy(real_levels, label) + F.cross_entropy(fake_levels, label))
        g = g + F.cross_entropy(fake_levels, label)
    return d, g


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_formula_s(tiny, levels, run, name):
    changes = {"discriminator": {"dropout": 0.0}} if name == "acgan" else {}
    module = tiny(name, optimizer=SGD, d_steps=1, ema_decay=0, **changes)
    m, data = copy.deepcopy(module), levels(n=4)
    batch = first_batch(data)
    trainer = run(module, data=data, max_epochs=1, limit_val_batches=0)

    real, label, draws = batch["image"], batch["label"], Draws((0, 0, 0))
    fake = m.generator(draws.normal(4, 5), label).detach()
    verdicts = m.discriminator(real, label), m.discriminator(fake, label)
    loss_d, _ = reference_losses(name, *verdicts, label)
    if name == "wgan_gp":
        mix = draws.uniform(4)
        loss_d = loss_d + 5 * gradient_penalty(lambda x: m.discriminator(x, label)[0], real, fake, mix_b=mix)
    descend(m.discriminator, loss_d)
    made = m.generator(draws.normal(4, 5), label)
    _, loss_g = reference_losses(name, verdicts[0], m.discriminator(made, label), label)
    descend(m.generator, loss_g)

    assert trainer.logged_metrics["train/loss_d"].item() == pytest.approx(loss_d.item(), rel=1e-5)
    assert trainer.logged_metrics["train/loss_g"].item() == pytest.approx(loss_g.item(), rel=1e-5)
    torch.testing.assert_close(module.state_dict(), m.state_dict(), atol=2e-6, rtol=1e-4)


def descend(network, loss):
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.sub_(SGD["lr"] * gradient)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_two_parts_equals_the_run_in_one(tiny, run, tmp_path, name):
    schedule = {"n_epochs": 1, "n_epochs_decay": 2, "ema_decay": 0.9, "gradient_clip_val": 1.0, "d_steps": 2}
    schedule |= {"diffaugment": ["colour", "translation", "cutout"]}
    options = {"discriminator": {"dropout": 0.0}} if name == "acgan" else {}  # dropout: callbacks.steps seeds it

    def state(trainer):
        trainer.save_checkpoint(tmp_path / "state.ckpt")
        content = torch.load(tmp_path / "state.ckpt", weights_only=True)
        return {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}

    def begin(start=0, **changes):
        return tiny(name, start, **schedule, **options, **changes)

    plain = {"limit_val_batches": 0}
    whole = state(run(begin(), max_epochs=2, **plain))
    run(begin(), LastCheckpoint(str(tmp_path)), max_epochs=1, **plain)
    continued = run(begin(start=99), max_epochs=2, ckpt_path=tmp_path / "last.ckpt", **plain)
    assert differing(whole, state(continued)) == []
    assert whole["global_step"] == 2  # of the generator: 2 epochs of 2 batches, and 2 steps of the discriminator each
    other = state(run(begin(seed=1), max_epochs=2, **plain))
    assert any(path.startswith("/state_dict") for path in differing(whole, other))  # of other latent vectors


def test_the_small_acgan_begins_with_levels_at_chance(published, levels):
    """Logits of the published one vary by 3 with the dropout alone, which few steps do not overcome."""
    torch.manual_seed(0)
    module = Gan(**{key: value for key, value in published["acgan_small"].items() if key != "_target_"})
    batch = first_batch(levels(size=64))
    loss = module.discriminator_losses(batch["image"], batch["label"])["d_level"]
    assert loss.item() == pytest.approx(log(4), abs=0.1)


@pytest.mark.parametrize("d_steps", [1, 2, 3])
def test_the_generator_steps_after_so_many_of_the_discriminator(tiny, levels, run, d_steps):
    steps = []

    class Steps(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            steps.append(optimizer.param_groups[0]["lr"])

    module = tiny(d_steps=d_steps, optimizer=SGD | {"lr": 1e-3}, lr_discriminator=4e-3)
    trainer = run(module, Steps(), data=levels(n=24), max_epochs=1, limit_val_batches=0)
    assert steps.count(4e-3) == 6
    assert steps.count(1e-3) == trainer.global_step == 6 // d_steps


def test_steps_are_counted_over_epochs(tiny, levels, run):
    trainer = run(tiny(d_steps=2), data=levels(n=12), max_epochs=2, limit_val_batches=0)
    assert trainer.global_step == 3  # of 2 epochs of 3 batches


def test_the_penalty_is_of_the_tiles_that_the_critic_sees(tiny, levels, monkeypatch):
    module, batch = tiny("wgan_gp", diffaugment=["colour", "translation", "cutout"]), first_batch(levels())
    seen, penalised = [], []
    module.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def penalty(network, real, fake, mix_b):
        penalised.extend([real, fake])
        return real.sum()

    monkeypatch.setattr("ihc2he.losses.adversarial.gradient_penalty", penalty)
    module.discriminator_losses(batch["image"], batch["label"])
    assert [torch.equal(*pair) for pair in zip(seen, penalised, strict=True)] == [True, True]
    assert not torch.equal(seen[0], batch["image"])


def test_the_average_of_the_generator_is_the_recursion_and_is_what_makes_tiles(tiny, levels, run):
    online = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            online.append(copy.deepcopy(pl_module.generator))

    module = tiny(ema_decay=0.5)
    start = copy.deepcopy(module.generator)
    run(module, Keep(), max_epochs=1, limit_val_batches=0)
    for average, first, second, third in zip(
        module.g_ema.parameters(), *(net.parameters() for net in (start, *online)), strict=True
    ):
        early = 2 / 11 * first + 9 / 11 * second  # (1 + step) / (10 + step) of what was
        torch.testing.assert_close(average, 0.25 * early + 0.75 * third)
    module.eval()
    z, label = torch.randn(2, 5), torch.tensor([0, 3])
    assert torch.equal(module.make(z, label), module.g_ema(z, label))
    assert module.exports.__func__ is Gan.exports
    with torch.no_grad():
        assert not torch.equal(module.make(z, label), module.generator(z, label))


def test_the_average_never_keeps_more_than_asked(tiny, monkeypatch):
    module = tiny(ema_decay=0.999)
    for step, decay in ((1, 2 / 11), (90, 0.91), (10**6, 0.999)):
        monkeypatch.setattr(Gan, "global_step", step)
        assert module.averaging() == pytest.approx(decay)


def test_the_average_is_judged_by_its_own_batch_statistics(tiny, run):
    module = tiny(ema_decay=0.5)
    run(module, max_epochs=1)
    kept, online = (dict(net.named_buffers()) for net in (module.g_ema, module.generator))
    assert not all(torch.equal(kept[name], online[name]) for name in kept)
    before, inputs = copy.deepcopy(kept), []
    layer = next(layer for layer in module.g_ema.modules() if isinstance(layer, nn.BatchNorm2d))
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    measure_statistics(module.g_ema, module.latent_size, module.n_classes)
    assert differing(before, kept) == []  # always the same latents
    x = torch.cat(inputs)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.running_var, x.var((0, 2, 3)), atol=1e-5, rtol=0.05)
    assert layer.momentum == 0.1


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_float32_under_bf16(tiny, levels, name):
    module, batch = tiny(name), first_batch(levels())
    with torch.autocast("cpu", torch.bfloat16):
        losses = module.discriminator_losses(batch["image"], batch["label"]) | module.generator_losses(batch["label"])
        verdict = module._judge(batch["image"], batch["label"])
    assert verdict.logits_b.dtype == torch.bfloat16 or name == "sngan"  # or the rest would prove nothing
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_label_smoothing_lowers_the_target_of_real_tiles_only(tiny, levels):
    module, batch = tiny(label_smoothing=0.1, channels_last=False), first_batch(levels())
    module.discriminator.eval()  # so that a tile is judged the same every time
    module.generator.eval()
    loss = module.discriminator_losses(batch["image"], batch["label"])["d"]
    fake = module.generator(Draws((0,)).normal(4, 5), batch["label"])
    real_logits, fake_logits = (module.discriminator(x, batch["label"])[0] for x in (batch["image"], fake))
    bce = F.binary_cross_entropy_with_logits
    expected = 0.5 * (bce(real_logits, torch.full((4,), 0.9)) + bce(fake_logits, torch.zeros(4)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_checkpoints_load_without_hydra(tiny, run, tmp_path):
    module = run(tiny("sngan", d_steps=1), LastCheckpoint(str(tmp_path)), max_epochs=1).lightning_module
    loaded = Gan.load_from_checkpoint(tmp_path / "last.ckpt")
    z, label = torch.randn(2, 5), torch.tensor([1, 2])
    assert torch.equal(loaded.eval().make(z, label), module.eval().make(z, label))
    assert dict(loaded.hparams) == dict(module.hparams)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial": "hing"}, "Did you mean 'hinge'"),
        ({"diffaugment": ["color"]}, "model.diffaugment: there is no 'color'. Did you mean 'colour'"),
        ({"d_steps": 0}, "model.d_steps=0: expected 1 or more"),
        ({"ema_decay": 1.0}, "model.ema_decay=1.0: expected from 0 to below 1"),
        ({"label_smoothing": 0.1, "adversarial": "hinge"}, "label_smoothing=0.1 has no meaning for adversarial=hinge"),
        ({"compile": True, "adversarial": "wgan_gp"}, "compile=true cannot differentiate the penalty"),
        ({"size": 20}, "model.size=20: expected a power of two"),
    ],
)
def test_wrong_settings_are_named(tiny, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_an_epoch_without_a_step_of_the_generator_is_refused(tiny, run):
    with pytest.raises(ConfigError, match=r"model\.d_steps=3: an epoch has only 2 batches"):
        run(tiny(d_steps=3))


def test_other_levels_or_sizes_than_the_data_s_are_named(tiny, levels, run):
    with pytest.raises(ConfigError, match=r"model.n_classes=3: the data has 4 levels: 0, 1\+, 2\+, 3\+"):
        run(tiny(n_classes=3))
    with pytest.raises(ConfigError, match=r"model\.size=16: the tiles have 32x32 px and 3 channels"):
        run(tiny(), data=levels(n=4, size=32))
