"""Who is the first process of a launch, and in which folder all of them meet."""

import pytest

from ihc2he.errors import ConfigError


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "night"}, "slurm-7-0-"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "bash"}, None),  # one session, many runs
        ({"TORCHELASTIC_RUN_ID": "night", "SLURM_JOB_ID": "7"}, "night"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "IHC2HE_RUN_ID": "mine"}, "mine"),
    ],
)
def test_all_processes_of_a_launch_name_the_same_folder(monkeypatch, env, expected):
    from ihc2he.config import stamp

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert stamp() == stamp() if expected else stamp() != stamp()
    assert stamp().startswith(expected or "20")


def test_torchrun_without_an_id_is_refused(monkeypatch):
    from ihc2he.config import stamp

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Pass --standalone on one node"):
        stamp()


@pytest.mark.parametrize(
    ("env", "rank"),
    [
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, 1),  # Lightning's second process in an interactive session
        ({"SLURM_PROCID": "3"}, 3),
        ({"SLURM_PROCID": "0", "RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({}, 0),
    ],
)
def test_only_one_process_takes_itself_for_the_first(monkeypatch, env, rank):
    from ihc2he.launching import own_rank

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert own_rank() == rank


def test_torchrun_inside_a_slurm_job_places_its_processes_itself(monkeypatch):
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from ihc2he.launching import cluster_environments

    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "night", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    assert any(isinstance(plugin, SLURMEnvironment) for plugin in cluster_environments())
    for name, value in {"TORCHELASTIC_RUN_ID": "night", "RANK": "0", "GROUP_RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not any(isinstance(plugin, SLURMEnvironment) for plugin in cluster_environments())


@pytest.mark.parametrize(("workers", "free", "lines"), [(2, 64e6, 1), (0, 64e6, 0), (2, 1e9, 0)])
def test_little_shared_memory_is_said_before_anything_is_loaded(monkeypatch, caplog, workers, free, lines):
    import shutil
    from types import SimpleNamespace

    from ihc2he import launching

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    launching.warn_of_little_shared_memory(workers)
    assert len(caplog.records) == lines
    assert ("has 64 MB free" in caplog.text and "--shm-size=2g" in caplog.text) == bool(lines)
