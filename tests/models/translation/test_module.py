"""What a model of one direction, written outside, gets from the base."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from ihc2he.errors import ConfigError
from ihc2he.models.translation.module import StainTranslation

NETWORKS = "ihc2he.models.translation.cyclegan.networks"
GENERATOR = {"_target_": f"{NETWORKS}.ResnetGenerator", "width": 4, "n_blocks": 1}
DISCRIMINATOR = {"_target_": f"{NETWORKS}.PatchDiscriminator", "width": 4, "n_layers": 1}
STAINS = {"ihc": "IHC", "he": "H&E"}


class OneWay(StainTranslation):
    """Learns one direction, with a network of its own that is trained with the generator."""

    def __init__(self, generator=GENERATOR, to="he", lambda_l1=1.0, **common):
        source = {"he": "ihc", "ihc": "he"}[to]
        optimizer = {"_target_": "torch.optim.SGD", "lr": 0.1}
        super().__init__({f"{source}2{to}": generator}, {to: DISCRIMINATOR}, optimizer, **common)
        self.source, self.to_stain, self.lambda_l1 = source, to, lambda_l1
        self.gain = nn.Parameter(torch.ones(()))

    def generator_losses(self, batch):
        made = self.gain * self.generators[f"{self.source}2{self.to_stain}"](batch[self.source])
        l1 = self.lambda_l1 * (made - batch[self.to_stain]).abs().mean()
        return {"gan": self.adversarial_loss(self.to_stain, made), "l1": l1}, {self.to_stain: made}


@pytest.mark.parametrize("to", ["he", "ihc"])
def test_one_direction_trains_and_offers_what_exists(fit, tiles, trainer, to):
    source = {"he": "ihc", "ihc": "he"}[to]
    module = OneWay(to=to, ema_decay=0.5, metrics=["psnr"])
    name = f"g_{source}2{to}"
    assert {key.partition(".")[0] for key in module.state_dict()} == {name, f"d_{to}", "g_ema", "gain"}
    logged = fit(module, n=2).logged_metrics
    assert {"train/loss_gan", "train/loss_l1", f"train/loss_d_{to}", "train/loss_g", "train/loss_d"} == set(logged)
    assert module.gain != 1
    (values,) = trainer().test(module, DataLoader(tiles(2, 16)), verbose=False)
    assert f"test/{to}/psnr" in values
    assert not any(key.startswith(f"test/{source}/") for key in values)
    ((bundle, export),) = module.exports().items()
    assert bundle == name
    assert export.network is module.g_ema[name]
    assert {key: export.info[key] for key in ("module", "role", "stain_in", "stain_out", "value_range")} == {
        "module": GENERATOR, "role": "translator", "stain_in": STAINS[source], "stain_out": STAINS[to],
        "value_range": [-1.0, 1.0],
    }  # fmt: skip
    panel = module.panels(next(iter(DataLoader(tiles(1, 16)))))[0]
    assert [title for title, _ in panel] == [STAINS[source], f"made {STAINS[to]}", f"real {STAINS[to]}"]


def test_the_discriminator_is_not_moved_by_the_generators_optimiser(fit):
    steps = []

    class Recorder(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            steps.append({n.partition(".")[0] for n, p in pl_module.named_parameters() if p.grad is not None})

    module = OneWay()
    fit(module, Recorder(), n=1)
    (opt_g, opt_d), _ = module.configure_optimizers()
    sizes = [sum(p.numel() for group in opt.param_groups for p in group["params"]) for opt in (opt_g, opt_d)]
    assert sizes[1] == sum(p.numel() for p in module.d_he.parameters())
    assert sum(sizes) == sum(p.numel() for p in module.parameters())
    assert steps[0] == {"g_ihc2he", "gain"}


def test_without_pools_nothing_of_them_is_saved(fit, tmp_path):
    runner = fit(OneWay())
    runner.save_checkpoint(tmp_path / "own.ckpt")
    content = torch.load(tmp_path / "own.ckpt", weights_only=True)
    assert "image_pools" not in content
    assert content["hyper_parameters"]["generator"] == GENERATOR
    assert content["hyper_parameters"]["lambda_l1"] == 1.0
    fit(OneWay(), ckpt_path=tmp_path / "own.ckpt", max_epochs=2)


def test_a_module_in_place_of_a_node_is_not_kept_among_the_arguments(negative):
    module = OneWay(generator=negative())
    assert "generator" not in module.hparams
    assert module.exports()["g_ihc2he"].info["module"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_epochs": -1}, "model.n_epochs=-1: expected 0 or more"),
        ({"ema_decay": 1.0}, "model.ema_decay=1.0: expected from 0 to below 1"),
        ({"gradient_clip_val": 0.0}, "model.gradient_clip_val=0.0: expected above 0"),
        ({"accumulate": 0}, "model.accumulate=0: expected 1 or more"),
        ({"compile": True, "adversarial": "wgan_gp"}, "set compile=false"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        OneWay(**changes)
