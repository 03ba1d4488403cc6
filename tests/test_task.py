"""The contract of models and DataModules, and that what a model of one's own leaves out is simply not there."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from ihc2he.callbacks.bundles import Bundles
from ihc2he.callbacks.panels import ImagePanels
from ihc2he.callbacks.results import Results
from ihc2he.callbacks.summaries import Summaries
from ihc2he.callbacks.worst import WorstPanels
from ihc2he.datainfo import DataInfo, check_class_names, info_of
from ihc2he.errors import ConfigError
from ihc2he.models.task import Task, as_task, required_mpp, rows_of


class Plain(Task):
    """The least that can be trained and tested."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.PReLU(3)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return self.net(batch["ihc"]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = training_step


def test_a_model_that_says_nothing_trains_and_tests_with_every_callback(tiles, trainer, tmp_path):
    folder = str(tmp_path)
    callbacks = [Bundles(folder), ImagePanels(folder), Results(folder), Summaries(), WorstPanels(folder)]
    runner, module = trainer(*callbacks), Plain()
    runner.fit(module, tiles)
    runner.test(module, tiles, verbose=False)
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "test.csv"}


def test_rows_without_pictures_draw_nothing(tiles, trainer, tmp_path):
    class Judged(Plain):
        def test_step(self, batch, batch_idx):
            return {"rows": [{"name": name, "group": "", "score": 1.0} for name in batch["name"]]}

        @property
        def cards(self):
            return {"score": type("Card", (), {"better": "higher", "protocol": ""})}

    trainer(WorstPanels(str(tmp_path))).test(Judged(), tiles, verbose=False)
    assert not (tmp_path / "worst").exists()


def test_a_plain_lightning_module_is_refused_with_what_to_write():
    with pytest.raises(ConfigError, match=r"LightningModule is a plain.*from ihc2he\.models\.task import Task"):
        as_task(LightningModule())
    assert as_task(module := Plain()) is module


def test_a_data_module_that_does_not_say_what_its_images_are_is_refused_with_what_to_write():
    class Mute(LightningDataModule):
        mpp = 0.25

    class Wrong(LightningDataModule):
        info = 0.25

    for data in (Mute(), Wrong()):
        with pytest.raises(ConfigError, match=rf"{type(data).__name__} has no `info`.*ihc2he\.datainfo\.DataInfo\(mpp"):
            info_of(data)


def test_a_fault_inside_of_info_is_not_taken_for_its_absence():
    class Faulty(LightningDataModule):
        @property
        def info(self):
            return DataInfo(mpp=self.no_such_name)

    with pytest.raises(AttributeError, match="no_such_name"):
        info_of(Faulty())


def test_a_model_that_needs_one_pixel_size_does_not_invent_it():
    assert required_mpp(DataInfo(0.5), "it") == 0.5
    with pytest.raises(ConfigError, match=r"it needs images of one pixel size.*data\.target_mpp"):
        required_mpp(DataInfo(None), "it")


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("inf"), float("nan")])
def test_a_pixel_size_that_cannot_be_is_refused(mpp):
    with pytest.raises(ConfigError, match=r"data: mpp=.*expected um/px above 0"):
        DataInfo(mpp)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a", "b", "a"], "'a' is repeated"),
        (["all"], "'all' is reserved"),
        (["x", "unknown"], "'unknown'"),
        ([" "], "empty"),
    ],
)
def test_class_names_that_tables_could_not_tell_apart_are_refused(names, why):
    with pytest.raises(ConfigError, match=rf"data\.classes: the name.*{why}|data\.classes: the name ' ' is empty"):
        DataInfo(0.25, names)
    check_class_names(["a", "b"], "data.classes")


def test_rows_name_their_image():
    assert rows_of(None) == rows_of(torch.zeros(1)) == rows_of({"loss": 1}) == []
    with pytest.raises(ConfigError, match="row without group"):
        rows_of({"rows": [{"name": "a"}]})
