import csv
import logging

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ihc2he.callbacks.grades import GradeTable
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import load_bundle, save_bundle
from ihc2he.models.classification import attention
from ihc2he.models.classification.module import Classifier
from ihc2he.models.classification.networks import TileClassifier, mixed

CLASSES = ["0", "1+", "2+"]


class Encoder(torch.nn.Module):
    """One convolution, whose first channel is the mean brightness."""

    channels = (4,)
    weights = None

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x_bchw):
        return [self.conv(x_bchw)]

    def load_pretrained(self):
        pass


NODE = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 2, "units": [1, 1, 1, 1]}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.05}


def batch(n=6, stains=1, size=16):
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(n) % 3
    image = torch.rand((n, 3 * stains, size, size), generator=generator) * 0.2 + label.view(n, 1, 1, 1) * 0.8 - 0.9
    return {
        "image": image,
        "label": label,
        "name": [f"{i}.png" for i in range(n)],
        "case": [f"c{i % 3}" for i in range(n)],
    }


@pytest.fixture
def classifier():
    def make(**options):
        torch.manual_seed(0)
        return Classifier(**{"classes": CLASSES, "encoder": NODE, "optimizer": ADAM} | options)

    return make


class Data(LightningDataModule):
    """One batch for everything; a prediction of images of its pixel size, of a half, and of a bad and a small one."""

    def __init__(self, stains=1, classes=CLASSES):
        super().__init__()
        self.info = DataInfo(1.0, classes, size=16, channels=3 * stains, class_counts=[4, 2, 2])
        self.stains = stains

    def train_dataloader(self):
        return DataLoader([batch(stains=self.stains)], batch_size=None)

    val_dataloader = test_dataloader = train_dataloader

    def predict_dataloader(self):
        white = np.full((32, 40, 3), 255, np.uint8)
        images = [white, white, None, white[:8]]
        mpps, errors = [1.0, 0.5, 1.0, 1.0], [None, None, "no image", None]
        entry = {"name": ["a", "b", "c", "d"], "image": images, "mpp": mpps, "error": errors}
        return DataLoader([entry], batch_size=None, collate_fn=lambda item: item)


def test_a_classifier_learns_and_tests(classifier, trainer):
    module, runner = classifier(label_smoothing=0.05, class_weights=True), trainer(max_epochs=30)
    runner.fit(module, Data())
    (values,) = runner.test(module, Data(), verbose=False)
    assert values["test/accuracy"] == values["test/kappa"] == values["test/recall/2+"] == 1
    lines = {(row["metric"], row["group"]): row for row in module.tables["intervals.csv"]}
    assert lines["accuracy", ""]["low"] == 1
    assert (lines["kappa", ""]["unit"], lines["kappa", ""]["units"], lines["kappa", ""]["tiles"]) == ("case", 3, 6)
    assert set(module.figures) == {"confusion", "reliability"}
    assert all(picture.dtype == np.uint8 and picture.std() > 0 for picture in module.figures.values())


def test_every_logged_metric_has_a_card(classifier, trainer):
    module, runner = classifier(), trainer(max_epochs=1)
    runner.fit(module, Data())
    logged = [key.removeprefix("val/") for key in runner.callback_metrics if key.startswith("val/")]
    assert {"balanced_accuracy", "auroc", "ece", "loss", "recall/0"} <= {*logged}
    assert {key.partition("/")[0] for key in logged} == set(module.cards)


def test_class_weights_are_inverse_frequencies(classifier, trainer):
    module = classifier(class_weights=True)
    trainer(max_epochs=1).fit(module, Data())
    torch.testing.assert_close(module._weight_k, torch.tensor([2 / 3, 4 / 3, 4 / 3]))


def test_mixup_blends_images_as_it_says():
    x_bchw = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    made, other_b, share = mixed(x_bchw, 1.0)
    torch.testing.assert_close(made, share * x_bchw + (1 - share) * x_bchw[other_b])
    assert 0 < share < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["0", "1+"]}, r"Pass model.classes=\['0', '1\+', '2\+'\]"),
        ({"stains": 2}, "model.stains=2: the images have 1. Pass that number"),
    ],
)
def test_data_that_does_not_fit_is_refused(classifier, trainer, options, message):
    with pytest.raises(ConfigError, match=message):
        trainer(max_epochs=1).fit(classifier(**options), Data())


def test_one_class_is_refused(classifier):
    with pytest.raises(ConfigError, match=r"model.classes: found 1, expected two or more"):
        classifier(classes=["0"])
    with pytest.raises(ConfigError, match=r"model.classes=null: expected the names .* Pass data.classes"):
        classifier(classes=None)


def test_two_stains_go_through_one_encoder():
    network = TileClassifier(Encoder(), 3, stains=2).eval()
    x_bchw = batch(2, stains=2)["image"]
    one = network.encoder(x_bchw[:, :3] / 2 + 0.5)[-1].mean((-2, -1))
    other = network.encoder(x_bchw[:, 3:] / 2 + 0.5)[-1].mean((-2, -1))
    torch.testing.assert_close(network(x_bchw), network.head(torch.cat([one, other], 1)))
    assert attention.grad_cam(network, x_bchw, [0, 1]).shape == (2, 2, 16, 16)


def test_grad_cam_shows_where_the_class_is():
    network = TileClassifier(Encoder(), 2).eval()
    with torch.no_grad():
        network.encoder.conv.weight.fill_(0.1)
        network.head.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    network.requires_grad_(False)  # as in the phase with a frozen encoder
    network.head.requires_grad_()
    x_bchw = torch.full((1, 3, 16, 16), -1.0)
    x_bchw[..., 12:] = 1
    with torch.inference_mode():
        cam_hw = attention.grad_cam(network, x_bchw, [1])[0, 0]
    assert cam_hw[:, 13:].min() > 0.8
    assert cam_hw[:, :10].max() < 0.1


def test_panels_say_right_or_wrong(classifier, trainer, monkeypatch, caplog):
    module = classifier().eval()
    shown = module.panels(batch())
    assert [[title for title, _ in row][1] for row in shown] == ["Grad-CAM"] * 6
    titles = [row[0][0] for row in shown]
    assert all(title.endswith(", right") or ", true " in title for title in titles)
    assert all(picture.shape == (3, 16, 16) for row in shown for _, picture in row)
    attention.available.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    caplog.set_level(logging.WARNING)
    assert [len(row) for row in module.panels(batch())] == [1] * 6
    assert 'pip install "ihc2he[explain]"' in caplog.text
    attention.available.cache_clear()


def test_a_bundle_grades_images(trainer, tmp_path):
    module = Classifier(NODE, ADAM, CLASSES)
    info = {"module": module.network_node, "role": "classifier", "classes": CLASSES, "mpp": 1.0, "size": 16}
    save_bundle(module.network, tmp_path / "bundle", info)
    again = Classifier(NODE, ADAM, CLASSES, init=str(tmp_path / "bundle"))
    with pytest.raises(DataError, match=r"2 of 4 images have no level, such as c: no image; see"):
        trainer(callbacks=[GradeTable(str(tmp_path / "out"))]).predict(again, Data())
    with (tmp_path / "out" / "levels.csv").open() as file:
        rows = list(csv.DictReader(file))
    white = load_bundle(tmp_path / "bundle")[0](torch.ones(1, 3, 16, 16)).softmax(1)[0].tolist()
    assert [row["name"] for row in rows] == ["a", "b"]
    for row in rows:
        assert [float(row[f"p {kind}"]) for kind in CLASSES] == pytest.approx(white, abs=1e-3)
        assert row["level"] == CLASSES[int(np.argmax(white))]
    failed = (tmp_path / "out" / "failed.csv").read_text()
    assert "40 x 8 um, expected 16 um or more" in failed
    with pytest.raises(ConfigError, match=r"was trained for other classes or stains. Pass model.classes=\[0,1\+,2\+\]"):
        Classifier(NODE, ADAM, ["a", "b"], init=str(tmp_path / "bundle"))
