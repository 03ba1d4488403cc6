import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ihc2he.build import build
from ihc2he.models.bundle import save_bundle

SMOKE = "experiment=smoke/cyclegan_bci"


def the_run(folder: Path) -> Path:
    (run,) = (folder / "outputs" / "smoke" / "cyclegan_bci").iterdir()
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)


def column(file: Path, name: str) -> list[str]:
    with file.open(newline="") as stream:
        return [row[name] for row in csv.DictReader(stream) if row.get(name)]


def test_a_run_leaves_everything_a_user_expects(cli, tmp_path):
    done = cli(SMOKE)
    assert done.status == 0, done.err
    run = the_run(tmp_path)
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    expected = {"config.yaml", "run.json", "metrics.csv", "test.csv", "results.csv", "report.html", "train.log"}
    expected |= {f"bundles/{g}/{f}" for g in ("g_ihc2he", "g_he2ihc")
                 for f in ("config.json", "model.safetensors", "README.md")}  # fmt: skip
    assert expected | {"checkpoints/last.ckpt"} <= names
    assert {"val", "test", "worst"} == {Path(n).parent.name for n in names if n.startswith("images/")}
    assert not [n for n in names if ".part" in n or ".tmp" in n]

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert set(record["seconds"]) == {"fit", "test"}
    assert set(record["weights"]["test"]) == {"checkpoint", "epoch", "step"}
    assert column(run / "test.csv", "checkpoint")[0] == record["weights"]["test"]["checkpoint"]
    assert f"test: {record['weights']['test']['checkpoint']}, epoch " in (run / "train.log").read_text()
    assert record["versions"]["torch"]
    assert all(float(v) > 0 for v in column(run / "metrics.csv", "train/loss_g"))
    assert len(column(run / "metrics.csv", "val/he/ssim")) == 2
    metrics = set(column(run / "test.csv", "metric"))
    assert {"he/psnr", "ihc/ssim", "he/hematoxylin_correlation", "he/dab_ratio"} <= metrics
    assert "Traceback" not in done.err


def test_fit_changes_every_network(cli, tmp_path):
    cli(SMOKE, "stages=[fit]", "model.n_epochs=1", "model.n_epochs_decay=0")
    first = weights(the_run(tmp_path))
    cli(SMOKE, "stages=[fit]", "model.n_epochs=2", "model.n_epochs_decay=0", "ckpt_path=last")
    second = weights(the_run(tmp_path))
    for net in ("g_ihc2he", "g_he2ihc", "d_ihc", "d_he"):
        kept = {k: v for k, v in first["state_dict"].items() if k.startswith(net) and k.endswith("weight")}
        assert kept
        assert all(not torch.equal(v, second["state_dict"][k]) for k, v in kept.items())
    assert second["global_step"] == 2 * first["global_step"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumed_from_the_command_line_equals_the_uninterrupted_one(workers, cli, tmp_path, monkeypatch):
    """Weights, averages, both optimisers, schedulers and pools, bit for bit; and it goes on in the same files.

    Worker processes could start to load before the Trainer names the epoch, and dropout draws from the global
    generator, so they are a case of their own.
    """
    options = [
        f"data.num_workers={workers}",
        "stages=[fit]",
        "model.ema_decay=0.9",
        "model.pool_size=2",
        "model.n_epochs=2",
        "model.n_epochs_decay=2",
    ]
    results = {}
    for name, parts in {"whole": [[]], "parts": [["trainer.max_epochs=2"], ["ckpt_path=last"]]}.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for part in parts:
            done = cli(SMOKE, *options, *part)
            assert done.status == 0, done.err
        results[name] = weights(the_run(tmp_path / name))
    whole, parts = results["whole"], results["parts"]
    assert whole["epoch"] == parts["epoch"] == 3
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "image_pools", "global_step"):
        same(whole[key], parts[key], key)
    run = the_run(tmp_path / "parts")
    assert column(run / "metrics.csv", "train/loss_g") == column(
        the_run(tmp_path / "whole") / "metrics.csv", "train/loss_g"
    )


def same(a, b, path):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{path}.{i}")
    else:
        assert a == b, path


def test_a_checkpoint_is_judged_without_training(cli, tmp_path):
    cli(SMOKE, "stages=[fit]")
    ckpt = the_run(tmp_path) / "checkpoints" / "last.ckpt"
    done = cli(SMOKE, "stages=[test]", f"ckpt_path={ckpt}", "hydra.run.dir=judged")
    assert done.status == 0, done.err
    assert column(tmp_path / "judged" / "test.csv", "metric")
    assert not (tmp_path / "judged" / "checkpoints").exists()


@pytest.fixture
def _hears_interrupts():
    """A shell that starts the tests in the background has them, and what they start, ignore SIGINT."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("_hears_interrupts")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_an_interrupted_run_says_how_to_go_on_and_does_not_pass_for_done(number, status, tmp_path):
    endless = ["model.n_epochs=9999", "trainer.check_val_every_n_epoch=9999"]
    command = [sys.executable, "-m", "ihc2he.train", SMOKE, *endless]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(tmp_path.glob("outputs/**/last.ckpt")) and time.monotonic() < deadline:
                time.sleep(0.2)
            process.send_signal(number)
            said = process.communicate(timeout=240)[0]
        finally:
            process.kill()
    assert process.returncode == status, said
    assert f"hydra.run.dir={the_run(tmp_path)} ckpt_path=auto" in said
    assert json.loads((the_run(tmp_path) / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["stages=[test]"], "needs ckpt_path=PATH: a CycleGAN with random weights says nothing", 2),
        (["model.compile=true", "model.adversarial=wgan_gp"], "set compile=false", 2),
        (["stages=[]"], "stages=[]: there is nothing to do", 2),
        (["data.store=/proc/nowhere"], "/proc/nowhere", 1),
        (["trainer=gpu"], "No supported gpu backend found", 2),
        (["trainer.limit_train_batches=0.01"], "Please increase the `limit_train_batches` argument", 2),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path=nowhere.ckpt: there is no such file", 2),
        (
            ["optimized_metric=val/he/sim", "stages=[fit]"],
            "'val/he/sim' is not logged. Did you mean 'val/he/ssim'?",
            2,
        ),
    ],
)
def test_what_cannot_work_ends_in_one_line(cli, arguments, message, status):
    if arguments == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = cli(SMOKE, *arguments)
    assert done.status == status
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_checkpoint_that_does_not_fit_or_is_cut_off_is_named(cli, tmp_path):
    assert cli(SMOKE, "debug=fast", "stages=[fit]").status == 0
    folder = the_run(tmp_path) / "checkpoints"
    other = cli(SMOKE, f"ckpt_path={folder / 'last.ckpt'}", "model.generator.width=12", "hydra.run.dir=other")
    assert other.status == 2
    assert "holds another model than this configuration's CycleGAN" in other.err
    cut = folder / "cut.ckpt"
    cut.write_bytes((folder / "last.ckpt").read_bytes()[:50_000])
    done = cli(SMOKE, f"ckpt_path={cut}", "hydra.run.dir=cut")
    assert done.status == 1
    assert f"{cut}: not a readable checkpoint" in done.err
    assert f"Beside it: {folder / 'best_epoch000.ckpt'}, {folder / 'last.ckpt'}." in done.err


def test_missing_data_says_where_to_get_it(cli):
    done = cli("experiment=cyclegan_bci", "logger=csv")
    assert done.status == 1
    for words in ("bci.grand-challenge.org", "non-commercial", "HE/{train,test}", "data.root="):
        assert words in done.err


def test_two_runs_never_share_a_folder(cli, tmp_path):
    cli(SMOKE, "debug=fast", "hydra.run.dir=here")
    before = (tmp_path / "here" / "run.json").read_bytes()
    done = cli(SMOKE, "debug=fast", "hydra.run.dir=here")
    assert done.status == 2
    assert "here already holds a run. Continue it with ckpt_path=auto" in done.err
    with FileLock(tmp_path / "here" / ".lock"):
        done = cli(SMOKE, "debug=fast", "hydra.run.dir=here", "ckpt_path=auto")
    assert done.status == 2
    assert "here: another process is writing this run. Wait for its end" in done.err
    assert (tmp_path / "here" / "run.json").read_bytes() == before


def test_a_run_that_cannot_start_leaves_no_folder(cli, tmp_path):
    assert cli(SMOKE, "trainer.precision=17", "hydra.run.dir=here").status == 2
    assert not (tmp_path / "here").exists()


def test_auto_begins_where_there_is_nothing_to_continue(cli, tmp_path):
    first = cli(SMOKE, "debug=fast", "stages=[fit]", "hydra.run.dir=here", "ckpt_path=auto")
    assert (first.status, "Continuing" in first.out + first.err) == (0, False)
    steps = weights(tmp_path / "here")["global_step"]
    again = cli(SMOKE, "debug=fast", "stages=[fit]", "hydra.run.dir=here", "ckpt_path=auto", "trainer.max_epochs=2")
    assert again.status == 0
    assert weights(tmp_path / "here")["global_step"] == 2 * steps


def test_a_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    small = [SMOKE, "stages=[fit]", "callbacks.bundles=null", "hydra.run.dir=run", "ckpt_path=auto"]
    subprocess.run([sys.executable, "-m", "ihc2he.train", *small, "trainer.max_epochs=1"], cwd=tmp_path, check=True)
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    limited = (  # no file may become larger, as on a full disk
        "import resource, sys, ihc2he.train\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2}))\n"
        "ihc2he.train.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *small], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert (
        "last.ckpt could not be written (" in done.stderr or "best_epoch001.ckpt could not be written (" in done.stderr
    )
    assert re.search(r"The last good checkpoint is \S*run/checkpoints/last.ckpt", done.stderr)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_failed_run_is_recorded_and_keeps_its_last_good_checkpoint(cli, tmp_path):
    done = cli(SMOKE, "stages=[fit]", "model.n_epochs=5", "model.optimizer.lr=1e30")
    assert done.status == 1
    assert "The loss became NaN or infinite" in done.err
    run = the_run(tmp_path)
    assert json.loads((run / "run.json").read_text())["status"].startswith("TrainingDivergedError")
    assert (run / "report.html").exists()


def test_a_users_own_model_and_data_train_without_an_edit_here(command, tmp_path):
    (tmp_path / "lab.py").write_text(
        "import torch\n"
        "from lightning.pytorch import LightningDataModule\n"
        "from ihc2he.datainfo import DataInfo\n"
        "class Tiny(torch.nn.Module):\n"
        "    def __init__(self, width: int):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Conv2d(3, 3, width, padding='same')\n"
        "    def forward(self, x):\n"
        "        return torch.tanh(self.net(x))\n"
        "class Noise(LightningDataModule):\n"
        "    info = DataInfo(mpp=0.5)\n"
        "    def __init__(self, size: int):\n"
        "        super().__init__()\n"
        "        self.size = size\n"
        "    def train_dataloader(self):\n"
        "        tiles = {stain: torch.rand(3, self.size, self.size) for stain in ('ihc', 'he')}\n"
        "        return torch.utils.data.DataLoader([tiles] * 3)\n"
    )
    mine = tmp_path / "conf"
    for group, name, text in (
        ("data", "noise", "_target_: lab.Noise\nsize: 32\n"),
        ("model/generator", "tiny", "_target_: lab.Tiny\nwidth: 3\n"),
        (
            "experiment",
            "mine",
            "# @package _global_\ndefaults:\n  - override /data: noise\n  - override /model: cyclegan\n"
            "  - override /model/generator: tiny\n  - override /model/discriminator: patch_small\n"
            "stages: [fit]\ndata: {size: 40}\ntrainer: {max_epochs: 1}\n",
        ),
    ):
        (mine / group).mkdir(parents=True, exist_ok=True)
        (mine / group / f"{name}.yaml").write_text(text)
    done = command("--config-dir", "conf", "experiment=mine")
    assert done.status == 0, done.err
    (run,) = (tmp_path / "outputs" / "mine").iterdir()
    assert json.loads((run / "bundles" / "g_ihc2he" / "config.json").read_text())["module"]["_target_"] == "lab.Tiny"


def test_two_folders_of_tiles_train_and_are_judged_by_kid(cli, tmp_path):
    """The whole of `cyclegan_unpaired`, made small, with W&B offline and a feature network of the user's."""
    from ihc2he.simulate.bci import write_bci

    write_bci(tmp_path / "bci", 16, 64, 0)
    (tmp_path / "lab_features.py").write_text(
        "import torch\n"
        "class Means(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)\n"
    )
    sys.path.insert(0, str(tmp_path))
    small = ["model.generator.width=8", "model.discriminator.width=8", "model.n_epochs=1", "model.n_epochs_decay=1"]
    done = cli(
        "experiment=cyclegan_unpaired",
        *("data.ihc=bci/IHC", "data.he=bci/HE", "data.mpp_ihc=0.46", "data.mpp_he=0.92", "data.crop_size=32"),
        *("data.num_workers=0", "data.val_fraction=0.25", "data.test_fraction=0.25", "trainer=cpu"),
        *("model/generator=resnet_small", "model/discriminator=patch_small", *small),
        *("trainer.check_val_every_n_epoch=1", "model.features={_target_: lab_features.Means}"),
    )
    sys.path.remove(str(tmp_path))
    assert done.status == 0, done.err
    (run,) = (tmp_path / "outputs" / "cyclegan_unpaired").iterdir()
    assert list((run / "checkpoints").glob("best_epoch*.ckpt"))
    with (run / "test.csv").open(newline="") as stream:
        table = {row["metric"]: row["better"] for row in csv.DictReader(stream)}
    assert table["he/kid"] == table["ihc/fid"] == "lower"
    assert "he/psnr" not in table
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert json.loads((run / "bundles" / "g_ihc2he" / "config.json").read_text())["mpp"] == 0.92


def test_without_a_feature_network_kid_is_left_out_with_a_line(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    done = cli(SMOKE, "model.features=inception", "callbacks.best.monitor=val/he/kid", "callbacks.best.mode=min")
    assert done.status == 0, done.err
    run = the_run(tmp_path)
    warned = " ".join(json.loads((run / "run.json").read_text())["warnings"])
    assert "FID and KID are left out" in warned
    assert "'val/he/kid' is not logged, so only the last checkpoint is kept, not the best" in warned
    assert not list((run / "checkpoints").glob("best*"))
    assert json.loads((run / "bundles" / "g_ihc2he" / "config.json").read_text())["epoch"] == 2


def test_a_sweep_runs_each_job_in_its_own_folder_and_goes_on_after_a_failure(cli, tmp_path):
    done = cli("-m", SMOKE, "debug=fast", "stages=[fit]", "model.pool_size=0,2", "optimized_metric=train/loss_g")
    assert done.status == 0, done.err
    (sweep,) = (tmp_path / "outputs" / "smoke" / "cyclegan_bci").iterdir()
    for job in ("0", "1"):
        assert (sweep / job / "checkpoints" / "last.ckpt").is_file()


def test_two_processes_share_one_folder_and_judge_every_tile_once(command, tmp_path):
    done = command(SMOKE, "trainer=ddp_cpu", "data.simulate.tiles=9", timeout=280)
    assert done.status == 0, done.err
    run = the_run(tmp_path)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["world_size"]) == ("finished", 2)
    names = column(run / "results.csv", "name")
    assert len(names) == len(set(names)) == 2
    assert len(weights(run)["image_pools"]) == 2


def test_content_terms_and_the_local_generator_train_in_two_processes(command, tmp_path):
    network = {
        "_target_": "ihc2he.models.segmentation.networks.UNet", "channels": {"mask": 1, "centre": 1}, "width": 4,
        "encoder": {
            "_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1],
        },
    }  # fmt: skip
    decoder = {"_target_": "ihc2he.nuclei.decoders.centres.CentresDecoder"}
    info = {"module": network, "role": "segmenter", "classes": [], "mpp": 0.5, "decoder": decoder}
    save_bundle(build(network, torch.nn.Module), tmp_path / "segmenter", info)
    done = command(
        SMOKE, "trainer=ddp_cpu", "data.simulate.tiles=9", "model/generator=unet_local", "~model.generator.n_blocks",
        "model.generator.depth=1", "model.lambda_nuclear=5", "model.nuclear_dab=0", "model.lambda_segmentation=1",
        f"model.segmenter={tmp_path / 'segmenter'}", "trainer.precision=bf16-mixed", timeout=280,
    )  # fmt: skip
    assert done.status == 0, done.err
    run = the_run(tmp_path)
    assert json.loads((run / "run.json").read_text())["world_size"] == 2
    measured = {row["metric"] for row in csv.DictReader((run / "test.csv").open(newline=""))}
    assert {"he/psnr", "he/ssim", "he/nuclear_correlation", "he/dab_ratio", "he/lost", "he/invented"} <= measured
    logged = (run / "metrics.csv").read_text().splitlines()[0]
    assert "train/loss_nuclear_he" in logged
    assert "train/loss_segmentation_again" in logged
    info = json.loads((run / "bundles" / "g_ihc2he" / "config.json").read_text())
    assert info["terms"] == {"adversarial": 1, "cycle": 10, "identity": 5, "nuclear": 5, "segmentation": 1}
    assert info["halo"] == 11
    assert not [key for key in weights(run)["state_dict"] if key.partition(".")[0] not in NETWORKS]


NETWORKS = ("g_ihc2he", "g_he2ihc", "d_ihc", "d_he")
