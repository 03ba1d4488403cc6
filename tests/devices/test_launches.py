"""One run, whoever starts its processes: its files, its predictions, and its end where one process fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ihc2he.files import read_csv

CYCLEGAN = ["experiment=smoke/cyclegan_bci", "data.simulate.tiles=9"]
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
LAUNCHERS = {"lightning": PYTHON, "torchrun": [*TORCHRUN, "2"]}


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# ------------------------------------------------------------------ one run, whoever starts its processes


@pytest.mark.slow
def test_torchrun_makes_one_run_and_judges_as_one_process_does(cli, launch, tmp_path):
    tiles = "data.simulate.tiles=15"  # of which 3 for the test: the processes get unequal shares
    status, said = launch(LAUNCHERS["torchrun"], *CYCLEGAN, tiles, "trainer=ddp_cpu")
    assert status == 0, said
    (run,) = (tmp_path / "outputs" / "smoke" / "cyclegan_bci").iterdir()
    assert [p.name for p in run.glob("*.log")] == ["train.log"]
    assert (run / "train.log").read_text().count("CycleGAN: ") == 1
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["world_size"]) == ("finished", 2)
    assert "sync_dist" not in said
    last = run / "checkpoints" / "last.ckpt"
    judge = [*CYCLEGAN, tiles, "stages=[test]", f"ckpt_path={last}"]
    assert cli(*judge, "trainer=cpu", "hydra.run.dir=one").status == 0
    status, said = launch(LAUNCHERS["torchrun"], *judge, "trainer=ddp_cpu", "hydra.run.dir=two")
    assert status == 0, said
    names = [row["name"] for row in read_csv(tmp_path / "two" / "results.csv")]
    assert len(names) == len(set(names)) == 3
    for table in ("results.csv", "test.csv"):
        assert read_csv(tmp_path / "one" / table) == read_csv(tmp_path / "two" / table), table


@pytest.mark.slow
def test_two_nodes_make_one_run(start, tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
        *("--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=night"),
    ]
    nodes = ["trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    processes = [start(command, *CYCLEGAN, *nodes, cwd=tmp_path, log=tmp_path / f"node{i}.log") for i in range(2)]
    try:
        for i, process in enumerate(processes):
            assert process.wait(200) == 0, (tmp_path / f"node{i}.log").read_text()
    finally:
        for process in processes:
            process.kill()
    run = tmp_path / "outputs" / "smoke" / "cyclegan_bci" / "night"
    assert json.loads((run / "run.json").read_text())["world_size"] == 2
    assert list(run.parent.iterdir()) == [run]


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


SRUN = """
import os, subprocess, sys
names = ("SLURM_PROCID", "SLURM_LOCALID")
places = [dict.fromkeys(names, str(i)) | {"SLURM_NODEID": "0", "SLURM_STEP_ID": "0"} for i in range(2)]
tasks = [subprocess.Popen(sys.argv[2:], env=os.environ | place) for place in places]
open("tasks", "w").write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.slow
def test_the_slurm_script_of_the_page_goes_on_where_it_was_stopped(tmp_path):
    """The script itself, with an `srun` that starts two tasks and a `scontrol` that notes what it is asked for."""
    (text,) = re.findall(
        r"^```bash\n(#!/bin/bash\n.*?)^```",
        (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    small = "experiment=smoke/cyclegan_bci trainer=ddp_cpu model.n_epochs=40 trainer.check_val_every_n_epoch=20"
    assert "experiment=cyclegan_bci trainer=ddp" in text
    (tmp_path / "train.sbatch").write_text(text.replace("experiment=cyclegan_bci trainer=ddp", small))
    for name, content in (("srun", f"#!{sys.executable}\n{SRUN}"), ("scontrol", "#!/bin/bash\necho $@ >> asked\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{"SLURM_JOB_ID": "4207", "SLURM_JOB_NAME": "cyclegan", "SLURM_NODELIST": "localhost"},
        **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"},
    }
    runs = tmp_path / "outputs" / "smoke" / "cyclegan_bci"
    with (tmp_path / "said.log").open("w") as log:
        script = {"args": ["bash", "train.sbatch"], "cwd": tmp_path, "env": env, "stdout": log, "stderr": log}
        with subprocess.Popen(**script) as job:
            deadline = time.monotonic() + 150
            while not list(runs.glob("slurm-4207-0-*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
                time.sleep(0.2)
            for pid in [int(pid) for pid in (tmp_path / "tasks").read_text().split()] + [job.pid]:
                os.kill(pid, signal.SIGTERM)
            assert job.wait(60) == 143, (tmp_path / "said.log").read_text()
        (run,) = runs.iterdir()
        assert (tmp_path / "asked").read_text() == "requeue 4207\n"
        assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
        stopped = checkpoint(run)["global_step"]
        assert subprocess.run(**script, check=False, timeout=200).returncode == 0
    assert list(run.parent.iterdir()) == [run]
    assert "Continuing" in (run / "train.log").read_text()
    assert checkpoint(run)["global_step"] > stopped
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert (tmp_path / "asked").read_text() == "requeue 4207\n"


# ------------------------------------------------------------------ prediction


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "devices"), [("lightning", 2), ("torchrun", 3)])
def test_a_prediction_is_the_same_files_whatever_the_number_of_processes(cli, launch, tmp_path, launcher, devices):
    rng = np.random.default_rng(0)
    sizes = [(80, 80), (37, 51), (150, 130), (64, 64), (96, 70)]
    for i, size in enumerate(sizes):
        path = tmp_path / "images" / ("sub" if i % 2 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blurred = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3)).astype(np.float32), (0, 0), 5)
        assert cv2.imwrite(str(path), ((blurred - 128) * 8 + 160).clip(0, 255).astype(np.uint8))
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG cut off")
    use = ["model.use.translators=[recolour]", "model.use.segmenters=[classical]", "model.block=128", "model.workers=0"]
    options = ["experiment=predict_tiles", "data.path=images", "data.mpp=0.5", "data.num_workers=0", *use]
    assert cli(*options, "trainer=cpu", "out=one", "hydra.run.dir=run_one").status == 1
    command = PYTHON if launcher == "lightning" else [*TORCHRUN, str(devices)]
    ddp = ["trainer=ddp_cpu", f"trainer.devices={devices}"]
    status, said = launch(command, *options, *ddp, "out=all", "hydra.run.dir=run_all")
    assert status == 1
    assert "1 of 6 images could not be read: images/broken.png" in said
    one, many = contents(tmp_path / "one"), contents(tmp_path / "all")
    assert sorted(one) == sorted(many)
    assert [name for name in one if one[name] != many[name]] == []
    assert len([name for name in one if name.parts[0] == "done"]) == len(sizes)
    assert any(len(read_csv(tmp_path / "one" / name)) for name in one if name.parts[0] == "nuclei")


# ------------------------------------------------------------------ one process fails

BOMB = """
import os, signal
from lightning.pytorch import Callback
from ihc2he.errors import DataError

class Bomb(Callback):
    def __init__(self, rank: int, kind: str):
        self.rank, self.kind = rank, kind

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3 and trainer.global_rank == self.rank:
            if self.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("bad.png: cannot be read.")
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("kind", ["raises", "killed"])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_end_where_one_does(launch, tmp_path, launcher, kind, rank):
    (tmp_path / "lab.py").write_text(BOMB)
    bomb = f"+callbacks.bomb={{_target_:lab.Bomb,rank:{rank},kind:{kind}}}"
    started = time.monotonic()
    status, said = launch(
        LAUNCHERS[launcher], *CYCLEGAN, "trainer=ddp_cpu", "model.n_epochs=400", bomb, "hydra.run.dir=run", timeout=120
    )
    assert status != 0
    assert time.monotonic() - started < 120
    if kind == "raises":
        assert "ihc2he: bad.png: cannot be read." in said
    assert checkpoint(tmp_path / "run")["epoch"] == 0  # the last good one, whole
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] != "finished"
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]
