"""What several processes learn, as several GPUs would: on the CPU, with gloo.

What needs a GPU (NCCL, SyncBatchNorm at work) is not run here.
"""

import json
import subprocess
import sys

import pytest
import torch

from ihc2he.config import config_dir
from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter

CYCLEGAN = ["experiment=smoke/cyclegan_bci", "data.simulate.tiles=9"]
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


# ------------------------------------------------------------------ translation: the same weights


# Rounding errors have to stay what they are: Adam makes whole steps of those that are the gradients of biases before an
# instance normalisation, and larger steps make them grow tenfold at each.
SGD = ["model.optimizer._target_=torch.optim.SGD", "~model.optimizer.betas", "model.optimizer.lr=1e-4"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(
            ["model.ema_decay=0.9", "model.accumulate=2", "model.gradient_clip_val=1"], marks=pytest.mark.slow
        ),
        pytest.param(["model.discriminator.spectral_norm=true", "model.adversarial=hinge"], marks=pytest.mark.slow),
    ],
    ids=["plain", "ema, accumulate, clip", "spectral norm, hinge"],
)
def test_two_processes_learn_what_one_learns_from_both_batches(options, cli, launch, tmp_path):
    one, two = one_and_two([*CYCLEGAN, "model.pool_size=0", *options], cli, launch, tmp_path)
    assert one["global_step"] == two["global_step"] == (4 if "model.accumulate=2" in options else 6)
    assert all(value.dtype == torch.float64 for value in one["state_dict"].values())
    torch.testing.assert_close(one["state_dict"], two["state_dict"], atol=1e-12, rtol=0)
    assert one["state_dict"]["g_ihc2he.model.18.bias"].abs().max() > 1e-6  # which began as 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        ("cut_bci", ["model.ema_decay=0.9", "model.accumulate=2", "model.gradient_clip_val=1"]),
        ("cut_bci", ["model=fastcut", "model.gradient_clip_val=1"]),
        ("pix2pix_bci", ["model.generator.dropout=0", "model.gradient_clip_val=1"]),  # dropout differs by process
    ],
    ids=["CUT", "FastCUT", "pix2pix"],
)
def test_two_processes_compare_the_same_patches(experiment, options, cli, launch, tmp_path):
    small = [f"experiment=smoke/{experiment}", "data.simulate.tiles=9"]
    one, two = one_and_two([*small, *options], cli, launch, tmp_path)
    assert one["global_step"] == two["global_step"] == (4 if "model.accumulate=2" in options else 6)
    torch.testing.assert_close(one["state_dict"], two["state_dict"], atol=1e-12, rtol=0)
    heads = [name for name in one["state_dict"] if name.startswith("contrast.") and name.endswith("2.bias")]
    assert len(heads) == 4
    assert all(one["state_dict"][name].abs().max() > 1e-6 for name in heads)  # which began as 0


# Batch normalisation has the statistics of each process's own tiles, so it is left out here.
PLAIN = """
from torch import nn
from ihc2he.models.generation import acgan, dcgan, sngan, wgan_gp

class Same(nn.Module):
    def forward(self, x, label=None):
        return x

def plain(base):
    class Plain(base):
        def __init__(self, **settings):
            super().__init__(**settings)
            for module in list(self.modules()):
                for name, child in module.named_children():
                    if isinstance(child, nn.BatchNorm2d):
                        setattr(module, name, Same())
    return Plain

dcgan, acgan = plain(dcgan.DcganGenerator), plain(acgan.AcganGenerator)
wgan_gp, sngan = plain(wgan_gp.WganGenerator), plain(sngan.SnganGenerator)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dcgan", ["model.discriminator.spectral_norm=true", "model.diffaugment=[colour,translation,cutout]"]),
        ("acgan", ["model.discriminator.spectral_norm=true", "model.discriminator.dropout=0"]),
        ("wgan_gp", ["model.gradient_clip_val=1"]),
        ("sngan", ["model.d_steps=3"]),
    ],
)
def test_two_processes_train_a_gan_as_one_does(name, options, cli, launch, tmp_path, monkeypatch):
    (tmp_path / "plain.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plain", raising=False)
    small = ["experiment=smoke/gan_her2", f"model/gan={name}", f"model.generator._target_=plain.{name}"]
    one, two = one_and_two([*small, *options], cli, launch, tmp_path)
    assert one["global_step"] == two["global_step"] == (2 if name == "sngan" else 6)
    assert all(value.dtype == torch.float64 for value in one["state_dict"].values() if value.is_floating_point())
    torch.testing.assert_close(one["state_dict"], two["state_dict"], atol=1e-12, rtol=0)


def one_and_two(arguments, cli, launch, tmp_path):
    """Return the last checkpoints of one process with batches of 4, and of two with batches of 2."""
    common = [*arguments, "stages=[fit]", "trainer.precision=64-true", "data.samples_per_epoch=12"]
    common += [*SGD, "trainer.check_val_every_n_epoch=9", "callbacks.bundles=null"]
    done = cli(*common, "data.batch_size=4", "hydra.run.dir=one")
    assert done.status == 0, done.err
    status, said = launch(PYTHON, *common, "trainer=ddp_cpu", "data.batch_size=2", "hydra.run.dir=two")
    assert status == 0, said
    return tuple(checkpoint(tmp_path / name) for name in ("one", "two"))


# ------------------------------------------------------------------ HoVer-Net: the mean of the gradients

SEGMENTER = {
    "encoder": {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1]},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "classes": ["round", "square"],
    "width": 32,
    "workers": 0,
}

GRADIENTS = """
import json, sys
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from ihc2he.datainfo import DataInfo
from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter

strategy, settings, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]

class Keep(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.is_global_zero:
            torch.save({name: p.grad for name, p in pl_module.named_parameters()}, out)

torch.manual_seed(0)
module = HoverNetSegmenter(**settings)
batch = torch.load("batch.pt", weights_only=True)
class Own(torch.utils.data.Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, i):
        return {key: value[trainer.global_rank :: trainer.world_size] for key, value in batch.items()}

trainer = Trainer(
    accelerator="cpu", devices=2, strategy=strategy, precision="64-true", max_steps=1, logger=False,
    use_distributed_sampler=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
)
trainer.callbacks.append(Keep())

class Halves(LightningDataModule):
    info = DataInfo(mpp=0.25, classes=settings["classes"])
    def train_dataloader(self):
        return torch.utils.data.DataLoader(Own(), batch_size=None)

trainer.fit(module, datamodule=Halves())
"""


def crops(n, side):
    """Return a training batch of noise, whose halves hold different amounts of nuclei."""
    generator = torch.Generator().manual_seed(0)
    inst = torch.zeros(n, side, side, dtype=torch.int64)
    for i in range(n):
        inst[i, 4 : 10 + 8 * i, 6:20] = 1
    hv = torch.rand(n, 2, side, side, generator=generator, dtype=torch.float64) * 2 - 1
    kinds = inst * torch.randint(1, 3, (n, 1, 1), generator=generator)
    image = torch.rand(n, 3, side, side, generator=generator, dtype=torch.float64)
    return {"image": image, "inst": inst, "hv": hv, "type": kinds}


def gradients(batch):
    torch.manual_seed(0)
    module = HoverNetSegmenter(**SEGMENTER).double()
    module.log = module.log_dict = lambda *_, **__: None
    module.training_step(batch, 0).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.slow
def test_the_gradients_of_two_processes_are_the_mean_of_those_of_the_halves(tmp_path):
    batch = crops(4, 64)
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "script.py").write_text(GRADIENTS)
    strategy = build_trainer("ddp_cpu")["strategy"]
    command = [*TORCHRUN, "2", "script.py", strategy, json.dumps(SEGMENTER), "found.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    halves = [gradients({key: value[rank::2] for key, value in batch.items()}) for rank in range(2)]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    torch.testing.assert_close(found, mean, atol=1e-12, rtol=1e-9)
    # Batch normalisation and Dice look at a batch as a whole, so one process with all of it differs: that is no error.
    whole = gradients(batch)
    assert max((whole[name] - mean[name]).abs().max() / mean[name].abs().max() for name in mean) > 1e-2


# ------------------------------------------------------------------ trainers


def build_trainer(name):
    """Return the node that `trainer=NAME` stands for."""
    from hydra import compose, initialize_config_dir

    from ihc2he import config

    config.register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [f"trainer={name}", "paths.output_dir=."])
    return {key: value for key, value in cfg.trainer.items() if key != "default_root_dir"}


def test_statistics_are_shared_between_gpus_and_not_on_the_cpu():
    assert build_trainer("ddp")["sync_batchnorm"] is True
    assert "sync_batchnorm" not in build_trainer("ddp_cpu")
    assert build_trainer("ddp")["strategy"] == build_trainer("ddp_cpu")["strategy"] == "ddp_find_unused_parameters_true"


# ------------------------------------------------------------------ image pools


@pytest.mark.slow
def test_each_process_has_its_own_pool_and_goes_on_with_it(cli, launch, tmp_path):
    options = [*CYCLEGAN, "stages=[fit]", "trainer=ddp_cpu", "model.pool_size=2", "model.n_epochs=4"]
    parts = {"whole": [[]], "parts": [["trainer.max_epochs=2"], ["ckpt_path=auto"]]}
    for name, runs in parts.items():
        for more in runs:
            status, said = launch(PYTHON, *options, *more, f"hydra.run.dir={name}")
            assert status == 0, said
    whole, parts = (checkpoint(tmp_path / name) for name in ("whole", "parts"))
    torch.testing.assert_close(whole["state_dict"], parts["state_dict"], atol=0, rtol=0)
    for rank, (pools, again) in enumerate(zip(whole["image_pools"], parts["image_pools"], strict=True)):
        for stain in ("ihc", "he"):
            torch.testing.assert_close(pools[stain], again[stain], atol=0, rtol=0, msg=f"{stain} of rank {rank}")
    first, second = (pools["he"] for pools in whole["image_pools"])
    assert not torch.equal(first["generator"], second["generator"])
    assert not any(torch.equal(a, b) for a in first["images"] for b in second["images"])
    # With another number of processes, a run may go on, though not as it would have done.
    done = cli(*options, "trainer=cpu", f"ckpt_path={tmp_path}/whole/checkpoints/last.ckpt", "hydra.run.dir=alone",
               "trainer.max_epochs=6")  # fmt: skip
    assert done.status == 0, done.err
    (warned,) = (line for line in json.loads((tmp_path / "alone/run.json").read_text())["warnings"] if "pools" in line)
    assert "The checkpoint is of 2 processes, and this run has 1" in warned
