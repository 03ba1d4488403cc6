"""The shipped searches and launchers: their keys exist, and without their plugins one line says what to install."""

import csv
from importlib.metadata import distributions

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ihc2he import config

CONF = config.config_dir()
SEARCHES = sorted(p.stem for p in CONF.glob("hparams_search/*_*.yaml"))
LAUNCHERS = sorted(p.stem for p in CONF.glob("launcher/*.yaml"))
EXPERIMENTS = {
    "cyclegan": "cyclegan_bci",
    "gan": "gan_her2",
    "hovernet": "hovernet_pannuke",
    "pipeline": "pipeline_endonuke",
}
PLUGINS = {
    "optuna": "hydra-optuna-sweeper",
    "joblib": "hydra-joblib-launcher",
    "submitit": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
}
INSTALLED = {d.metadata["Name"] for d in distributions()}
OPTIONS = [f"hparams_search={name}" for name in SEARCHES] + [f"launcher={name}" for name in LAUNCHERS]


def missing_plugin(option):
    """Return whether an option needs a plugin that is not installed."""
    return any(name in option and plugin not in INSTALLED for name, plugin in PLUGINS.items())


def experiment(option):
    return EXPERIMENTS.get(option.partition("=")[2].partition("_")[0], "cyclegan_bci")


def composed(*overrides):
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=True)


@pytest.fixture(params=SEARCHES)
def search(request):
    """Return the name and the content of a search, without what it inherits."""
    return request.param, OmegaConf.load(CONF / "hparams_search" / f"{request.param}.yaml")


def test_a_search_varies_keys_that_exist_over_ranges_that_hydra_reads(search):
    name, own = search
    cfg = composed(f"experiment={experiment('=' + name)}")
    parameters = own.hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in parameters.items()])
    for override in parsed:
        parent, _, key = override.key_or_group.rpartition(".")
        assert key in OmegaConf.select(cfg, parent), override.key_or_group
    assert sum(override.is_sweep_override() for override in parsed) >= 2


def test_a_search_never_sees_a_test(search):
    _, own = search
    assert own.stages in (["fit", "validate"], ["validate"])
    assert OmegaConf.to_container(own)["optimized_metric"].startswith("val/")


def test_a_search_says_how_to_run_it(search):
    name, _ = search
    first = (CONF / "hparams_search" / f"{name}.yaml").read_text().splitlines()[1]
    assert first.startswith(f"# python -m ihc2he.train experiment={experiment('=' + name)} ")
    assert f" hparams_search={name}: " in first


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_composes(option):
    if missing_plugin(option):
        pytest.skip("its plugin is not installed")
    cfg = composed(f"experiment={experiment(option)}", option)
    if option.startswith("launcher="):
        assert cfg.hydra.runtime.choices["hydra/launcher"] == option.partition("=")[2]
    else:
        assert cfg.hydra.mode.name == "MULTIRUN"
        assert cfg.hydra.sweeper.params


@pytest.mark.parametrize("option", OPTIONS)
def test_without_its_plugin_one_line_says_what_to_install(cli, option):
    if not missing_plugin(option):
        pytest.skip("needs no plugin, or has it")
    done = cli("-m", f"experiment={experiment(option)}", option)
    assert done.status == 2
    (line,) = (line for line in done.err.splitlines() if line.startswith("ihc2he: "))
    package = "hydra-ray-launcher" if option == "launcher=ray" else "ihc2he[sweep]"
    assert line.endswith(f' needs a plugin that is not installed: pip install "{package}".')
    assert "Traceback" not in done.err


def test_the_grid_varies_what_it_promises_and_a_given_key_is_fixed(cli, tmp_path):
    small = ["model.label_smoothing=0", "model.discriminator.spectral_norm=true", "model.lr_discriminator=1e-4"]
    epochs = ["model.n_epochs=1", "model.n_epochs_decay=0", "debug=fast", "callbacks.panels=null"]
    done = cli("experiment=smoke/cyclegan_bci", "hparams_search=cyclegan_grid", *small, *epochs)
    assert done.status == 0, done.err
    (folder,) = (tmp_path / "outputs" / "smoke" / "cyclegan_bci").iterdir()
    lines = (folder / "sweep.csv").read_text().splitlines()
    assert len(lines) == 1 + 2  # batch sizes
    assert "val/he/ssim" in lines[0]
    assert "hparams_search" not in (folder / "best.txt").read_text()


def test_the_jobs_of_the_grid_compose_and_have_the_right_arguments():
    parameters = OmegaConf.load(CONF / "hparams_search" / "cyclegan_grid.yaml").hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in parameters.items()])
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    assert len(jobs) == 32
    config.register()
    seen = set()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in jobs:
            cfg = compose("train", overrides=["experiment=cyclegan_bci", *job])
            model = OmegaConf.to_container(cfg.model, resolve=True)
            config.preflight({"model": model})
            keys = ("label_smoothing", "lr_discriminator", "n_epochs")
            seen.add((cfg.data.batch_size, model["discriminator"]["spectral_norm"], *(model[key] for key in keys)))
    assert len(seen) == 32


@pytest.mark.slow
def test_wandb_groups_the_jobs_of_a_sweep(cli, tmp_path):
    small = ["debug=fast", "callbacks.panels=null", "stages=[fit]"]
    assert cli("-m", "experiment=smoke/cyclegan_bci", "logger=wandb", "seed=1,2", *small).status == 0
    (folder,) = (tmp_path / "outputs" / "smoke" / "cyclegan_bci").iterdir()
    for job in ("0", "1"):
        group = OmegaConf.load(folder / job / "config.yaml").logger.wandb.group
        assert group == f"smoke/cyclegan_bci/{folder.name}"
    assert cli("experiment=smoke/cyclegan_bci", "logger=wandb", "hydra.run.dir=single", *small).status == 0
    assert OmegaConf.load(tmp_path / "single" / "config.yaml").logger.wandb.group == "smoke/cyclegan_bci"


@pytest.mark.slow
@pytest.mark.skipif(missing_plugin("optuna"), reason="its plugin is not installed")
def test_a_lagging_trial_is_pruned_and_its_row_says_so(cli, tmp_path):
    small = ["callbacks.panels=null", "model.n_epochs=2", "model.n_epochs_decay=0", "hydra.sweeper.n_trials=6"]
    early = ["callbacks.pruning.n_startup_trials=1", "callbacks.pruning.n_warmup_epochs=0"]
    done = cli("experiment=smoke/cyclegan_bci", "hparams_search=cyclegan_optuna", *small, *early)
    assert done.status == 0, done.err
    (folder,) = (tmp_path / "outputs" / "smoke" / "cyclegan_bci").iterdir()
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        assert row["status"] == ("pruned" if (folder / row["job"] / "pruned.txt").exists() else "finished")
        assert float(row["val/he/ssim"]) > 0
    assert {row["status"] for row in rows} == {"finished", "pruned"}
    assert "callbacks.pruning" not in (folder / "best.txt").read_text()


@pytest.mark.skipif(missing_plugin("optuna"), reason="its plugin is not installed")
def test_a_study_goes_on_where_it_stopped(cli, tmp_path):
    run = ["experiment=smoke/pipeline_endonuke", "hparams_search=pipeline_optuna", "data.val_ids=[1-3]"]
    small = ["model.use.segmenters=[classical]", "hydra.sweeper.n_trials=2"]
    for _ in range(2):
        assert cli(*run, *small).status == 0
    import optuna

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/outputs/optuna.db")
    assert study.study_name == "smoke/pipeline_endonuke/pipeline_optuna"
    assert study.n_trials == 4
    first, second = sorted((tmp_path / "outputs" / "smoke" / "pipeline_endonuke").glob("*/best.txt"))
    assert "the highest of 2 trials of study smoke/pipeline_endonuke/pipeline_optuna: trial " in first.read_text()
    comment, command = second.read_text().splitlines()
    assert "the highest of 4 trials of study smoke/pipeline_endonuke/pipeline_optuna: trial " in comment
    assert "data.val_ids=[1-3]" in command  # what is chosen on tiles is not tested on them
    assert not list(tmp_path.rglob("test.csv"))
