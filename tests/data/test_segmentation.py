"""Batches with nuclei: content, order, balance; and the augmentation."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ihc2he.data.augmentation import NucleiAugmentation, change_stains
from ihc2he.data.nuclei import NucleiDataModule
from ihc2he.data.samplers import SampleIndex, presence_weights
from ihc2he.errors import ConfigError
from ihc2he.images.labels import MAX_LABEL
from ihc2he.nuclei.decoders.hover import HoverDecoder
from ihc2he.nuclei.targets import hv_maps

OFF = {"dihedral": False, "scale": 0.0, "elastic": 0.0, "blur": 0.0, "noise": 0.0, "hed": 0.0, "hsv": 0.0}
GEOMETRY = {"dihedral": True, "scale": 0.2, "elastic": 1.5}
COLOUR = {"blur": 1.0, "noise": 0.03, "hed": 0.05, "hsv": 0.1}
AUGMENTATION = {"_target_": "ihc2he.data.augmentation.NucleiAugmentation"}


def blobs(size=64):
    """Nuclei on a jittered grid, numbered from 1; types 1 and 2; and an image whose grey tells nuclei and types."""
    rows, columns = np.mgrid[:size, :size]
    inst = np.zeros((size, size), np.int32)
    for k, (y, x) in enumerate(
        np.random.default_rng(0).integers(-2, 3, (16, 2)) + np.argwhere(np.ones((4, 4))) * 16 + 8
    ):
        inst[(rows - y) ** 2 + (columns - x) ** 2 < 30] = k + 1
    types = np.where(inst > 0, 1 + inst % 2, 0).astype(np.int32)
    image = np.repeat((200 - 70 * types).astype(np.uint8)[..., None], 3, -1)
    return image, inst, types


@pytest.fixture
def root(tmp_path, write_image):
    image, inst, types = blobs()
    for k in range(6):
        kept = inst <= 3 * k  # tile 0 is empty, tile 5 is full
        write_image(tmp_path / "nuclei" / "images" / f"{k}.png", image)
        write_image(tmp_path / "nuclei" / "instances" / f"{k}.png", (inst * kept).astype(np.uint16))
        write_image(tmp_path / "nuclei" / "types" / f"{k}.png", (types * kept).astype(np.uint8))
    (tmp_path / "nuclei/tiles.csv").write_text("name,tissue\n" + "".join(f"{k},{'ABBBBB'[k]}\n" for k in range(6)))
    return tmp_path / "nuclei"


@pytest.fixture
def make(root, tmp_path):
    def make(**arguments):
        defaults = {
            "root": str(root),
            "store": str(tmp_path / "store"),
            "classes": ["even", "odd"],
            "mpp": 0.25,
            "crop_size": 48,
            "batch_size": 2,
            "num_workers": 0,
            "val_fraction": 0.0,
            "test_fraction": 0.0,
            "test_split": "all",
            "augmentation": AUGMENTATION,
            "decoder": HoverDecoder(),
        }
        data = NucleiDataModule(**(defaults | arguments))
        data.prepare_data()
        data.setup()
        return data

    return make


def prints(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [tuple(float(batch[field].double().sum()) for field in sorted(batch)) for batch in loader]


def test_training_batch(make):
    batches = list(make().train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        shapes = {field: (tuple(tensor.shape), tensor.dtype) for field, tensor in batch.items()}
        assert shapes == {
            "image": ((2, 3, 48, 48), torch.float32),
            "inst": ((2, 48, 48), torch.int32),
            "hv": ((2, 2, 48, 48), torch.float32),
            "type": ((2, 48, 48), torch.int64),
            "painted": ((2,), torch.bool),
        }
        assert not batch["painted"].any()
        assert 0 <= batch["image"].min() < batch["image"].max() <= 1
        for inst, hv, types in zip(batch["inst"], batch["hv"], batch["type"], strict=True):
            np.testing.assert_array_equal(hv, hv_maps(inst.numpy()))
            assert ((types > 0) == (inst > 0)).all()
            assert all(len(types[inst == k].unique()) == 1 for k in inst.unique())


def test_evaluation_gives_whole_tiles_unchanged(make):
    image, inst, types = blobs()
    batch = list(make().test_dataloader())[5]
    assert set(batch) == {"image", "inst", "type", "name", "group"}
    assert (batch["name"], batch["group"]) == (["5"], ["B"])
    np.testing.assert_array_equal((batch["image"][0] * 255).round().byte().permute(1, 2, 0), image)
    np.testing.assert_array_equal(batch["inst"][0], inst * (inst <= 15))
    np.testing.assert_array_equal(batch["type"][0], types * (inst <= 15))


def test_image_and_labels_move_together(make):
    data = make(augmentation=AUGMENTATION | OFF | GEOMETRY, samples_per_epoch=60)
    agreement = []
    for sample in data.train_dataloader():
        grey = sample["image"][:, 0] * 255
        types = torch.round((200 - grey) / 70).long()
        agreement.append((types == sample["type"])[sample["type"] > 0].float().mean())
    assert np.nanmean(agreement) > 0.9, "what is left are outlines, interpolated in the image and not in the labels"


def test_a_nucleus_that_the_crop_cuts_in_two_becomes_two(make, root, write_image):
    inst = np.zeros((64, 64), np.uint16)
    inst[4:60, 20:44] = 1
    inst[8:60, 24:40] = 0  # an arch
    for k in range(6):
        write_image(root / "instances" / f"{k}.png", inst)
    data = make(classes=None, crop_size=48, augmentation=None, samples_per_epoch=40)
    counts = Counter(int(inst.max()) for batch in data.train_dataloader() for inst in batch["inst"])
    assert set(counts) == {1, 2}
    assert counts[2] > 10, "its top is out of view in 8 of 17 rows"


def test_a_tile_smaller_than_the_crop_is_filled_up_by_reflection(make):
    image, inst, _ = blobs()
    data = make(crop_size=100, augmentation=None)
    sample = data.train_dataloader().dataset[5]
    padded = np.pad(image, ((18, 18), (18, 18), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal((sample["image"] * 255).round().byte().permute(1, 2, 0), padded)
    mirrored = np.pad(inst * (inst <= 15), 18, mode="symmetric")
    np.testing.assert_array_equal(sample["inst"] > 0, mirrored > 0)
    assert sample["inst"].max() > 15, "a mirrored nucleus is another one"


def test_order_and_augmentation_depend_on_seed_epoch_and_index_alone(make):
    loader = make().train_dataloader()
    first, second = prints(loader, 0), prints(loader, 1)
    assert not set(first) & set(second)
    assert prints(make(num_workers=2).train_dataloader(), 1) == second
    assert not set(prints(make(seed=1).train_dataloader(), 0)) & set(first)
    dataset = loader.dataset
    assert torch.equal(dataset[3]["image"], dataset[SampleIndex(0, 3)]["image"])


def test_two_processes_share_what_one_would_see(make):
    data = make(batch_size=1)
    alone, shards = prints(data.train_dataloader()), []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shards.append(prints(data.train_dataloader()))
        assert [batch["name"][0] for batch in data.test_dataloader()] == list("012345")[rank::2]
    assert [batch for pair in zip(*shards, strict=True) for batch in pair] == alone


def test_fewer_tiles_than_processes_are_refused_on_all_of_them(make):
    data = make()
    for rank in range(7):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=7)
        with pytest.raises(ConfigError, match=r"trainer\.devices: 6 test tiles are too few for 7 processes"):
            data.test_dataloader()


def drawn(data):
    """How often each tile is drawn, as a share."""
    sampler = data.train_dataloader().sampler
    counts = Counter(sample.index % 6 for sample in sampler)
    return np.array([counts[k] for k in range(6)]) / len(sampler)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("uniform", [1 / 6] * 6),
        ("tissue_balanced", [0.5] + [0.1] * 5),
        # Tile 0 holds no nucleus, every other holds both types.
        ("class_balanced", [1 / 3] + [2 / 15] * 5),
        ("class_tissue_balanced", [5 / 12] + [7 / 60] * 5),
    ],
)
def test_balanced_sampling(make, sampler, expected):
    shares = drawn(make(sampler=sampler, samples_per_epoch=6000))
    assert np.abs(shares - expected).max() < 0.03  # five standard deviations


def test_a_rare_class_is_drawn_as_often_as_a_frequent_one():
    present = [["a"]] * 97 + [["a", "rare"]] * 2 + [[]]
    weights = np.array(presence_weights(present)) / sum(presence_weights(present))
    assert weights[97:99].sum() == pytest.approx(1 / 3 + 2 / 99 / 3)
    assert weights[99] == pytest.approx(1 / 3)


@pytest.mark.parametrize("sampler", ["class_balanced", "tissue_balanced"])
def test_balance_needs_something_to_balance(make, root, sampler):
    (root / "tiles.csv").unlink()
    with pytest.raises(ConfigError, match=rf"data\.sampler={sampler} needs .* this dataset has none\. Pass uniform"):
        make(sampler=sampler, classes=None).train_dataloader()


def test_the_batch_size_may_change_between_the_phases_of_a_training(make):
    data = make()
    data.batch_size = 3
    assert next(iter(data.train_dataloader()))["image"].shape[0] == 3
    data.batch_size = 7
    with pytest.raises(ConfigError, match=r"data\.batch_size=7: an epoch has only 6 samples per process"):
        data.train_dataloader()


def test_tiles_of_several_sizes_are_evaluated_one_by_one(make, root, write_image):
    assert len(make(eval_batch_size=6).test_dataloader()) == 1
    for folder, shape in (("images", (40, 64, 3)), ("instances", (40, 64)), ("types", (40, 64))):
        write_image(root / folder / "0.png", np.zeros(shape, np.uint8))
    with pytest.raises(ConfigError, match=r"data\.eval_batch_size=4: test tiles have 2 sizes\. Pass 1"):
        make(eval_batch_size=4, rebuild=True).test_dataloader()
    assert len(list(make().test_dataloader())) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "balanced"}, r"data\.sampler=balanced: expected uniform or class_balanced or"),
        ({"target_mpp": 0}, r"data\.target_mpp=0: expected"),
        ({"crop_size": 0}, r"data\.crop_size=0: expected"),
        ({"batch_size": 0}, r"data\.batch_size=0: expected"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0: expected"),
        ({"samples_per_epoch": 0}, r"data\.samples_per_epoch=0: expected"),
        ({"num_workers": -1}, r"data\.num_workers=-1: expected"),
        ({"augmentation": AUGMENTATION | {"hed": 2}}, r"data\.augmentation\.hed=2: expected from 0 to 1\."),
        ({"augmentation": AUGMENTATION | {"scale": -0.1}}, r"data\.augmentation\.scale=-0\.1: expected from 0 to 0\.9"),
        ({"augmentation": {"_target_": "torch.nn.ReLU"}}, r"'torch\.nn\.ReLU' is not a NucleiAugmentation"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        NucleiDataModule(root="a", store="b", **arguments)


def test_nothing_changes_with_everything_off():
    image, inst, types = blobs()
    done, labels = NucleiAugmentation(**OFF)(image, [inst, types], 3)
    np.testing.assert_array_equal(done, image)
    np.testing.assert_array_equal(labels, [inst, types])


@pytest.mark.parametrize("name", COLOUR)
def test_colour_leaves_labels_alone(name):
    image, inst, types = blobs()
    image = image + np.arange(3, dtype=np.uint8) * 10  # of some colour, so that hue and saturation mean something
    augmentation = NucleiAugmentation(**(OFF | {name: COLOUR[name]}))
    changed = 0
    for seed in range(40):
        done, labels = augmentation(image, [inst, types], seed)
        np.testing.assert_array_equal(labels, [inst, types])
        changed += not np.array_equal(done, image)
    share = 0.5 if name in ("hed", "hsv") else 0.25
    assert abs(changed / 40 - share) < 0.25


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_changes_image_and_labels_or_neither(name):
    image, inst, types = blobs()
    augmentation = NucleiAugmentation(**(OFF | {name: GEOMETRY[name]}))
    for seed in range(20):
        done, labels = augmentation(image, [inst, types], seed)
        assert np.array_equal(done, image) == np.array_equal(labels[0], inst)
        assert set(np.unique(labels[0])) <= set(np.unique(inst))
        np.testing.assert_array_equal(labels[1], np.where(labels[0] > 0, 1 + labels[0] % 2, 0))


def test_all_eight_turns_and_reflections_occur():
    image, inst, _ = blobs()
    augmentation = NucleiAugmentation(**(OFF | {"dihedral": True}))
    eight = [np.rot90(m, k).tobytes() for m in (inst, inst.T) for k in range(4)]
    found = Counter(eight.index(augmentation(image, [inst], seed)[1][0].tobytes()) for seed in range(160))
    assert len(found) == 8
    assert min(found.values()) >= 5


def test_scale_stays_within_its_range():
    image = blobs()[0]
    disc = np.where(np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 20, 1, 0).astype(np.int32)
    augmentation = NucleiAugmentation(**(OFF | {"scale": 0.2}))
    widths = [np.ptp(np.flatnonzero(augmentation(image, [disc], seed)[1][0][32])) + 1 for seed in range(60)]
    assert 0.8 * 40 - 2 <= min(widths) < 36
    assert 44 < max(widths) <= 1.2 * 40 + 2


def test_elastic_displacement_has_the_size_asked_for():
    columns = np.mgrid[:256, :256][1].astype(np.int32)
    image = np.zeros((256, 256, 3), np.uint8)
    augmentation = NucleiAugmentation(**(OFF | {"elastic": 2.0}))
    moved = [augmentation(image, [columns], seed)[1][0] - columns for seed in range(24)]
    deviations = [delta[20:-20, 20:-20].std() for delta in moved if delta.any()]
    assert 1.5 < np.mean(deviations) < 2.5


def test_the_greatest_label_survives():
    image, inst, _ = blobs()
    labels = np.where(inst > 0, inst + MAX_LABEL - 16, 0).astype(np.int32)
    augmentation = NucleiAugmentation(**(OFF | GEOMETRY))
    for seed in range(12):
        done = augmentation(image, [labels], seed)[1][0]
        assert set(np.unique(done)) <= set(np.unique(labels))
        assert done.max() > 2**23


@given(st.tuples(*[st.integers(1, 255)] * 3))
def test_stains_left_alone_give_back_the_colour(colour):
    image = np.array([[colour]], np.uint8)
    np.testing.assert_array_equal(change_stains(image, np.ones(3), np.zeros(3)), image)


def test_more_hematoxylin_is_bluer_and_darker():
    white = np.full((1, 1, 3), 255, np.uint8)
    red, green, blue = change_stains(white, np.ones(3), np.array([0.5, 0, 0]))[0, 0]
    # Ruifrok and Johnston's vector, of length 1: OD 0.65, 0.704 and 0.286 times 0.5.
    assert [red, green, blue] == [round(255 * 10 ** (-0.5 * v)) for v in (0.650, 0.704, 0.286)]
    doubled = change_stains(change_stains(white, np.ones(3), np.array([0.2, 0, 0])), np.full(3, 2), np.zeros(3))
    assert abs(doubled.astype(int) - change_stains(white, np.ones(3), np.array([0.4, 0, 0]))).max() <= 1
