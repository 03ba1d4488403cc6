"""The pipeline in the hands of a Trainer: what fits together, what comes out, and in which order."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader

from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.segmenters import Classical, Learned
from ihc2he.models.pipeline.translators import Identity, Macenko, Recolour, Reinhard, Rendered
from ihc2he.nuclei.classical import detect_nuclei

CLASSES = ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]
RECOLOUR = {"h_gain": 1.7, "dab_gain": 0.2, "eosin_level": 0.22, "eosin_gain": 1.0}
TRANSLATORS = {"none": Identity(), "recolour": Recolour(**RECOLOUR), "rendered": Rendered()}
SEGMENTERS = {"classical": Classical()}


def pipeline(translators=("none",), segmenters=("classical",), more=(), **changes):
    use = {"translators": list(translators), "segmenters": list(segmenters)}
    own = {"workers": 0, "resamples": 20, "radii_um": [3]} | changes
    return Pipeline(TRANSLATORS, SEGMENTERS | dict(more), use, **own)


def tissue(height, width, step=24, radius=7):
    """Return a light tile with dark discs on a lattice."""
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), (225, 215, 235), np.uint8)
    for y in range(step // 2, height, step):
        for x in range(step // 2, width, step):
            image[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = (90, 70, 140)
    return image


def annotated(name, image, mpp=0.5, **more):
    points_n3 = np.column_stack([detect_nuclei(image, mpp), np.zeros(len(detect_nuclei(image, mpp)), np.int64)])
    return {
        "name": name, "group": "", "image": image, "mpp": mpp, "points": points_n3, "readers": {"a": points_n3},
    } | more  # fmt: skip


def unlabelled(name, image, mpp=0.5, error=None):
    return {"name": name, "image": image, "mpp": mpp, "path": f"{name}.png", "error": error}


class Data(LightningDataModule):
    def __init__(self, tiles, batch_size=2, classes=("stroma", "epithelium")):
        super().__init__()
        self.tiles, self.batch_size = tiles, batch_size
        self.info = DataInfo(mpp=None, classes=list(classes))

    def loader(self):
        def collate(items):
            return {key: [item[key] for item in items] for key in items[0]}

        return DataLoader(self.tiles, batch_size=self.batch_size, collate_fn=collate)

    test_dataloader = val_dataloader = predict_dataloader = loader


class Kept(Callback):
    """What the steps return."""

    def __init__(self):
        self.scored, self.rows, self.predictions = [], [], []

    def on_test_batch_end(self, trainer, module, outputs, *args):
        self.scored += outputs["scored"]
        self.rows += outputs["rows"]

    def on_predict_batch_end(self, trainer, module, outputs, *args):
        self.predictions.append(outputs)


@pytest.fixture
def run(trainer):
    """Return `run(stage, module, tiles)`, which gives what the steps returned and the logged values."""

    def go(stage, module, tiles, batch_size=2, classes=("stroma", "epithelium"), **changes):
        kept = Kept()
        runner = trainer(callbacks=[kept], **changes)
        options = {"return_predictions": False} if stage == "predict" else {"verbose": False}
        getattr(runner, stage)(module, datamodule=Data(tiles, batch_size, classes), **options)
        return kept, {key: float(value) for key, value in runner.callback_metrics.items()}

    return go


MIXED = [  # of three sizes and two pixel sizes
    ("a", (64, 64), 0.5), ("b", (37, 51), 0.5), ("c", (64, 64), 0.25), ("d", (64, 64), 0.5), ("e", (128, 96), 0.25),
]  # fmt: skip


# ------------------------------------------------------------------ what fits together


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ({"translators": ["recolor"]}, r"use\.translators: there is no 'recolor'. Did you mean 'recolour'"),
        ({"segmenters": []}, r"use\.segmenters=\[\]: expected one or more of classical"),
        ({"radii_um": [3, 0]}, r"radii_um=\[3, 0\].* above 0"),
        ({"workers": -1}, "workers=-1"),
        ({"fuse": ["none", "recolor"]}, r"model\.fuse: there is no 'recolor'. Did you mean 'recolour'"),
        ({"fuse": ["none"]}, r"model\.fuse=\['none'\]: expected two or more translators that start from the IHC"),
        ({"fuse": ["none", "rendered"]}, r"model\.fuse=\['none', 'rendered'\]: expected two or more"),
        ({"against": ["none+clasical"]}, r"against: 'none\+clasical' .*Did you mean 'none\+classical'"),
    ],
)
def test_what_cannot_be_is_said_at_once(use, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(**use)


def test_a_prediction_takes_one_method(run):
    with pytest.raises(ConfigError, match=r"found none\+classical, recolour\+classical. Pass model\.use\.translators"):
        run("predict", pipeline(["none", "recolour"]), [unlabelled("a", tissue(48, 48))])


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_every_type_needs_a_class(run, segmenter_bundle, stage):
    segmenter = Learned(segmenter_bundle(classes=["round", "long"]))
    module = pipeline(segmenters=["hovernet"], more={"hovernet": segmenter}, class_map={"round": "stroma"})
    tiles = [(annotated if stage == "test" else unlabelled)("a", tissue(48, 48))]
    with pytest.raises(ConfigError, match="no class for 'long', a type of the segmenter 'hovernet'"):
        run(stage, module, tiles)


def test_the_ceiling_needs_the_true_stain(run):
    with pytest.raises(ConfigError, match="a: has no aligned H&E, which the translator 'rendered' needs"):
        run("test", pipeline(["rendered"]), [annotated("a", tissue(48, 48))])


def test_the_ceiling_sees_the_true_stain_and_the_others_the_ihc(run):
    ihc, he = tissue(48, 48), tissue(48, 48, step=16, radius=4)
    kept, _ = run("test", pipeline(["none", "rendered"]), [annotated("a", ihc, he=he)])
    (tile,) = kept.scored
    assert np.array_equal(tile.results["none+classical"].he, ihc)
    assert np.array_equal(tile.results["rendered+classical"].he, he)
    assert len(tile.results["rendered+classical"].nuclei.centres_n2) == 9


# ------------------------------------------------------------------ tests


@pytest.mark.parametrize("workers", [0, 1])
def test_tiles_of_any_size_and_pixel_size_keep_their_own_grid(run, workers):
    tiles = [annotated(name, tissue(*size), mpp) for name, size, mpp in MIXED]
    kept, values = run("test", pipeline(workers=workers, block=64), tiles, batch_size=5)
    assert sorted(tile.name for tile in kept.scored) == list("abcde")
    by_name = {tile.name: tile.results["none+classical"] for tile in kept.scored}
    for tile in tiles:
        nuclei = by_name[tile["name"]].nuclei
        assert nuclei.inst_hw.shape == tile["image"].shape[:2]
        assert by_name[tile["name"]].he.shape == tile["image"].shape
        assert len(nuclei.centres_n2) == nuclei.inst_hw.max() > 0
    assert values["test/f1/none+classical"] > 0.95
    assert values["test/count_mae/none+classical"] <= 0.2
    assert {row["name"] for row in kept.rows} == set("abcde")


def test_batches_and_processes_change_nothing(run):
    tiles = [annotated(name, tissue(*size), mpp) for name, size, mpp in MIXED]
    first, *others = (
        run("test", pipeline(["none", "recolour"], workers=workers), tiles, batch_size)[1]
        for workers, batch_size in ((0, 1), (0, 4), (1, 2))
    )
    assert first.keys() == others[0].keys() == others[1].keys()
    for other in others:
        assert other == pytest.approx(first, nan_ok=True)


def test_every_logged_metric_has_a_card_and_the_run_ends_with_a_table(run, caplog):
    module = pipeline(["none", "recolour"])
    with caplog.at_level(logging.INFO, "ihc2he"):
        _, values = run("test", module, [annotated("a", tissue(48, 72))])
    assert {key.removeprefix("test/").rpartition("/")[0] for key in values} <= set(module.cards)
    assert {"comparison.csv", "differences.csv", "radius.csv", "agreement.csv"} == set(module.tables)
    assert "| method | F1 | precision | recall | AP |" in caplog.text
    assert "| recolour+classical | " in caplog.text


def test_validation_is_a_test_under_its_own_name(run):
    tiles = [annotated("a", tissue(48, 72))]
    _, tested = run("test", pipeline(), tiles)
    _, validated = run("validate", pipeline(), tiles)
    assert {key.replace("val/", "test/"): value for key, value in validated.items()} == pytest.approx(
        tested, nan_ok=True
    )


def test_points_without_classes_are_judged_whatever_the_map(run, segmenter_bundle):
    segmenter = Learned(segmenter_bundle(classes=["round", "long"]))
    module = pipeline(segmenters=["hovernet"], more={"hovernet": segmenter}, class_map={"neoplastic": "epithelium"})
    _, values = run("test", module, [annotated("a", tissue(48, 48))], classes=())
    assert "test/f1/none+hovernet" in values
    assert "test/f1_macro/none+hovernet" not in values


def test_views_are_averaged_and_agree(run, segmenter_bundle):
    segmenter = Learned(segmenter_bundle(classes=[]))
    image = tissue(40, 56)
    plain, turned = (
        run("test", pipeline(segmenters=["s"], more={"s": segmenter}, tta=tta), [annotated("a", image)])[0].scored[0]
        for tta in (False, True)
    )
    assert plain.results["none+s"].nuclei.agreement_n is None
    agreement_n = turned.results["none+s"].nuclei.agreement_n
    assert len(agreement_n) == len(turned.results["none+s"].nuclei.centres_n2) > 0
    assert (agreement_n >= 0).all()
    assert (agreement_n <= 1).all()


def test_fused_translators_are_a_method_beside_the_others_with_an_agreement(run, segmenter_bundle):
    segmenter = Learned(segmenter_bundle(classes=[]))
    module = pipeline(segmenters=["s"], more={"s": segmenter}, fuse=["none", "recolour"], against=["none&recolour+s"])
    assert module.methods == ["none+s", "none&recolour+s"]
    kept, values = run("test", module, [annotated("a", tissue(40, 56))])
    assert {"test/f1/none+s", "test/f1/none&recolour+s"} <= values.keys()
    results = kept.scored[0].results
    assert results["none+s"].nuclei.agreement_n is None
    agreement_n = results["none&recolour+s"].nuclei.agreement_n
    assert len(agreement_n) == len(results["none&recolour+s"].nuclei.centres_n2) > 0
    assert ((agreement_n >= 0) & (agreement_n <= 1)).all()
    recolour, _ = run("test", pipeline(["recolour"], ["s"], more={"s": segmenter}), [annotated("a", tissue(40, 56))])
    assert np.array_equal(results["none&recolour+s"].he, recolour.scored[0].results["recolour+s"].he)


def test_reduced_precision_does_not_reach_baselines(run):
    tiles = [annotated("a", tissue(64, 64))]
    full, mixed = (
        run("test", pipeline(["none", "recolour"]), tiles, precision=precision)[0].scored[0].results
        for precision in ("32-true", "bf16-mixed")
    )
    for method, result in full.items():
        assert np.array_equal(result.he, mixed[method].he)
        assert np.array_equal(result.nuclei.inst_hw, mixed[method].nuclei.inst_hw)


# ------------------------------------------------------------------ predictions


@pytest.mark.parametrize("workers", [0, 1])
def test_predictions_come_once_each_with_what_a_writer_needs(run, workers):
    tiles = [unlabelled(name, tissue(*size), mpp) for name, size, mpp in MIXED]
    kept, _ = run("predict", pipeline(["recolour"], workers=workers), tiles)
    found = {prediction.name: prediction for batch in kept.predictions for prediction in batch}
    assert sorted(found) == list("abcde")
    assert sum(map(len, kept.predictions)) == 5
    for tile in tiles:
        prediction = found[tile["name"]]
        assert (prediction.path, prediction.error, prediction.mpp) == (tile["path"], None, tile["mpp"])
        assert prediction.he.shape == tile["image"].shape
        assert prediction.he.dtype == np.uint8
        assert not np.array_equal(prediction.he, tile["image"])
        assert prediction.nuclei.inst_hw.shape == tile["image"].shape[:2]


def test_with_fused_translators_a_prediction_uses_only_them(run):
    tile = unlabelled("a", tissue(48, 48))
    module = pipeline(["none"], fuse=["none", "recolour"])
    kept, _ = run("predict", module, [tile])
    alone, _ = run("predict", pipeline(["recolour"]), [tile])
    assert module.methods == ["none&recolour+classical"]
    assert np.array_equal(kept.predictions[0][0].he, alone.predictions[0][0].he)
    assert len(kept.predictions[0][0].nuclei.types_n) > 0


def test_without_translation_there_is_no_virtual_stain(run):
    kept, _ = run("predict", pipeline(), [unlabelled("a", tissue(48, 48))])
    assert kept.predictions[0][0].he is None


def test_types_are_named_as_classes_or_by_themselves(run, segmenter_bundle):
    segmenter = Learned(segmenter_bundle(classes=["round", "long"]))
    for class_map, classes in ((None, ["round", "long"]), ({"round": "kept", "long": None}, ["kept"])):
        module = pipeline(segmenters=["s"], more={"s": segmenter}, class_map=class_map)
        prediction = run("predict", module, [unlabelled("a", tissue(64, 64))])[0].predictions[0][0]
        assert prediction.classes == classes
        assert len(prediction.nuclei.types_n)
        assert set(prediction.nuclei.types_n) <= set(range(len(classes) + 1))


def test_files_that_cannot_be_read_pass_on_their_error_and_hold_nothing_back(run):
    good = unlabelled("good", tissue(48, 48))
    broken = [unlabelled(f"bad{i}", None, error=f"bad{i}.png: cut off") for i in range(2)]
    for tiles in ([good, *broken], [*broken, good], broken):  # also where the last batch holds nothing else
        kept, _ = run("predict", pipeline(workers=1), tiles, batch_size=1)
        found = {prediction.name: prediction for batch in kept.predictions for prediction in batch}
        assert sorted(found) == sorted(tile["name"] for tile in tiles)
        assert found["bad0"].error == "bad0.png: cut off"
        assert found["bad0"].image is found["bad0"].nuclei is None


def test_nothing_left_to_predict_is_no_error(run):
    assert run("predict", pipeline(), [])[0].predictions == []


@pytest.mark.parametrize(("seconds", "waiting"), [(0.05, 3), (0.0, 0)])
def test_what_waits_is_bounded_however_slow_the_workers_and_what_is_done_is_let_go(run, monkeypatch, seconds, waiting):
    class Workers(ThreadPoolExecutor):
        def submit(self, work, *given):
            if not seconds:
                (done := Future()).set_result(work(*given))
                return done
            return super().submit(lambda: (time.sleep(seconds), work(*given))[1])

    each = 32 * 32 * 4 + 3 * 32 * 32 * 3  # bytes of a map of 32 px and of its images
    module = pipeline(block=1, workers=0)  # blocks of the least size, twice the overlap: 128 px
    module.handover.pool, module.handover.most = Workers(1), 3 * each
    seen = []
    wait = module.handover.wait

    def counted():
        wait()
        seen.append(module.handover.nbytes)

    monkeypatch.setattr(module.handover, "wait", counted)
    run("predict", module, [unlabelled(str(i), tissue(32, 32)) for i in range(12)], batch_size=1)
    assert len(seen) == 2 * 12  # before a block, and before what is ready is given back
    assert max(seen) == waiting * each


@pytest.mark.parametrize("kind", ["reinhard", "macenko"])
def test_a_large_image_in_blocks_has_the_colours_of_the_whole(run, kind, caplog):
    pytest.importorskip("torchstain")
    rng = np.random.default_rng(0)
    amounts = rng.gamma(1.0, 0.5, (40, 64, 2)).repeat(8, 0).repeat(8, 1)
    amounts[:, 256:] *= 0.3  # two tones
    od = amounts @ np.array([[0.65, 0.7, 0.29], [0.27, 0.57, 0.78]]) + 0.2
    image = (240 * np.exp(-od)).clip(0, 255).astype(np.uint8)
    translator = Macenko() if kind == "macenko" else Reinhard(None, [69.0, 19.0, -14.0], [18.0, 8.0, 8.0])
    module, whole = (
        Pipeline({"t": translator}, SEGMENTERS, {"translators": ["t"], "segmenters": ["classical"]}, workers=0, block=b)
        for b in (128, 4096)
    )
    glass = np.full((300, 300, 3), 250, np.uint8)
    tiles = [unlabelled("a", image), unlabelled("b", glass)]
    (blocks,), (expected,) = (run("predict", one, tiles)[0].predictions for one in (module, whole))
    he = np.concatenate([strip.he for strip in blocks if strip.name == "a"])
    assert np.abs(he.astype(int) - expected[0].he).max() <= 1
    assert f"The translator {kind} left 1 of 2 images unchanged" in caplog.text  # images, not blocks


def test_a_network_takes_tiles_of_odd_sizes(run, segmenter_bundle):
    segmenter = Learned(segmenter_bundle(classes=[]))
    kept, _ = run("test", pipeline(segmenters=["s"], more={"s": segmenter}), [annotated("a", tissue(37, 51))])
    assert kept.scored[0].results["none+s"].nuclei.inst_hw.shape == (37, 51)
