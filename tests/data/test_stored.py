"""The keys that DataModules share."""

from dataclasses import dataclass

import pytest

from ihc2he.config import preflight, signature
from ihc2he.data.bci import BCIDataModule
from ihc2he.data.nuclei import NucleiDataModule
from ihc2he.data.pannuke import CLASSES, PanNukeDataModule
from ihc2he.data.segmentation import SegmentationDataModule
from ihc2he.data.translation import TranslationDataModule
from ihc2he.data.unpaired import UnpairedDataModule
from ihc2he.errors import ConfigError


@dataclass(kw_only=True, eq=False)
class OwnDataModule(NucleiDataModule):
    patients: int = 3


@pytest.mark.parametrize(
    ("module", "fixed"),
    [
        (BCIDataModule, {"test_fraction": 0.0, "on_bad_file": "error"}),
        (UnpairedDataModule, {"sampler": "uniform", "paired": False}),
        (PanNukeDataModule, {"classes": list(CLASSES)}),
    ],
)
def test_what_a_dataset_settles_itself_is_no_key(module, fixed):
    required = {"root": "a", "mpp_ihc": 0.5, "mpp_he": 0.5} if module is UnpairedDataModule else {"root": "a"}
    data = module(store="b", **required)
    assert {name: getattr(data, name) for name in fixed} == fixed
    for name, value in fixed.items():
        node = {"_target_": f"{module.__module__}.{module.__name__}", **required, "store": "b", name: value}
        with pytest.raises(ConfigError, match=f"{module.__name__} has no argument '{name}'"):
            preflight({"data": node})


def test_a_module_of_your_own_adds_fields_and_has_those_of_its_base():
    inherited, own = (signature(module).parameters for module in (NucleiDataModule, OwnDataModule))
    assert set(own) - set(inherited) == {"patients"}
    data = OwnDataModule(root="a", store="b", batch_size=2)
    assert (data.patients, data.batch_size, data.crop_size, data.info.mpp) == (3, 2, 256, 0.25)
    with pytest.raises(ConfigError, match=r"data\.batch_size=0: expected at least 1\."):
        OwnDataModule(root="a", store="b", batch_size=0)


def test_datasets_that_are_equal_are_still_two():
    first, second = (NucleiDataModule(root="a", store="b") for _ in range(2))
    assert len({first, second}) == 2


@pytest.mark.parametrize("module", [TranslationDataModule, SegmentationDataModule])
def test_a_folder_and_a_pixel_size_have_no_default(module):
    required = {name for name, given in signature(module).parameters.items() if given.default is given.empty}
    assert required == {"store", "target_mpp"}
