"""The studies: trainings by arm, data and seed, and one comparison of all."""

import csv
from itertools import product

import pytest

from ihc2he.simulate.endonuke import write_endonuke
from ihc2he.simulate.nuclei import write_nuclei


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def tiles(tmp_path):
    """The user's folders below `paths.data`: two of annotated H&E, one of unlabelled IHC."""
    for seed, name in enumerate(("he_nuclei", "consep")):
        write_nuclei(tmp_path / "data" / name, tiles=15, size=96, seed=seed)
    write_endonuke(tmp_path / "slides", tiles=3, size=100)
    (tmp_path / "slides" / "dataset" / "images").rename(tmp_path / "data" / "ihc_unlabelled")


@pytest.mark.slow
def test_the_study_from_its_trainings_to_its_table(cli, tmp_path, tiles):
    assert cli("experiment=smoke/study_painting").status == 0
    home = tmp_path / "outputs" / "smoke" / "study_painting"
    names = [f"{arm}-he_consep-{seed}" for arm, seed in product(("nuclei", "painted_like"), (0, 1))]
    assert {path.parent.parent.name for path in home.glob("*/bundles/segmenter")} == set(names)
    assert (home / "painted_like-he_consep-0" / "painted.png").is_file()
    assert not (home / "nuclei-he_consep-0" / "painted.png").exists()
    jobs = read(home / "sweep.csv")
    assert {(job["data/augmentation"], job["seed"]) for job in jobs} == set(product(("nuclei", "painted_like"), "01"))

    done = cli("experiment=smoke/study_painting_endonuke")
    assert done.status == 0, done.err
    (sweep,) = (tmp_path / "outputs" / "smoke" / "smoke" / "study_painting_endonuke").iterdir()
    methods = {f"{translator}+{arm}" for translator in ("none", "recolour") for arm in ("mild_consep", "like_consep")}
    for job in ("0", "1"):
        chosen = read(sweep / job / "chosen.csv")
        assert {row["method"] for row in chosen} == methods
        assert {row["setting"] for row in chosen} == {"least_heat", "threshold"}
        against = {(row["method"], row["against"]) for row in read(sweep / job / "differences.csv")}
        assert ("none+like_consep", "none+mild_consep") in against
    means = {row["metric"]: row for row in read(sweep / "mean_sd.csv")}
    assert {f"{metric}/{method}" for metric, method in product(("f1", "recall_pale"), methods)} <= set(means)
    assert {means[f"recall/{method}"]["n"] for method in methods} == {"2"}  # seeds


def test_the_comparison_reads_the_bundles_of_the_trainings():
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from ihc2he import config

    config.register()
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        trained, tested = (
            compose("train", overrides=[f"experiment={name}", "seed=2"], return_hydra_config=True)
            for name in ("study_painting", "study_painting_endonuke")
        )
    parameters = [f"{key}={value}" for key, value in trained.hydra.sweeper.params.items()]
    swept = {one.key_or_group: one.value().list for one in OverridesParser.create().parse_overrides(parameters)}
    folders = {
        f"{trained.hydra.sweep.dir}/{arm}-{data}-2/bundles/segmenter"
        for arm, data in product(swept["data/augmentation"], swept["study/painting"])
    }
    segmenters = OmegaConf.to_container(tested.model.segmenters)
    used = {name: tested.model.segmenters[name].weights for name in tested.model.use.segmenters}
    assert set(used.values()) == folders
    assert len(used) == 8
    assert set(tested.model.choose) == set(used) < set(segmenters)


def test_the_study_of_translation_reads_what_its_trainings_write():
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from ihc2he import config

    config.register()
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        network, adapted, tested = (
            compose("train", overrides=[f"experiment=study_{name}", "seed=2"], return_hydra_config=True)
            for name in ("network", "adapt", "endonuke")
        )
    segmenters = tested.model.segmenters
    for name, trained in (("network", network), ("adapted", adapted)):
        folder = f"{trained.hydra.sweep.dir}/{trained.hydra.sweep.subdir}"
        assert segmenters[name].weights == f"{folder}/bundles/segmenter"
        assert trained.hydra.sweeper.params.seed == "0,1,2"
    assert adapted.model.init == segmenters.painted_consep.weights  # of the same seed
    assert network.hydra.sweeper.params["data/augmentation"] == "nuclei"
    home = "outputs/study_endonuke"
    assert network.model.paint.generator == f"{home}/cyclegan/bundles/g_he2ihc"
    used = OmegaConf.to_container(tested.model.use)
    learned = [name for name in used["translators"] if name in ("cyclegan", "content", "cut")]
    assert [tested.model.translators[name].weights for name in learned] == [
        f"{home}/{name}/bundles/g_ihc2he" for name in ("cyclegan", "content", "cut")
    ]
    assert set(used["segmenters"]) <= set(tested.model.choose) <= set(segmenters)


@pytest.mark.slow
def test_the_study_of_gans_from_its_generators_to_its_table(cli, tmp_path):
    tissue = ["data.simulate={tiles:48,size:32,seed:0,cases:[3,3,3,3]}", "data.val_fraction=0.3"]
    tiny = ["data.num_workers=0", "trainer=cpu", "seed=0", *tissue]
    gan = ["model.size=32", "data.batch_size=4", "model.n_epochs=1", "trainer.check_val_every_n_epoch=1"]
    small = [
        "model/gan=dcgan_small",
        "model.generator.width=4",
        "model.discriminator.width=4",
        "model.features.width=4",
    ]
    assert cli("experiment=study_gans", *tiny, *gan, *small).status == 0
    assert (
        cli("experiment=study_gan_tiles", "study/gan=dcgan_small", "seed=0", "data.count=48", "trainer=cpu").status == 0
    )
    classifier = ["model.encoder.weights=null", "data.size=32", "data.batch_size=8", "data.samples_per_epoch=8"]
    classifier += ["trainer.max_epochs=1", "callbacks.phases=null", *tiny]
    for arms in (["study/gan=none", "study/arm=real,augmented"], ["study/gan=dcgan_small", "study/arm=synthetic_only"]):
        done = cli("experiment=study_her2", *classifier, *arms)
        assert done.status == 0, done.err
    home = tmp_path / "outputs" / "study_her2"
    assert (home / "tiles" / "dcgan_small-0" / "trained_on.csv").is_file()
    rows = {row["study/arm"]: row for row in read(home / "classifiers" / "study.csv") if row["metric"] == "kappa"}
    assert {arm: row["pairs"] for arm, row in rows.items()} == {"real": "1", "augmented": "0", "synthetic_only": "1"}
    assert (home / "classifiers" / "study.png").is_file()


def test_the_study_of_gans_reads_what_its_generators_write():
    from hydra import compose, initialize_config_dir

    from ihc2he import config

    config.register()
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        gans, sampling, study = (
            compose("train", overrides=[f"experiment={name}"], return_hydra_config=True)
            for name in ("study_gans", "study_gan_tiles", "study_her2")
        )
    kinds = gans.hydra.sweeper.params["model/gan"]
    assert sampling.hydra.sweeper.params["study/gan"] == study.hydra.sweeper.params["study/gan"] == kinds
    for key in ("split", "split_seed", "val_fraction", "test_fraction", "root", "size"):
        assert gans.data[key] == study.data[key], key
    assert len(study.hydra.sweeper.params.seed.split(",")) == 3 * len(gans.hydra.sweeper.params.seed.split(","))
