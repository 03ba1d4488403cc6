"""One training step of CUT and FastCUT against the reference's formulas, written out; whole runs and settings."""

import copy
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.errors import ConfigError
from ihc2he.models.translation.cut.module import CUT

NETWORKS = "ihc2he.models.translation.cyclegan.networks"
BLUR = {"upsample": "blur", "downsample": "blur"}
SMALL = {
    "generator": {"_target_": f"{NETWORKS}.ResnetGenerator", "width": 4, "n_blocks": 1, **BLUR},
    "discriminator": {"_target_": f"{NETWORKS}.PatchDiscriminator", "width": 4, "n_layers": 1, "downsample": "blur"},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 2e-3, "betas": [0.5, 0.999]},
    "layers": [0, 4, 8, 12],
    "n_patches": 8,
    "width": 64,
}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.05}
EVERYWHERE = 10**6  # patches: all places, in whatever order
FAST = {"identity": False, "lambda_nce": 10.0, "flip_equivariance": True}


@pytest.fixture(scope="module")
def small():
    """Return `small(**changes)`, which builds a CUT from a fixed seed of its weights."""

    def build(start=0, **changes):
        torch.manual_seed(start)
        return CUT(**(SMALL | changes))

    return build


def features(generator, x, layers):
    found = []
    for i, layer in enumerate(generator.model):
        x = layer(x)
        if i in layers:
            found.append(x)
    return found


def reference_nce(m, source, made, flipped=False, temperature=0.07):
    """Mean over layers of the cross-entropy with the positive first and the own place at -10 among the negatives."""
    losses = []
    keys, queries = (features(m.g_ihc2he, x, m.contrast.layers) for x in (source, made))
    for head, key, query in zip(m.contrast.heads, keys, queries, strict=True):
        compared = (key.detach(), query.flip(-1) if flipped else query)
        k, q = (F.normalize(head(x.flatten(2).transpose(1, 2)), dim=-1, eps=1e-7) for x in compared)
        k = k.detach()
        positive = (q * k).sum(-1, keepdim=True)
        own = torch.eye(q.shape[1], dtype=torch.bool)
        negative = (q @ k.transpose(1, 2)).masked_fill(own, -10.0)
        logits = torch.cat([positive, negative], -1).flatten(0, 1) / temperature
        losses.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)))
    return sum(losses) / len(losses)


def reference_terms(m, ihc, he, identity, lambda_nce, flipped):
    made = m.g_ihc2he(ihc.flip(-1) if flipped else ihc)
    terms = {"g_he": (m.d_he(made) - 1).square().mean()}
    terms["nce_ihc"] = lambda_nce * reference_nce(m, ihc, made, flipped)
    if identity:
        same = m.g_ihc2he(he.flip(-1) if flipped else he)
        terms["nce_he"] = lambda_nce * reference_nce(m, he, same, flipped)
        terms |= {name: term / 2 for name, term in terms.items() if name.startswith("nce")}
    return terms, made.detach()


def descend(parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.sub_(SGD["lr"] * parameter.grad)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("mode", [{}, FAST], ids=["CUT", "FastCUT"])
def test_one_step_is_the_reference_s(small, fit, tiles, batch_size, mode):
    settings = {"identity": True, "lambda_nce": 1.0} | mode
    module = small(optimizer=SGD, n_patches=EVERYWHERE, **mode)
    flipped = bool(mode) and np.random.default_rng((0, 0, 0)).random() < 0.5
    m = copy.deepcopy(module)
    start = copy.deepcopy(module.state_dict())
    trainer = fit(module, n=batch_size, batch_size=batch_size)

    data = tiles(batch_size, 16)
    terms, made = reference_terms(m, data.ihc, data.he, settings["identity"], settings["lambda_nce"], flipped)
    sum(terms.values()).backward()
    descend([*m.g_ihc2he.parameters(), *m.contrast.parameters()])
    m.zero_grad()
    terms["d_he"] = 0.5 * ((m.d_he(data.he) - 1).square().mean() + m.d_he(made).square().mean())
    terms["d_he"].backward()
    descend(m.d_he.parameters())

    logged = {k.removeprefix("train/loss_"): v.item() for k, v in trainer.logged_metrics.items()}
    expected = {name: value.item() for name, value in terms.items()}
    expected |= {"d": expected["d_he"], "g": sum(v for k, v in expected.items() if k != "d_he")}
    assert logged == pytest.approx(expected, rel=1e-5)
    # Small weights of the heads give large gradients, so steps are compared by their size. Biases before an instance
    # normalisation have no gradient but rounding errors.
    expected = m.state_dict()
    for name, value in module.state_dict().items():
        step = expected[name] - start[name]
        assert (value - expected[name]).norm() < 1e-3 * step.norm() + 3e-5, name
    for name in ("g_ihc2he.model.4.weight", "contrast.heads.1.0.weight", "d_he.model.0.weight"):
        assert (module.state_dict()[name] - start[name]).norm() > 1e-2, name


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("identity", [False, True])
def test_mirrored_batches_are_mirrored_back_for_the_contrast(small, tiles, flipped, identity):
    module = small(n_patches=EVERYWHERE, flip_equivariance=True, identity=identity)
    draws = (np.random.default_rng(seed) for seed in range(20))
    module.draws = next(rng for rng in draws if (copy.deepcopy(rng).random() < 0.5) == flipped)
    data = tiles(2, 16)
    losses, made = module.generator_losses({"ihc": data.ihc, "he": data.he})
    terms, expected = reference_terms(module, data.ihc, data.he, identity, 1.0, flipped)
    torch.testing.assert_close(made["he"], expected)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx({k: v.item() for k, v in terms.items()}, rel=1e-5)


def test_the_weights_of_the_terms_are_factors(small, tiles):
    data = tiles(1, 16)
    one, other = (small(n_patches=EVERYWHERE, lambda_gan=a, lambda_nce=b) for a, b in ((1.0, 1.0), (3.0, 5.0)))
    first, second = (m.generator_losses({"ihc": data.ihc, "he": data.he})[0] for m in (one, other))
    ratios = {name: (second[name] / first[name]).item() for name in first}
    assert ratios == pytest.approx({"g_he": 3.0, "nce_ihc": 5.0, "nce_he": 5.0}, rel=1e-5)


@pytest.mark.parametrize("to", ["he", "ihc"])
def test_either_stain_can_be_made(small, fit, to):
    module = small(to=to)
    name, source = {"he": ("g_ihc2he", "ihc"), "ihc": ("g_he2ihc", "he")}[to]
    assert {key.partition(".")[0] for key in module.state_dict()} == {name, f"d_{to}", "contrast"}
    logged = fit(module, n=1).logged_metrics
    terms = {f"g_{to}", f"nce_{source}", f"nce_{to}", f"d_{to}", "g", "d"}
    assert {key.removeprefix("train/loss_") for key in logged} == terms
    assert list(module.exports()) == [name]


def test_the_heads_are_trained_from_the_first_step_by_the_generators_optimiser(small, fit):
    module = small()
    (opt_g, opt_d), _ = module.configure_optimizers()
    stepped, judged = ({id(p) for group in opt.param_groups for p in group["params"]} for opt in (opt_g, opt_d))
    heads = {id(p) for p in module.contrast.parameters()}
    assert stepped == heads | {id(p) for p in module.g_ihc2he.parameters()}
    assert judged == {id(p) for p in module.d_he.parameters()}
    before = copy.deepcopy(module.contrast.state_dict())
    fit(module, n=1)
    assert all(not torch.equal(before[name], value) for name, value in module.contrast.state_dict().items())


def test_places_differ_between_steps(small, fit):
    seen = []

    class Draws(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.draws.integers(10**9))

    fit(small(), Draws(), n=3, max_epochs=2)
    fit(small(seed=1), Draws(), n=1)
    assert len(set(seen)) == 7


def differing(a, b, path=""):
    """Return the paths at which two nested states are not bit for bit equal."""
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return [p for key in a for p in differing(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [p for i, pair in enumerate(zip(a, b, strict=True)) for p in differing(*pair, f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [path]


@pytest.mark.parametrize("mode", [{}, FAST], ids=["CUT", "FastCUT"])
def test_a_run_in_two_parts_equals_the_run_in_one(small, fit, tmp_path, mode):
    schedule = {"n_epochs": 2, "n_epochs_decay": 2, "ema_decay": 0.9, "accumulate": 2, "gradient_clip_val": 1.0}

    def state(trainer):
        trainer.save_checkpoint(tmp_path / "state.ckpt")
        content = torch.load(tmp_path / "state.ckpt", weights_only=True)
        return {name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}

    whole = state(fit(small(**schedule, **mode), max_epochs=4))
    fit(small(**schedule, **mode), LastCheckpoint(str(tmp_path)), max_epochs=2)
    continued = fit(small(start=99, **schedule, **mode), max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert differing(whole, state(continued)) == []
    other = state(fit(small(seed=1, **schedule, **mode), max_epochs=4))
    assert any(path.startswith("/state_dict") for path in differing(whole, other))  # of other places


def test_checkpoints_load_without_hydra(small, fit, tiles, tmp_path):
    module = fit(small(ema_decay=0.5), LastCheckpoint(str(tmp_path))).lightning_module
    loaded = CUT.load_from_checkpoint(tmp_path / "last.ckpt")
    x = tiles(1, 16).ihc
    assert torch.equal(loaded.translate(x, "he"), module.translate(x, "he"))
    assert dict(loaded.hparams) == dict(module.hparams)


def test_losses_are_float32_under_bf16(small, tiles):
    module, data = small(), tiles(1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        losses, made = module.generator_losses({"ihc": data.ihc, "he": data.he})
    assert made["he"].dtype == torch.bfloat16  # or the rest would prove nothing
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_the_contrast_of_an_untrained_model_is_that_of_guessing(small, tiles):
    n = 8
    module, data = small(n_patches=n, temperature=1e3), tiles(1, 16)  # at which likeness does not matter
    losses, _ = module.generator_losses({"ihc": data.ihc, "he": data.he})
    assert losses["nce_ihc"].item() == pytest.approx(0.5 * math.log(n), rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "hes"}, "model.to=hes: expected ihc or he|model.to=hes: expected he or ihc"),
        ({"lambda_nce": 0.0}, "model.lambda_nce=0.0: expected above 0"),
        ({"lambda_gan": -1.0}, "model.lambda_gan=-1.0: expected 0 or more"),
        ({"layers": [0, 4, 99]}, "expected indices from 0 to"),
    ],
)
def test_wrong_settings_are_named(small, changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)
