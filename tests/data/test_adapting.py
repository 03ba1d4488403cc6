"""Annotated H&E with unlabelled IHC beside it."""

import numpy as np
import pytest
import torch

from ihc2he.data.adapting import AdaptingDataModule
from ihc2he.data.augmentation import NucleiAugmentation
from ihc2he.data.nuclei import NucleiDataModule
from ihc2he.data.samplers import SampleIndex
from ihc2he.data.unlabelled import Views
from ihc2he.errors import ConfigError, DataError
from ihc2he.nuclei.decoders.centres import CentresDecoder

STILL = {"dihedral": False, "scale": 0, "elastic": 0, "blur": 0, "noise": 0, "hed": 0, "hsv": 0}


def augmentation(**changes):
    return NucleiAugmentation(**(STILL | changes))


@pytest.fixture
def prepared(tmp_path, write_image, make_tile):
    """Four annotated tiles, and three of IHC at half the pixel size."""
    inst = np.zeros((48, 48), np.uint16)
    inst[4:16, 4:16] = 1
    for k in range(4):
        write_image(tmp_path / "he" / "images" / f"{k}.png", make_tile(k, 48))
        write_image(tmp_path / "he" / "instances" / f"{k}.png", inst)
    for k in range(3):
        write_image(tmp_path / "ihc" / "slide" / f"{k}.png", make_tile(100 + k, 96))

    def make(kind=AdaptingDataModule, **changes):
        own = {"ihc": str(tmp_path / "ihc"), "ihc_mpp": 0.25, "weak": augmentation(), "strong": augmentation()}
        shared = {
            "root": str(tmp_path / "he"), "store": str(tmp_path / kind.__name__), "mpp": 0.5, "target_mpp": 0.5,
            "crop_size": 32, "batch_size": 2, "num_workers": 0, "val_fraction": 0.25, "test_fraction": 0,
            "decoder": CentresDecoder(),
        }  # fmt: skip
        data = kind(**(shared | (own if kind is AdaptingDataModule else {}) | changes))
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def test_the_labelled_part_is_that_of_a_training_without_ihc(prepared):
    plain = next(iter(prepared(NucleiDataModule).train_dataloader()))
    beside = next(iter(prepared().train_dataloader()))
    assert beside.keys() - plain.keys() == {"weak", "strong"}
    assert all(torch.equal(value, beside[name]) for name, value in plain.items())
    assert beside["weak"].shape == beside["strong"].shape == plain["image"].shape


def test_what_is_at_a_pixel_of_one_view_is_at_that_pixel_of_the_other(prepared):
    moving = augmentation(dihedral=True, scale=0.3)
    batch = next(iter(prepared(weak=moving).train_dataloader()))
    assert torch.equal(batch["weak"], batch["strong"])  # moved, and alike
    still = next(iter(prepared().train_dataloader()))
    assert not torch.equal(still["weak"], batch["weak"])
    batch = next(iter(prepared(weak=moving, strong=augmentation(hed=0.3, hsv=0.2, noise=0.02)).train_dataloader()))
    assert not torch.equal(batch["weak"], batch["strong"])
    for weak, strong in zip(batch["weak"], batch["strong"], strict=True):
        place = np.corrcoef(weak.mean(0).flatten(), strong.mean(0).flatten())[0, 1]
        turned = np.corrcoef(weak.mean(0).flatten(), strong.mean(0).flip(-1).flatten())[0, 1]
        assert place > max(0.8, turned)


def test_views_depend_on_seed_epoch_and_index_alone(prepared):
    data = prepared()
    store = data.training_set().second.store

    def views(seed=0):
        return Views(store, crop_size=32, weak=augmentation(dihedral=True), strong=augmentation(hed=0.3), seed=seed)

    first = views()[SampleIndex(1, 5)]
    assert all(torch.equal(value, views()[SampleIndex(1, 5)][name]) for name, value in first.items())
    for other in (views()[SampleIndex(2, 5)], views()[SampleIndex(1, 6)], views(1)[SampleIndex(1, 5)]):
        assert not torch.equal(first["weak"], other["weak"])


def test_the_guard_sees_the_same_middles_at_the_pixel_size_of_the_model(prepared, monkeypatch):
    monkeypatch.setattr("ihc2he.data.adapting.GUARD_PX", 20)
    first, second = prepared(guard_tiles=2).guarded(), prepared(guard_tiles=2).guarded()
    assert [tile.shape for tile in first] == [(1, 3, 20, 20)] * 2
    assert all(map(torch.equal, first, second))
    whole = prepared(guard_tiles=9)
    monkeypatch.setattr("ihc2he.data.adapting.GUARD_PX", 999)
    assert [tile.shape for tile in whole.guarded()] == [(1, 3, 48, 48)] * 3
    assert torch.equal(whole.guarded()[0][..., 14:34, 14:34], first[0])


def test_cutout_hides_squares_and_keeps_labels():
    white, inst = np.full((40, 40, 3), 255, np.uint8), np.ones((40, 40), np.int32)
    hidden = [augmentation(cutout=0.2)(white, [inst], seed) for seed in range(8)]
    assert any((image == 0).any() for image, _ in hidden)
    assert all((image == 255).mean() > 0.4 for image, _ in hidden)
    assert all((labels == 1).all() for _, (labels,) in hidden)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ihc": None}, ConfigError, r"data.ihc is not given: pass a folder of unlabelled tiles of your IHC"),
        ({"ihc_mpp": None}, ConfigError, r"0.png: does not state its pixel size. Pass data.ihc_mpp, in um/px."),
        ({"ihc": "nowhere"}, DataError, r"data.ihc=nowhere: is no folder, nor is there a tile store of it at "),
        ({"strong": augmentation(dihedral=True)}, ConfigError, r"data.strong: it may change colour and sharpness"),
        ({"guard_tiles": 0}, ConfigError, r"data.guard_tiles=0: expected 1 or more."),
    ],
)
def test_what_is_missing_is_named(prepared, changes, error, message):
    with pytest.raises(error, match=message):
        prepared(**changes)
