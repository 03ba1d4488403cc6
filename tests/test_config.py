import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ihc2he import config
from ihc2he.errors import ConfigError

CONF = config.config_dir()
EXPERIMENTS = sorted(str(p.relative_to(CONF / "experiment").with_suffix("")) for p in CONF.glob("experiment/**/*.yaml"))
GROUPS = [
    "data",
    "model",
    "model/generator",
    "model/discriminator",
    "model/encoder",
    "model/scheduler",
    "model/gan",
    "model/features",
    "trainer",
    "logger",
    "callbacks",
    "debug",
]
OPTIONS = [f"{group}={p.stem}" for group in GROUPS for p in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides):
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_struct(cfg, False)
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir = "run"
    HydraConfig.instance().set_config(copy.deepcopy(cfg))
    cfg.pop("hydra")
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)


@pytest.fixture(autouse=True)
def _forget_hydra():
    yield
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_passes_preflight(name):
    cfg = composed(f"experiment={name}")
    assert cfg["experiment_name"] == name
    config.preflight(cfg)
    assert len(list(config.target_nodes(cfg))) >= 5


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_passes_preflight(option):
    experiment = "cyclegan_bci"
    if option in ("model=hovernet", "model=centres", "model=lite", "model=adapted") or option.startswith(
        ("model/encoder", "model/scheduler", "model/decoder=hover")
    ):
        experiment = "hovernet_pannuke"
    elif option == "model=classifier":
        experiment = "classifier_her2"
    elif option == "model=pipeline":
        experiment = "pipeline_endonuke"
    elif option == "model=gan" or option.startswith(("model/gan", "model/features")):
        experiment = "gan_her2"
    elif option == "model=tile_sampler":
        experiment = "gan_tiles"
    config.preflight(composed(f"experiment={experiment}", option))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_how_to_run_it(name):
    comment = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1]
    assert comment.startswith(f"# python -m ihc2he.train experiment={name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_debug_wins_over_every_experiment(name):
    cfg = composed(f"experiment={name}", "debug=fast")
    assert cfg["trainer"]["max_epochs"] == 1
    assert cfg["trainer"]["limit_train_batches"] == 2


def test_no_class_of_the_configuration_swallows_unknown_arguments():
    for name in EXPERIMENTS:
        for path, node in config.target_nodes(composed(f"experiment={name}")):
            parameters = config.signature(config.locate(node["_target_"])).parameters.values()
            assert not any(p.kind is p.VAR_KEYWORD for p in parameters), path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=cyclegan_bcii"], "There is no 'cyclegan_bcii' in 'experiment'. Did you mean 'cyclegan_bci'?"),
        (["experiment=cyclegan_bci", "sed=3"], "There is no key 'sed'. Did you mean 'seed'?"),
        (["experiment=cyclegan_bci", "modle.pool_size=3"], "There is no key 'modle'. Did you mean 'model'?"),
        (["experiment=cyclegan_bci", "model.pol_size=3"], "no key 'model.pol_size'. Did you mean 'pool_size'?"),
        (["experiment=cyclegan_bci", "seed=three"], "seed: Value 'three' of type 'str' could not be converted"),
        (["experiment=cyclegan_bci", "model/generator=resnt9"], "in 'model/generator'. Did you mean 'resnet9'?"),
        (["experiment=cyclegan_bci", "+trainer.max_epoch=3"], "no argument 'max_epoch'. Did you mean 'max_epochs'?"),
        (["experiment=cyclegan_bci", "+model.optimizer.lrr=3"], "torch.optim.Adam has no argument 'lrr'."),
        (["experiment=cyclegan_bci", "+logger.wandb.projct=x"], "no argument 'projct'. Did you mean 'project'?"),
        (["experiment=cyclegan_bci", "trainer.max_epochs=ten"], "trainer.max_epochs: expected int, found 'ten'."),
        (
            ["experiment=cyclegan_bci", "model.generator.n_blocks=nine"],
            "generator.n_blocks: expected int, found 'nine'.",
        ),
        (["experiment=cyclegan_bci", "model.optimizer.lr=fast"], "model.optimizer.lr: expected float or Tensor"),
        (["experiment=cyclegan_bci", "model.ema_decay=much"], "model.ema_decay: expected float, found 'much'."),
        (["experiment=cyclegan_bci", "stages=[fitt]"], "expected one of [fit, validate, test, predict]"),
        (["experiment=cyclegan_bci", "ckpt_path=a=b.ckpt"], "\"ckpt_path='a=b.ckpt'\""),
        (
            ["experiment=cyclegan_bci", "ckpt_path=last"],
            "no run below outputs/cyclegan_bci has a checkpoints/last.ckpt",
        ),
        (
            ["experiment=predict_tiles", "data.mpp_files=0.5"],
            "no key 'data.mpp_files'. It is called data.mpp now (um/px",
        ),
        (
            ["experiment=cyclegan_bci", "+data.mpp_files=0.5"],
            "no argument 'mpp_files'. It is called data.mpp now (um/px",
        ),
        (["experiment=cyclegan_bci", "model.adversarial=lsgn"], "Did you mean 'lsgan'?"),
        (["experiment=cyclegan_bci", "model.metrics=[psnrr]"], "Did you mean 'psnr'?"),
        (
            ["experiment=cyclegan_bci", "model._target_=ihc2he.models.translation.cyclgan.module.CycleGAN"],
            "Did you mean 'cyclegan'?",
        ),
    ],
)
def test_a_typo_ends_in_one_line_with_the_nearest_name(cli, arguments, message, tmp_path):
    done = cli(*arguments)
    lines = [line for line in done.err.splitlines() if line.startswith("ihc2he: ")]
    assert done.status == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.err
    assert not (tmp_path / "stores").exists()


def test_a_typo_inside_an_experiment_file_is_found(cli, tmp_path):
    experiment = tmp_path / "mine" / "experiment"
    experiment.mkdir(parents=True)
    base = "# @package _global_\ndefaults: [/experiment/smoke/cyclegan_bci]\n"
    (experiment / "root.yaml").write_text(base + "sed: 3\n")
    (experiment / "nested.yaml").write_text(base + "model: {optimizer: {learning_rate: 1}}\n")
    assert "There is no key 'sed'. Did you mean 'seed'?" in cli("--config-dir", "mine", "experiment=root").err
    nested = cli("--config-dir", "mine", "experiment=nested")
    assert nested.status == 2
    assert "model.optimizer.learning_rate: torch.optim.Adam has no argument 'learning_rate'." in nested.err


def test_a_users_file_that_a_shipped_one_hides_is_named(cli, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "cyclegan.yaml").write_text("n: 1\n")
    done = cli("--config-dir", "mine", "experiment=cyclegan_bci", "--cfg", "job")
    assert "cyclegan.yaml is not used: the package has a file of the same name." in done.err


def test_without_an_experiment_all_are_listed_and_nothing_is_left_behind(cli, tmp_path):
    done = cli()
    assert done.status == 0
    for name in EXPERIMENTS:
        assert f"  {name} " in done.out
    assert not list(tmp_path.iterdir())


def test_looking_does_not_import_torch(tmp_path):
    code = (
        "import sys; from ihc2he.train import main\n"
        "for more in (['--cfg', 'job', 'experiment=cyclegan_bci'], ['--help'], []):\n"
        "    sys.argv = ['ihc2he', *more]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'lightning', 'numpy', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "n_epochs_decay: 100" in done.stdout


def test_locate_names_the_missing_part():
    with pytest.raises(ConfigError, match=r"there is no 'ResnetGenerater' in .*Did you mean 'ResnetGenerator'"):
        config.locate("ihc2he.models.translation.cyclegan.networks.ResnetGenerater")
    with pytest.raises(ConfigError, match="no module named 'nosuchpackage'"):
        config.locate("nosuchpackage.Thing")
    with pytest.raises(ConfigError, match="is not a class or function"):
        config.locate("ihc2he.models")


def test_a_module_whose_own_import_fails_names_the_missing_package(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import nosuchpackage\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="needs the package 'nosuchpackage', which is not installed"):
        config.locate("needs_more.Thing")


def test_the_newest_run_is_continued(tmp_path):
    import os

    for age, name in ((100, "old"), (10, "new")):
        file = tmp_path / "exp" / name / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    assert config.run_dir(str(tmp_path), "exp", "last") == str(tmp_path / "exp" / "new")
    assert Path(config.run_dir(str(tmp_path), "exp", None)).parent == tmp_path / "exp"


def test_processes_started_apart_agree_on_the_folder(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert config.stamp() != config.stamp()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert re.fullmatch("slurm-77-[0-9a-f]{6}", config.stamp())
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    first = config.stamp()
    assert re.fullmatch("slurm-77-0-[0-9a-f]{6}", first)
    monkeypatch.setattr("sys.argv", [*sys.argv, "ckpt_path=auto"])
    assert config.stamp() == first  # the same folder when the job is requeued, or continued
    monkeypatch.setattr("sys.argv", [*sys.argv, "seed=2"])
    assert config.stamp() != first  # another command of the job
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert config.stamp() == "abc"


def test_keywords_that_a_constructor_hands_on_are_its_own():
    class Base:
        def __init__(self, given: int, *, rate: float = 1.0, name: str = "a") -> None:
            self.rate = rate

    class Between(Base):
        pass

    class Own(Between):
        def __init__(self, depth: int, name: str = "b", **options: Any) -> None:
            super().__init__(depth, name=name, **options)

    class Anything:
        def __init__(self, **options: Any) -> None:
            self.options = options

    found = config.signature(Own).parameters
    assert {key: (p.annotation, p.default) for key, p in found.items() if key != "depth"} == {
        "name": (str, "b"), "rate": (float, 1.0),
    }  # fmt: skip
    assert list(config.signature(Anything).parameters) == ["options"]
