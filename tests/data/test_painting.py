"""Training crops painted as IHC: which, from what, and the measurement of a reference."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml

import ihc2he.data.reference as reference_module
from ihc2he.config import config_dir
from ihc2he.data.augmentation import NucleiAugmentation
from ihc2he.data.nuclei import NucleiDataModule
from ihc2he.data.painting import Painter
from ihc2he.data.reference import reference_tiles
from ihc2he.errors import ConfigError, DataError
from ihc2he.stain.looks import Ranges
from ihc2he.stain.measuring import measure
from ihc2he.stain.painting import paint_as

OFF = {"dihedral": False, "scale": 0.0, "elastic": 0.0, "blur": 0.0, "noise": 0.0, "hed": 0.0, "hsv": 0.0}
PAINTER = {"_target_": "ihc2he.data.painting.Painter", "mpp": 0.25}
AUGMENTATION = {"_target_": "ihc2he.data.augmentation.NucleiAugmentation"}


def crop(size=64, count=3):
    """H&E with round nuclei, numbered from 1."""
    rows, columns = np.mgrid[:size, :size]
    inst = np.zeros((size, size), np.int32)
    for k in range(count * count):
        y, x = ((np.array(divmod(k, count)) + 0.5) * size / count).round()
        inst[(rows - y) ** 2 + (columns - x) ** 2 < 50] = k + 1
    image = np.where((inst > 0)[..., None], (110, 70, 150), (225, 170, 205)).astype(np.uint8)
    return image, inst


@pytest.fixture
def reference(tmp_path, write_image):
    """Two kinds of IHC: blue without DAB, and brown."""
    image, inst = crop(256, 12)
    blue, brown = (
        replace(Painter(mpp=0.5)._look(np.random.default_rng(0)), site="nucleus", positive=positive, strength=0.9)
        for positive in (0.0, 1.0)
    )
    for k, look in enumerate([blue, brown, brown]):
        own = replace(look, background=0.0, jpeg=0, counterstain=0.5)
        write_image(tmp_path / "ihc" / "x" / f"{k}.png", paint_as(own, image, inst, 0.5, np.random.default_rng(k)))
    return tmp_path / "ihc"


@pytest.fixture
def make(tmp_path, write_image):
    for k in range(4):
        image, inst = crop()
        write_image(tmp_path / "nuclei" / "images" / f"{k}.png", image)
        write_image(tmp_path / "nuclei" / "instances" / f"{k}.png", inst.astype(np.uint16))
        write_image(tmp_path / "nuclei" / "types" / f"{k}.png", (inst > 0).astype(np.uint8))

    def make(*, num_workers=0, epoch=0, **paint):
        data = NucleiDataModule(
            root=str(tmp_path / "nuclei"), store=str(tmp_path / "store"), classes=["one"], mpp=0.25, crop_size=48,
            batch_size=2, num_workers=num_workers, val_fraction=0.0, test_fraction=0.0, test_split="all",
            augmentation=AUGMENTATION | ({"paint": PAINTER | paint} if paint else {}), samples_per_epoch=20,
        )  # fmt: skip
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {
            key: np.concatenate([batch[key].numpy() for batch in loader])
            for key in ("image", "inst", "type", "painted")
        }

    return make


def test_a_share_of_the_crops_is_painted_and_their_labels_stay(make):
    plain, painted = make(), make(share=0.5)
    changed = [(a != b).any() for a, b in zip(plain["image"], painted["image"], strict=True)]
    assert 4 <= sum(changed) <= 16
    for key in ("inst", "type"):
        assert (plain[key] == painted[key]).all()


def test_without_a_share_nothing_changes_in_any_bit(make):
    plain = make()
    assert all((plain[key] == found).all() for key, found in make(share=0.0).items())


def test_a_batch_says_which_crops_are_painted(make):
    painted = make(share=0.5)
    changed = [(a != b).any() for a, b in zip(make()["image"], painted["image"], strict=True)]
    assert painted["painted"].tolist() == changed


def test_painting_depends_on_seed_epoch_and_index_alone(make, reference):
    arguments = {"share": 0.7, "reference": str(reference), "reference_mpp": 0.5, "store": str(reference.parent)}
    first, again = make(**arguments, epoch=1), make(**arguments, epoch=1, num_workers=2)
    assert (first["image"] == again["image"]).all()
    assert (first["image"] != make(**arguments, epoch=2)["image"]).any()


def test_an_augmentation_gives_the_labels_back_unchanged():
    image, inst = crop()
    augmentation = NucleiAugmentation(**OFF, paint=Painter(mpp=0.25, share=1.0))
    for seed in range(20):
        done, labels = augmentation(image, [inst, (inst > 0).astype(np.int32)], seed)
        assert (done != image).any()
        assert (labels[0] == inst).all()
        assert (augmentation(image, [inst], seed)[0].shape) == image.shape


def test_a_reference_is_measured_once_and_again_when_it_changes(reference, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(reference_module, "measure", lambda *args: calls.append(1) or measure(*args))
    first = reference_tiles(reference, 0.5, tmp_path / "store")
    assert (len(first), len(calls)) == (3, 3)
    assert first == reference_tiles(reference, 0.5, tmp_path / "store")
    assert len(calls) == 3
    (reference / "x" / "2.png").unlink()
    assert reference_tiles(reference, 0.5, tmp_path / "store") == first[:2]
    assert len(calls) == 5
    reference_tiles(reference, 0.25, tmp_path / "store")
    assert len(calls) > 5


def test_large_images_are_measured_in_parts_that_can_be_read(reference, tmp_path):
    tiles = reference_tiles(reference, 2.0, tmp_path)  # 256 px are 512 um
    assert len(tiles) == 3 * 16
    assert {tile.window[2:] for tile in tiles} == {(64, 64)}
    assert tiles[5].read(reference).shape == (64, 64, 3)


def test_painted_crops_have_the_stains_of_the_reference(reference, tmp_path):
    painter = Painter(mpp=0.25, share=1.0, reference=str(reference), reference_mpp=0.5, store=str(tmp_path))
    painter.prepare()
    looks = [painter._look(np.random.default_rng(seed)) for seed in range(100)]
    assert np.mean([look.positive == 0 for look in looks]) == pytest.approx(1 / 3, abs=0.15)
    brown = painter.tiles[1].stains
    assert np.median([look.dab for look in looks if look.positive], axis=0) == pytest.approx(brown.dab, abs=0.05)


def test_a_reference_on_a_disk_that_cannot_be_written_is_measured_all_the_same(reference, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(reference_module, "write_text", fail)
    assert len(reference_tiles(reference, 0.5, tmp_path / "store")) == 3


def test_the_defaults_of_the_ranges_are_those_of_the_configuration():
    node = yaml.safe_load((config_dir() / "data/augmentation/paint/ihc.yaml").read_text())
    assert node["share"] == 0
    assert Painter(mpp=0.25, ranges=node["ranges"]).ranges == Ranges()
    assert node["ranges"].keys() == asdict(Ranges()).keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, r"data\.augmentation\.paint\.share=1\.5: expected from 0 to 1"),
        ({"mpp": 0.0}, r"data\.augmentation\.paint\.mpp=0\.0: expected"),
        ({"reference_mpp": -1.0}, r"data\.augmentation\.paint\.reference_mpp=-1\.0: expected"),
        ({"ranges": {"strenght": [0, 1]}}, r"ranges\.strenght: there is no such range\. Did you mean 'strength'"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Painter(**({"mpp": 0.25} | arguments))


def test_a_reference_that_cannot_be_used_is_refused(tmp_path, reference, write_image):
    with pytest.raises(ConfigError, match=r"missing: is no folder\. Expected a folder with tiles of your IHC"):
        reference_tiles(tmp_path / "missing", 0.5, tmp_path)
    with pytest.raises(ConfigError, match=r"0\.png: does not state its pixel size\. Pass data\..*reference_mpp"):
        reference_tiles(reference, None, tmp_path)
    write_image(tmp_path / "empty" / "white.png", np.full((64, 64, 3), 255, np.uint8))
    with pytest.raises(DataError, match=r"empty: none of its 1 images shows tissue"):
        reference_tiles(tmp_path / "empty", 0.5, tmp_path)
    with pytest.raises(ConfigError, match=r"is not measured yet\. Call prepare\(\)"):
        Painter(mpp=0.25, reference=str(reference)).paint(*crop(), None, np.random.default_rng(0))
