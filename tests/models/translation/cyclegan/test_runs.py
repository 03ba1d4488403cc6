"""Whole runs: learning, repeating, continuing, checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch.utils.data import Dataset

from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.metrics.stain import stain_change
from ihc2he.models.bundle import save_bundle
from ihc2he.models.translation.cyclegan.module import CycleGAN
from ihc2he.simulate.bci import write_bci

NETWORKS = "ihc2he.models.translation.cyclegan.networks"
SCHEDULE = {"n_epochs": 2, "n_epochs_decay": 2, "ema_decay": 0.9}


def differing(a, b, path=""):
    """Return the paths at which two nested states are not bit for bit equal."""
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return [p for key in a for p in differing(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [p for i, pair in enumerate(zip(a, b, strict=True)) for p in differing(*pair, f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [path]


def state(trainer, tmp_path):
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    checkpoint = torch.load(tmp_path / "state.ckpt", weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "image_pools", "epoch", "global_step")
    return {name: checkpoint[name] for name in names}


def test_a_run_in_two_parts_equals_the_run_in_one(small, fit, tmp_path):
    whole = state(fit(small(**SCHEDULE), max_epochs=4), tmp_path)
    fit(small(**SCHEDULE), LastCheckpoint(str(tmp_path)), max_epochs=2)
    continued = fit(small(seed=99, **SCHEDULE), max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    again = state(continued, tmp_path)
    assert differing(whole, again) == []
    assert again["global_step"] == 12
    assert len(again["image_pools"][0]["he"]["images"]) == 2
    # The comparison sees differences: other seeds of weights, or of the pools, are others throughout.
    other = state(fit(small(seed=1, **SCHEDULE), max_epochs=4), tmp_path)
    assert any(path.startswith("/state_dict") for path in differing(whole, other))


def test_the_same_seed_gives_the_same_weights(small, fit):
    states = [fit(small(seed), max_epochs=2).lightning_module.state_dict() for seed in (0, 0, 1)]
    assert differing(states[0], states[1]) == []
    assert differing(states[0], states[2])


def test_checkpoints_hold_plain_values_and_load_without_hydra(small, fit, tiles, tmp_path):
    module = fit(small(ema_decay=0.5, metrics=["psnr"]), LastCheckpoint(str(tmp_path))).lightning_module
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=True)["hyper_parameters"]["metrics"] == ["psnr"]
    loaded = CycleGAN.load_from_checkpoint(path)
    x = tiles(1, 16).ihc
    assert torch.equal(loaded.translate(x, "he"), module.translate(x, "he"))
    assert dict(loaded.hparams) == dict(module.hparams)


class Losses(Callback):
    def __init__(self):
        self.cycle = []

    def on_train_batch_end(self, trainer, *args):
        self.cycle.append(sum(trainer.logged_metrics[f"train/loss_cycle_{s}"].item() for s in ("ihc", "he")))


class Blobs(Dataset):
    """Smooth brown-and-blue IHC and pink-and-blue H&E, of the same two places."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(2, 1, 8, 8, generator=generator)
        mask = F.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(0, 1)
        blue, brown, pink = (
            torch.tensor(c).view(3, 1, 1) for c in ((-0.4, -0.4, 0.3), (0.3, 0.0, -0.3), (0.8, 0.3, 0.6))
        )
        self.ihc, self.he = mask * blue + (1 - mask) * brown, mask * blue + (1 - mask) * pink

    def __len__(self):
        return 2

    def __getitem__(self, sample):
        return {"ihc": self.ihc[sample.index], "he": self.he[sample.index]}


@pytest.mark.parametrize("upsample", ["transpose", "resize"])
def test_two_pairs_are_learnt(small, fit, upsample):
    """The cycle loss falls by half in 30 steps, and made H&E takes on the colours of H&E, not those of its IHC.

    Resize-convolutions have been reported to collapse to the identity (pytorch-CycleGAN-and-pix2pix, no. 924).
    """
    generator = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator", "width": 8, "n_blocks": 1,
                 "upsample": upsample}  # fmt: skip
    module, losses, data = small(generator=generator), Losses(), Blobs()
    fit(module, losses, data=data, max_epochs=15)
    assert len(losses.cycle) == 30
    assert sum(losses.cycle[-2:]) < 0.5 * sum(losses.cycle[:2])
    made = module.translate(data.ihc, "he").mean((0, 2, 3))
    to_he, to_ihc = ((made - x.mean((0, 2, 3))).norm() for x in (data.he, data.ihc))
    assert to_he < to_ihc / 2


def test_two_pairs_are_learnt_by_the_local_generator_with_its_nuclei_in_place(small, fit):
    generator = {"_target_": "ihc2he.models.translation.local.LocalUNet", "width": 8, "depth": 1}
    module, losses, data = small(generator=generator, lambda_nuclear=1.0, nuclear_dab=1.0), Losses(), Blobs()
    fit(module, losses, data=data, max_epochs=30)
    assert sum(losses.cycle[-2:]) < 0.5 * sum(losses.cycle[:2])
    made = module.translate(data.ihc, "he")
    to_he, to_ihc = ((made - x).mean((0, 2, 3)).norm() for x in (data.he, data.ihc))
    assert to_he < to_ihc / 2
    assert (stain_change(data.ihc, made, "he")["nuclear_correlation"] > 0.9).all()


def test_a_trained_cyclegan_goes_on_on_the_users_tiles(cli, small, tmp_path):
    write_bci(tmp_path / "tiles", 6, 64, 0)
    networks = {
        "generator": {"_target_": f"{NETWORKS}.ResnetGenerator", "width": 4, "n_blocks": 1, "upsample": "resize"},
        "discriminator": {"_target_": f"{NETWORKS}.PatchDiscriminator", "width": 4, "n_layers": 2},
    }
    for name, (network, info) in small(**networks).exports().items():
        save_bundle(network, tmp_path / "trained" / "bundles" / name, info | {"mpp": 0.46})
    own = (
        "experiment=cyclegan_finetune", "data.ihc=tiles/IHC", "data.he=tiles/HE", "data.mpp_ihc=0.46",
        "data.mpp_he=0.46", "data.crop_size=32", "data.num_workers=0", "data.val_fraction=0.25",
        "data.samples_per_epoch=2", "trainer=cpu", "logger=csv", "model/generator=resnet_small",
        "model/discriminator=patch_small", "model.generator.width=4", "model.generator.n_blocks=1",
        "model.discriminator.width=4", "model.features=null", "model.n_epochs=1", "model.n_epochs_decay=0",
        "callbacks.best=null", "callbacks.panels=null", "callbacks.worst=null",
    )  # fmt: skip
    missing = cli(*own, "hydra.run.dir=missing")
    assert missing.status == 2
    assert "model.init=BCI_RUN/checkpoints/last.ckpt: there is no such file. Pass a checkpoint, or" in missing.err
    done = cli(*own, "model.init=trained/bundles", "hydra.run.dir=run")
    assert done.status == 0, done.err
    assert "Starting from trained/bundles: g_ihc2he, g_he2ihc; with random weights: d_ihc, d_he." in done.out + done.err
    inputs = json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]
    read = [Path(entry["path"]).name for entry in inputs if entry["kind"] == "bundle"]
    assert read == ["g_he2ihc", "g_ihc2he"]
