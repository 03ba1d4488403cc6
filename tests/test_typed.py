"""What is typed for a text key arrives as it was typed; what cannot be read names the quotes that it needs."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ihc2he import typed
from ihc2he.config import register

ODD = ("2025_01_02", "1_000", "1e3", "true", "False", "nan", "007", "0x10", "2025-01-02", "1.50")


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize(
    "key", ["out", "ckpt_path", "paths.outputs", "hydra.run.dir", "optimized_metric", "experiment"]
)
def test_a_text_key_of_the_root_keeps_what_was_typed(key, text):
    (quoted,) = typed.as_typed([f"{key}={text}"])
    assert OverridesParser.create().parse_override(quoted).value() == text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("out=null", "out=null"),  # refused, like a mapping, since nobody means a folder of that name
        ("out={a: 1}", "out={a: 1}"),
        ("ckpt_path=null", "ckpt_path=null"),
        ("experiment=null", "experiment=null"),
        ("seed=1_000", "seed=1_000"),
        ("trainer.max_epochs=1e1", "trainer.max_epochs=1e1"),
        ("tags=[1e3,a,007]", "tags=['1e3','a','007']"),
        ("out=1_000,b", "out='1_000','b'"),
        ("out=choice(1_0, b)", "out=choice('1_0','b')"),
        ("ckpt_path=null,1_0", "ckpt_path=null,'1_0'"),
        ("seed=1_000,2", "seed=1_000,2"),
        ("seed=range(1,3)", "seed=range(1,3)"),
        ("out=[a]", "out='[a]'"),
        ("out='a b'", "out='a b'"),
        ("++out=1_0", "++out='1_0'"),
        ("out=a(b", "out=a(b"),
        ("-m", "-m"),
        ("~logger", "~logger"),
    ],
)
def test_quotes_are_set_where_a_text_needs_them(given, expected):
    assert typed.as_typed([given]) == [expected]


@pytest.mark.parametrize(
    ("experiment", "given", "expected"),
    [
        ("predict_tiles", "data.path=2025_01,2025_02", "data.path='2025_01','2025_02'"),
        ("predict_tiles", "data.path=choice(1e3,a)", "data.path=choice('1e3','a')"),
        ("predict_tiles", "data.mpp=5e-1,0.25", "data.mpp=5e-1,0.25"),
        ("predict_tiles", "data.path=a,b", "data.path=a,b"),
        ("predict_tiles", "data.pathh=1_0,2", "data.pathh=1_0,2"),
        ("nothing", "data.path=1_0,2", "data.path=1_0,2"),
        ("cyclegan_unpaired,cyclegan_bci", "data.root=1_0,null", "data.root='1_0',null"),
        ("cyclegan_bci", "model.optimizer.lr=1e-3,1e-4", "model.optimizer.lr=1e-3,1e-4"),
        ("cyclegan_bci", "callbacks.last.dirpath=1_0,2", "callbacks.last.dirpath='1_0','2'"),
    ],
)
def test_each_value_of_a_sweep_keeps_what_was_typed(experiment, given, expected):
    register()
    assert typed.as_typed(["-m", f"experiment={experiment}", given])[-1] == expected


def test_so_does_one_of_a_users_own_folder(tmp_path):
    register()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("_target_: ihc2he.data.tiles.TilesDataModule\npath: null\n")
    given = [f"--config-dir={tmp_path}", "experiment=predict_tiles", "data=mine", "data.path=1_0,2"]
    assert typed.as_typed(given)[-1] == "data.path='1_0','2'"


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("data.root", "2025_01_02", "2025_01_02"),
        ("data.root", "1e3", "1e3"),
        ("data.seed", "1_000", 1000),
        ("data.samples_per_epoch", "null", None),
        ("data.flip", "true", True),
        ("model.metrics", "[1e3,psnr]", ["1e3", "psnr"]),
        ("model.gradient_clip_val", "1e3", 1000.0),
        ("model.generator.width", "1_0", 10),
        ("trainer.precision", "32", 32),  # which may be a text or a number
        ("callbacks.last.dirpath", "1_0", "1_0"),
    ],
)
def test_a_text_argument_of_a_node_keeps_what_was_typed(key, text, expected):
    value = OverridesParser.create().parse_override(f"{key}={text}").value()
    cfg = {
        "data": {"_target_": "ihc2he.data.bci.BCIDataModule"},
        "model": {
            "_target_": "ihc2he.models.translation.cyclegan.module.CycleGAN",
            "generator": {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator"},
        },
        "trainer": {"_target_": "lightning.pytorch.Trainer"},
        "callbacks": {"last": {"_target_": "ihc2he.callbacks.checkpoint.LastCheckpoint"}},
    }
    *parents, name = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    node[name] = value
    typed.restore_texts(cfg, [f"{key}={text}"])
    assert node[name] == expected
    assert type(node[name]) is type(expected)


@pytest.mark.parametrize("way", [["--config-dir", "x"], ["--config-dir=x"], ["-cd", "x"], ["-cd=x"], ["--config-d=x"]])
def test_a_folder_of_configurations_is_found_however_it_is_written(way):
    folders, rest = typed.parse_options([*way, "seed=1"])
    assert ([str(folder) for folder in folders], rest) == (["x"], ["seed=1"])


def test_a_predictions_folder_is_named_as_typed(cli):
    done = cli("experiment=smoke/cyclegan_bci", "out=2025_01_02", "--cfg", "job")
    assert "out: '2025_01_02'" in done.out or "out: 2025_01_02" in done.out
    refused = cli("experiment=cyclegan_bci", "data.root=2025_01_02")
    assert "2025_01_02" in refused.err
    assert "20250102" not in refused.err


@pytest.mark.parametrize("value", ["scan(1)", "a[1", "it's", "~/tiles", "a=b.ckpt", "a{b"])
def test_a_value_that_cannot_be_read_names_its_quotes(cli, value):
    done = cli("experiment=cyclegan_bci", f"out={value}")
    (line,) = [line for line in done.err.splitlines() if line.startswith("ihc2he: ")]
    assert done.status == 2
    (argument,) = shlex.split(line.partition("Quote a value with special characters: ")[2])
    assert OverridesParser.create().parse_override(argument).value() == value


def test_a_key_that_the_trainer_knows_and_the_configuration_does_not_names_the_plus(cli):
    done = cli("experiment=cyclegan_bci", "trainer.max_steps=5")
    assert "There is no 'trainer.max_steps' in the configuration yet; to add it, write +trainer.max_steps=" in done.err
    assert "Did you mean 'pool_size'?" in cli("experiment=cyclegan_bci", "model.pol_size=3").err


def test_a_file_that_is_hidden_is_named_however_the_folder_is_given(cli, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "cyclegan.yaml").write_text("n: 1\n")
    done = cli("--config-dir=mine", "experiment=cyclegan_bci", "--cfg", "job")
    assert "cyclegan.yaml is not used: the package has a file of the same name." in done.err
    assert "Choose an experiment" in cli("--config-dir=mine").out
