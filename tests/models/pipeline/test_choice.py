"""Settings of decoders that a validation chooses for the test of the same run."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.segmenters import Classical, Learned
from ihc2he.models.pipeline.translators import Identity, Recolour
from ihc2he.nuclei.decoders.hover import HoverDecoder

THRESHOLDS = [0.4, 0.45, 0.5, 0.55]
RECOLOUR = {"h_gain": 1.7, "dab_gain": 0.2, "eosin_level": 0.22, "eosin_gain": 1.0}


def pipeline(bundle, translators=("none",), **changes):
    segmenters = {"s": Learned(bundle), "classical": Classical()}
    own = {"workers": 0, "resamples": 20, "radii_um": [3], "choose": {"s": {"threshold": THRESHOLDS}}} | changes
    known = {"none": Identity(), "recolour": Recolour(**RECOLOUR)}
    return Pipeline(known, segmenters, {"translators": list(translators), "segmenters": ["s"]}, **own)


@pytest.fixture(autouse=True)
def darkness(monkeypatch):
    """Let every network say that a pixel is as likely a nucleus as it is dark."""

    def forward(self, x_bchw, member=0):
        dark_b1hw = 1 - x_bchw.mean(1, keepdim=True)
        return torch.cat([dark_b1hw, torch.zeros_like(x_bchw).repeat(1, 3, 1, 1)[:, :8]], 1)

    monkeypatch.setattr(Learned, "forward", forward)


def tile(name, threshold):
    """Return a tile of discs of which the darkest, from a threshold on, have keypoints."""
    image = np.full((64, 64, 3), 255, np.uint8)
    places = [(12, 12, 0.42), (44, 12, 0.47), (12, 44, 0.52), (44, 44, 0.57)]
    y_hw, x_hw = np.mgrid[:64, :64]
    for x, y, dark in places:
        image[np.hypot(x_hw - x, y_hw - y) <= 8] = round(255 * (1 - dark))
    points_n3 = np.array([(x, y, 0) for x, y, dark in places if dark >= threshold])
    return {
        "name": name, "group": "", "image": image, "mpp": 0.25, "points": points_n3, "readers": {"a": points_n3},
    }  # fmt: skip


class Data(LightningDataModule):
    def __init__(self, validated, tested):
        super().__init__()
        self.validated, self.tested = validated, tested
        self.info = DataInfo(mpp=None, classes=[])

    @staticmethod
    def loader(tiles):
        return DataLoader(tiles, batch_size=2, collate_fn=lambda items: {k: [i[k] for i in items] for k in items[0]})

    def val_dataloader(self):
        return self.loader(self.validated)

    def test_dataloader(self):
        return self.loader(self.tested)


def stage(trainer, name, module, data):
    runner = trainer()
    getattr(runner, name)(module, datamodule=data, verbose=False)
    return {key: float(value) for key, value in runner.callback_metrics.items()}


@pytest.mark.parametrize("threshold", [0.45, 0.55])
def test_the_validation_chooses_what_fits_its_tiles_and_the_test_uses_it(segmenter_bundle, trainer, threshold):
    bundle = segmenter_bundle()
    data = Data([tile(str(i), threshold) for i in range(3)], [tile("7", threshold)])
    module = pipeline(bundle, translators=["none", "recolour"])
    validated = stage(trainer, "validate", module, data)
    own = {value: validated[f"val/f1/none+s@threshold={value}"] for value in THRESHOLDS}
    assert own[threshold] == 1 > max(f1 for value, f1 in own.items() if value != threshold)
    rows = {row["method"]: row for row in module.tables["chosen.csv"]}
    assert rows["none+s"] == {"method": "none+s", "setting": "threshold", "value": threshold, "val_f1": 1.0}
    recoloured = {value: validated[f"val/f1/recolour+s@threshold={value}"] for value in THRESHOLDS}
    assert rows["recolour+s"]["val_f1"] == max(recoloured.values()) == recoloured[rows["recolour+s"]["value"]]
    before = pipeline(bundle).fingerprint
    tested = stage(trainer, "test", module, data)
    assert tested["test/f1/none+s"] == 1
    assert {key.rpartition("/")[2] for key in tested} == {"none+s", "recolour+s"}
    assert [row["method"] for row in module.tables["chosen.csv"]] == ["none+s", "recolour+s"]
    assert module.fingerprint["chosen"][0]["value"] == threshold
    assert "chosen" not in before


def test_the_networks_are_shared_and_all_combinations_are_tried(segmenter_bundle):
    choose = {"s": {"threshold": [0.3, 0.4], "keep_unmarked": [True, False]}}
    module = pipeline(segmenter_bundle(), choose=choose)
    variants = module._choice.methods("validate").values()
    decoders = {segmenter.decoder for segmenter in variants}
    assert decoders == {HoverDecoder(kept, threshold) for kept in (True, False) for threshold in (0.3, 0.4)}
    assert {segmenter.networks for segmenter in variants} == {module.segmenters["s"].networks}


def test_a_test_without_a_choice_says_what_is_missing(segmenter_bundle, trainer):
    bundle = segmenter_bundle()
    data = Data([], [tile("0", 0.5)])
    with pytest.raises(ConfigError, match=r"model\.choose=\['s'\]: .* stages=\[validate,test\]"):
        stage(trainer, "test", pipeline(bundle), data)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        ({"t": {"threshold": [0.5]}}, r"model\.choose\.t: there is no such segmenter\. Known: s"),
        ({"s": {"treshold": [0.5]}}, r"decoder\.treshold: .*Did you mean 'threshold'"),
        ({"s": {"threshold": []}}, r"model\.choose\.s\.threshold=\[\]: expected values"),
        ({"s": {"threshold": 0.5}}, r"model\.choose\.s\.threshold=0\.5: expected values"),
        ({"s": {"threshold": [0.5, 2]}}, r"decoder\.threshold=2: expected above 0 and below 1"),
        ({"s": 0.5}, r"model\.choose\.s=0\.5: expected a setting"),
    ],
)
def test_choices_that_cannot_be_are_refused(segmenter_bundle, choose, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(segmenter_bundle(), choose=choose)


def test_a_segmenter_without_a_decoder_has_nothing_to_choose():
    use = {"translators": ["none"], "segmenters": ["classical"]}
    with pytest.raises(ConfigError, match=r"model\.choose\.classical: a Classical has no decoder"):
        Pipeline({"none": Identity()}, {"classical": Classical()}, use, choose={"classical": {"mpp": [1]}})


def test_both_stages_in_one_command_leave_the_choice_as_a_table(cli, tmp_path, segmenter_bundle):
    done = cli(
        "experiment=smoke/pipeline_endonuke", "hydra.run.dir=run", "stages=[validate,test]", "data.val_ids=[1-3]",
        "model.use.translators=[none,recolour]", "model.use.segmenters=[hovernet]", "model.class_map=null",
        f"model.segmenters.hovernet.weights={segmenter_bundle()}", "+model.choose.hovernet.threshold=[0.4,0.5]",
    )  # fmt: skip
    assert done.status == 0, done.err
    with (tmp_path / "run" / "chosen.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == ["none+hovernet", "recolour+hovernet"]
    assert {row["setting"] for row in rows} == {"threshold"}
    assert {float(row["value"]) for row in rows} <= {0.4, 0.5}
    with (tmp_path / "run" / "comparison.csv").open(newline="", encoding="utf-8") as stream:
        tested = list(csv.DictReader(stream))
    assert {row["method"] for row in tested} == {"none+hovernet", "recolour+hovernet"}
    assert {int(row["n"]) for row in tested} == {3}  # of six tiles, those that nothing was chosen on
