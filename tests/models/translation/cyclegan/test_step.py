"""One training step against the reference's formulas, written out."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from ihc2he.errors import ConfigError
from ihc2he.losses import adversarial

SGD = {"_target_": "torch.optim.SGD", "lr": 0.05}
LAMBDA_CYCLE = 10.0
GENERATORS, DISCRIMINATORS = ("g_ihc2he", "g_he2ihc"), ("d_ihc", "d_he")


class Recorder(Callback):
    """Keeps weights and gradients as each optimiser sees them, and what the steps return."""

    def __init__(self):
        self.seen, self.losses = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        self.seen.append((copy.deepcopy(pl_module.state_dict()), gradients))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"])


def of(names, values):
    return {key: value for key, value in values.items() if key.startswith(names)}


def mse(logits, target):
    return (logits - target).square().mean()


def l1(a, b):
    return (a - b).abs().mean()


def reference_losses(m, ihc, he, identity):
    """Return the terms of the generators' loss and the fakes as the reference computes them, a call for each."""
    fake_he, fake_ihc = m.g_ihc2he(ihc), m.g_he2ihc(he)
    terms = {
        "g_he": mse(m.d_he(fake_he), 1),
        "g_ihc": mse(m.d_ihc(fake_ihc), 1),
        "cycle_ihc": LAMBDA_CYCLE * l1(m.g_he2ihc(fake_he), ihc),
        "cycle_he": LAMBDA_CYCLE * l1(m.g_ihc2he(fake_ihc), he),
    }
    if identity:
        terms["identity_he"] = LAMBDA_CYCLE * identity * l1(m.g_ihc2he(he), he)
        terms["identity_ihc"] = LAMBDA_CYCLE * identity * l1(m.g_he2ihc(ihc), ihc)
    return terms, fake_ihc.detach(), fake_he.detach()


def descend(*nets):
    with torch.no_grad():
        for net in nets:
            for parameter in net.parameters():
                parameter.sub_(SGD["lr"] * parameter.grad)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("identity", [0.0, 0.5])
def test_one_step_is_the_reference_s(small, fit, tiles, batch_size, identity):
    module = small(optimizer=SGD, lambda_identity=identity, pool_size=0)
    reference = copy.deepcopy(module)
    trainer = fit(module, n=batch_size, batch_size=batch_size)

    data = tiles(batch_size, 16)
    ihc, he = data.ihc, data.he
    terms, fake_ihc, fake_he = reference_losses(reference, ihc, he, identity)
    sum(terms.values()).backward()
    descend(reference.g_ihc2he, reference.g_he2ihc)
    reference.zero_grad()
    terms["d_he"] = 0.5 * (mse(reference.d_he(he), 1) + mse(reference.d_he(fake_he), 0))
    terms["d_ihc"] = 0.5 * (mse(reference.d_ihc(ihc), 1) + mse(reference.d_ihc(fake_ihc), 0))
    (terms["d_he"] + terms["d_ihc"]).backward()
    descend(reference.d_ihc, reference.d_he)

    logged = {k.removeprefix("train/loss_"): v.item() for k, v in trainer.logged_metrics.items()}
    expected = {name: value.item() for name, value in terms.items()}
    expected["d"] = expected["d_he"] + expected["d_ihc"]
    expected["g"] = sum(value for name, value in expected.items() if not name.startswith("d"))
    assert logged == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(module.state_dict(), reference.state_dict(), atol=1e-6, rtol=1e-4)


def test_each_step_moves_its_own_networks_only(small, fit):
    module, recorder = small(), Recorder()
    start = copy.deepcopy(module.state_dict())
    fit(module, recorder, n=1)
    (_, gradients_g), (weights_d, gradients_d) = recorder.seen
    assert not of(DISCRIMINATORS, gradients_g)
    torch.testing.assert_close(of(DISCRIMINATORS, weights_d), of(DISCRIMINATORS, start), atol=0, rtol=0)
    assert not torch.equal(weights_d["g_ihc2he.model.1.weight"], start["g_ihc2he.model.1.weight"])
    torch.testing.assert_close(of(GENERATORS, gradients_d), of(GENERATORS, gradients_g), atol=0, rtol=0)
    end = module.state_dict()
    torch.testing.assert_close(of(GENERATORS, end), of(GENERATORS, weights_d), atol=0, rtol=0)
    assert not torch.equal(end["d_he.model.0.weight"], start["d_he.model.0.weight"])
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("mode", adversarial.MODES)
def test_the_discriminators_compare_real_images_with_the_pool_s(small, fit, tiles, monkeypatch, mode):
    smoothing = 0.1 if mode in ("lsgan", "bce") else 0.0
    module = small(adversarial=mode, label_smoothing=smoothing, lambda_gp=3.0)
    before = copy.deepcopy(module)
    pooled = {stain: torch.full((1, 3, 16, 16), value) for stain, value in (("ihc", 0.3), ("he", -0.3))}
    for stain, image in pooled.items():
        monkeypatch.setattr(module.pools[stain], "query", lambda fake, image=image: image)
    penalised = []

    def penalty(d, real, fake):
        penalised.append((d, real, fake))
        return torch.tensor(2.0)

    monkeypatch.setattr(adversarial, "gradient_penalty", penalty)
    logged = fit(module, n=1).logged_metrics
    data = tiles(1, 16)
    for stain, real in (("ihc", data.ihc), ("he", data.he)):
        d = getattr(before, f"d_{stain}")
        expected = adversarial.discriminator_loss(d(real), d(pooled[stain]), mode, smoothing)
        if mode == "wgan_gp":
            expected = expected + 0.5 * 3.0 * 2.0  # half of both, so that their ratio is the published one
        assert logged[f"train/loss_d_{stain}"].item() == pytest.approx(expected.item(), rel=1e-5)
        made = before.g_ihc2he(data.ihc) if stain == "he" else before.g_he2ihc(data.he)
        expected = adversarial.generator_loss(d(made), mode)
        assert logged[f"train/loss_g_{stain}"].item() == pytest.approx(expected.item(), rel=1e-5)
    if mode == "wgan_gp":
        assert [d for d, _, _ in penalised] == [module.d_ihc, module.d_he]
        assert torch.equal(penalised[1][1], data.he)
        assert torch.equal(penalised[1][2], pooled["he"])
    else:
        assert not penalised


def test_gradients_of_the_penalty_reach_the_optimiser(small, fit):
    seen = {}
    for weight in (0.0, 10.0):
        recorder = Recorder()
        fit(small(adversarial="wgan_gp", lambda_gp=weight), recorder, n=1)
        seen[weight] = recorder.seen[1][1]["d_he.model.0.weight"]
    assert not torch.allclose(seen[0.0], seen[10.0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_global_step_counts_the_steps_of_the_generators(small, fit, accumulate):
    recorder = Recorder()
    assert fit(small(accumulate=accumulate), recorder, n=3).global_step == (3 if accumulate == 1 else 2)
    assert len(recorder.seen) == 2 * (3 if accumulate == 1 else 2)  # the last, incomplete group is stepped as well


def test_the_learning_rate_is_held_and_then_falls_to_the_last_epoch(small, fit):
    rates = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    fit(small(n_epochs=2, n_epochs_decay=3, lr_discriminator=1e-3), Rates(), n=1, max_epochs=6)
    # lr * (1 - max(0, epoch + 1 - n_epochs) / (n_epochs_decay + 1)), and 0 afterwards
    factors = [1, 1, 3 / 4, 2 / 4, 1 / 4, 0]
    assert [g for g, _ in rates] == pytest.approx([2e-3 * f for f in factors])
    assert [d for _, d in rates] == pytest.approx([1e-3 * f for f in factors])


def test_without_its_own_rate_the_discriminator_has_the_generators(small):
    optimizers, _ = small().configure_optimizers()
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [2e-3, 2e-3]


def test_losses_are_float32_under_bf16(small, fit, tiles):
    module, recorder = small(), Recorder()
    trainer = fit(module, recorder, n=2, precision="bf16-mixed")
    assert [loss.dtype for loss in recorder.losses] == [torch.float32] * 2
    assert all(torch.isfinite(value) for value in trainer.logged_metrics.values())
    data = tiles(1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        losses, made = module.generator_losses({"ihc": data.ihc, "he": data.he})
        fake_ihc = made["ihc"]
        loss_d = module.discriminator_loss(module.d_ihc, data.ihc, fake_ihc.detach())
        assert module.translate(data.ihc, "he").dtype == torch.float32
    assert fake_ihc.dtype == torch.bfloat16  # or the rest would prove nothing
    assert {loss.dtype for loss in [*losses.values(), loss_d]} == {torch.float32}


@pytest.mark.parametrize("clip", [None, 0.01])
def test_clipping_bounds_the_gradients_that_each_optimiser_sees(small, fit, clip):
    recorder = Recorder()
    fit(small(gradient_clip_val=clip), recorder, n=1)
    for names, (_, gradients) in zip((GENERATORS, DISCRIMINATORS), recorder.seen, strict=True):
        norm = torch.cat([g.flatten() for g in of(names, gradients).values()]).norm().item()
        if clip is None:
            assert norm > 0.02
        else:
            assert norm == pytest.approx(clip, rel=1e-3)


def test_fused_optimisers_are_clipped_in_mixed_precision_too(small, fit):
    recorder = Recorder()
    fused = {"_target_": "torch.optim.Adam", "lr": 2e-3, "fused": True}
    fit(small(gradient_clip_val=0.01, optimizer=fused), recorder, n=1, precision="bf16-mixed")
    (_, gradients), _ = recorder.seen
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_two_accumulated_batches_equal_one_of_twice_the_size(small, fit):
    one, two = (small(optimizer=SGD, pool_size=0, accumulate=k) for k in (1, 2))
    start = copy.deepcopy(one.state_dict())
    fit(one, n=4, batch_size=2)
    fit(two, n=4, batch_size=1)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), atol=1e-5, rtol=1e-4)
    assert (one.state_dict()["d_he.model.0.weight"] - start["d_he.model.0.weight"]).abs().max() > 1e-4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_of_the_generators_is_the_recursion_and_is_what_is_used(small, fit, tiles, accumulate):
    module, decay, online = small(ema_decay=0.7, accumulate=accumulate), 0.7, []
    average = {name: copy.deepcopy(getattr(module, name).state_dict()) for name in GENERATORS}

    class Online(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            online.append({name: copy.deepcopy(getattr(pl_module, name).state_dict()) for name in GENERATORS})

    fit(module, Online(), n=4)
    for weights in online[accumulate - 1 :: accumulate]:  # after steps, not after batches
        for name, state in average.items():
            for key, value in state.items():
                state[key] = decay * value + (1 - decay) * weights[name][key]
    x = tiles(1, 16).ihc
    for to, name in (("he", "g_ihc2he"), ("ihc", "g_he2ihc")):
        torch.testing.assert_close(module.g_ema[name].state_dict(), average[name])
        with torch.no_grad():
            assert torch.equal(module.translate(x, to), module.g_ema[name](x))
            assert not torch.allclose(module.translate(x, to), getattr(module, name)(x))
        assert module.exports()[name][0] is module.g_ema[name]
    optimised = {id(p) for o in module.configure_optimizers()[0] for group in o.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in module.g_ema.parameters()}


def test_without_averaging_the_trained_generator_is_used(small, tiles):
    module, x = small(), tiles(1, 16).ihc
    with torch.no_grad():
        assert torch.equal(module.translate(x, "he"), module.g_ihc2he(x))
    assert module.exports()["g_he2ihc"][0] is module.g_he2ihc
    assert len(module.g_ema) == 0


def test_dropout_works_in_training_and_not_in_use(small, fit, tiles):
    target = "ihc2he.models.translation.cyclegan.networks.ResnetGenerator"
    module = small(generator={"_target_": target, "width": 4, "n_blocks": 1, "dropout": 0.5})
    assert any(isinstance(layer, nn.Dropout) for layer in module.g_ihc2he.modules())
    fit(module, n=1)
    x = tiles(1, 16).ihc
    module.eval()
    assert torch.equal(module.translate(x, "he"), module.translate(x, "he"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial": "hinges"}, "no adversarial loss 'hinges'. Did you mean 'hinge'?"),
        ({"adversarial": "hinge", "label_smoothing": 0.1}, "no meaning for adversarial=hinge; set it to 0"),
        ({"metrics": ["psnrr"]}, "psnrr.*'psnr'"),
        ({"generator": {"_target_": "torch.optim.Adam"}}, "'torch.optim.Adam' is not a Module"),
    ],
)
def test_wrong_settings_are_named(small, changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_compilation_is_in_place_and_leaves_the_names_of_weights(small):
    module = small(compile=True, ema_decay=0.5)
    names = list(module.state_dict())
    module.setup("fit")
    assert all(getattr(module, name)._compiled_call_impl is not None for name in (*GENERATORS, *DISCRIMINATORS))
    assert list(module.state_dict()) == names


def test_memory_format_does_not_change_the_result(small, tiles):
    first, last = small(channels_last=False), small(channels_last=True)
    assert last.g_ihc2he.model[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert first.g_ihc2he.model[4].weight.is_contiguous()
    x = tiles(2, 16).ihc
    torch.testing.assert_close(first.translate(x, "he"), last.translate(x, "he"))


def test_modules_given_as_objects_are_copied_and_not_saved(small, negative):
    module = small(generator=negative())
    assert module.g_ihc2he is not module.g_he2ihc
    assert "generator" not in module.hparams
    assert "discriminator" in module.hparams
    assert module.exports()["g_ihc2he"][1]["module"] is None


def test_clipping_is_refused_where_gradients_are_scaled(small):
    module = small(gradient_clip_val=1.0)
    module.trainer = SimpleNamespace(precision="16-mixed", global_rank=0)
    with pytest.raises(ConfigError, match="use bf16-mixed"):
        module.setup("fit")
