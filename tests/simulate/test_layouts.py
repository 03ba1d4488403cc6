"""The layouts, read again by code that shares nothing with the writers."""

import csv
import re
from collections import Counter

import cv2
import numpy as np
import pytest
import yaml

from ihc2he.errors import ConfigError, DataError
from ihc2he.simulate import write_bci, write_endonuke, write_nuclei, write_pannuke
from ihc2he.simulate.bci import _draw, _levels, _Pair, _pairs


def png(path):
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


def check_truth(root, relative, shape):
    """Instances dense, types fit them, markers have one row per nucleus; returns all three."""
    instances = png(root / "truth" / "instances" / relative)
    types = png(root / "truth" / "types" / relative)
    with (root / "truth" / "markers" / relative).with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert instances.dtype == np.uint16
    assert types.dtype == np.uint8
    assert instances.shape == types.shape == shape
    assert np.unique(instances[instances > 0]).tolist() == [int(row["id"]) for row in rows]
    names = ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]
    for row in rows:
        assert np.unique(types[instances == int(row["id"])]).tolist() == [1 + names.index(row["type"])]
    assert not types[instances == 0].any()
    return instances, types, rows


@pytest.fixture(scope="module")
def bci(tmp_path_factory):
    return write_bci(tmp_path_factory.mktemp("bci") / "BCI_dataset", tiles=6, size=64, seed=3)


@pytest.fixture(scope="module")
def endonuke(tmp_path_factory):
    return write_endonuke(tmp_path_factory.mktemp("endonuke") / "data", tiles=11, size=64, seed=3)


@pytest.fixture(scope="module")
def pannuke(tmp_path_factory):
    return write_pannuke(tmp_path_factory.mktemp("pannuke") / "pannuke", tiles=7, size=64, seed=3)


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    return write_nuclei(tmp_path_factory.mktemp("nuclei") / "he", tiles=16, size=64, seed=3)


def test_bci(bci):
    pattern = re.compile(r"^(\d{5})_(train|val|test)_(0|1\+|2\+|3\+)\.png$")
    for split, n in (("train", 5), ("test", 1)):
        he, ihc = (sorted(p.name for p in (bci / stain / split).iterdir()) for stain in ("HE", "IHC"))
        assert he == ihc
        assert len(he) == n
        assert [int(pattern.match(name)[1]) for name in he] == list(range(n))
        assert {pattern.match(name)[2] for name in he} == {split}
        for name in he:
            pair = [png(bci / stain / split / name) for stain in ("HE", "IHC")]
            assert [image.shape for image in pair] == [(64, 64, 3)] * 2
            ids = [check_truth(bci, f"{stain}/{split}/{name}", (64, 64))[0] for stain in ("HE", "IHC")]
            assert (ids[0] != ids[1]).any()  # serial sections
            assert png(bci / "truth" / "he" / "IHC" / split / name).shape == (64, 64, 3)


def test_bci_has_the_published_levels(tmp_path):
    pairs = list(_pairs(tmp_path, 4873, 64, 0, False))
    counts = Counter((pair.split, pair.name.split("_")[2].removesuffix(".png")) for pair in pairs)
    assert [counts["train", level] for level in ("0", "1+", "2+", "3+")] == [202, 918, 1696, 1080]
    assert [counts["test", level] for level in ("0", "1+", "2+", "3+")] == [38, 235, 446, 258]
    assert len({pair.index for pair in pairs}) == 4873
    assert not {p.case for p in pairs if p.split == "train"} & {p.case for p in pairs if p.split == "test"}
    assert all(len({p.level for p in pairs if p.case == case}) == 1 for case in {p.case for p in pairs[:300]})


def test_cases_of_bci_are_in_both_splits_and_named(tmp_path):
    root = write_bci(tmp_path / "bci", tiles=12, size=16, seed=1, cases=4)
    with (root / "cases.csv").open() as file:
        case_of = {row["name"]: row["case"] for row in csv.DictReader(file)}
    assert sorted(case_of) == sorted(path.name for path in (root / "IHC").rglob("*.png"))
    assert Counter(case_of.values()) == dict.fromkeys(("case_000", "case_001", "case_002", "case_003"), 3)
    assert {(case, name.split("_")[2]) for name, case in case_of.items()} == {
        ("case_000", "0.png"), ("case_001", "1+.png"), ("case_002", "2+.png"), ("case_003", "3+.png"),
    }  # fmt: skip
    pairs = list(_pairs(tmp_path, 480, 64, 0, False, _levels(8)))
    assert {p.case for p in pairs if p.split == "train"} == {p.case for p in pairs if p.split == "test"}
    with pytest.raises(ConfigError, match="cases=3: expected 4 or more, one for each level, and at most tiles=12"):
        write_bci(tmp_path / "other", tiles=12, size=16, cases=3)
    with pytest.raises(ConfigError, match="one for each level"):
        write_bci(tmp_path / "other", tiles=12, size=16, cases=[3, 0, 1, 1])


def test_levels_of_bci_can_have_unequal_numbers_of_cases(tmp_path):
    pairs = list(_pairs(tmp_path, 60, 64, 0, False, _levels([1, 2, 5, 2])))
    assert Counter(level for _, level in {(p.case, p.level) for p in pairs}) == {0: 1, 1: 2, 2: 5, 3: 2}
    assert Counter(Counter(p.case for p in pairs).values()) == {6: 10}


def test_he_tells_nothing_of_the_level(tmp_path):
    for level in (0, 3):
        _draw(_Pair(tmp_path / str(level), "a.png", "train", level, 5, 2, 64, 0, False))
    for stain, same in (("HE", True), ("IHC", False)):
        tiles = [png(tmp_path / str(level) / stain / "train" / "a.png") for level in (0, 3)]
        assert np.array_equal(*tiles) == same


def test_aligned_bci_shows_the_same_cells(tmp_path):
    root = write_bci(tmp_path / "bci", tiles=2, size=64, seed=1, aligned=True)
    for path in sorted((root / "HE").rglob("*.png")):
        relative = path.relative_to(root / "HE")
        maps = [check_truth(root, f"{stain}/{relative}", (64, 64))[0] for stain in ("HE", "IHC")]
        np.testing.assert_array_equal(*maps)
        np.testing.assert_array_equal(png(path), png(root / "truth" / "he" / "IHC" / relative))


def test_pannuke(pannuke):
    tissues = []
    for fold, n in ((1, 2), (2, 2), (3, 3)):
        images = np.load(pannuke / f"Fold {fold}" / "images" / f"fold{fold}" / "images.npy", mmap_mode="r")
        masks = np.load(pannuke / f"Fold {fold}" / "masks" / f"fold{fold}" / "masks.npy", mmap_mode="r")
        types = np.load(pannuke / f"Fold {fold}" / "images" / f"fold{fold}" / "types.npy")
        assert images.dtype == masks.dtype == np.float64
        assert images.shape == (n, 64, 64, 3)
        assert masks.shape == (n, 64, 64, 6)
        assert types.dtype.kind == "U"
        tissues += types.tolist()
        assert images.max() <= 255
        assert images.max() > 100
        for k in range(n):
            name = f"Fold {fold}/images/fold{fold}/{k:05d}.png"
            instances, kinds, _ = check_truth(pannuke, name, (64, 64))
            np.testing.assert_array_equal(masks[k, ..., :5].sum(-1), instances)
            np.testing.assert_array_equal((masks[k, ..., :5] > 0).sum(-1), instances > 0)
            np.testing.assert_array_equal(masks[k, ..., 5], instances == 0)
            for channel in range(5):
                np.testing.assert_array_equal(masks[k, ..., channel] > 0, kinds == channel + 1)
            np.testing.assert_array_equal(images[k], png(pannuke / "truth" / "he" / name)[..., ::-1])
    assert len(tissues) == 7
    assert "Breast" in tissues


def test_endonuke(endonuke):
    groups = {p.stem: yaml.safe_load(p.read_text()) for p in (endonuke / "master_ymls").glob("*.yaml")}
    assert sorted(groups) == [
        "agreement",
        "bulk",
        "everything",
        "hidden_agreement",
        "posterior_agreement",
        "preliminary_agreement",
        "unique",
    ]

    def files(group, key):
        return [line for name in groups[group][key] for line in (endonuke / name).read_text().split()]

    assert len(files("bulk", "images_lists")) == 10
    assert len(files("agreement", "images_lists")) == 7
    assert sorted(set(files("unique", "images_lists"))) == sorted(files("unique", "images_lists"))
    assert len(files("unique", "images_lists")) == 11
    pairs = list(zip(files("everything", "images_lists"), files("everything", "labels_lists"), strict=True))
    assert len(pairs) == 17

    per_tile, hits = {}, []
    for image_name, label_name in pairs:
        image = png(endonuke / image_name)
        side = 128 if image_name.endswith("/9.png") else 64
        assert image.shape == (side, side, 3)
        context = png(endonuke / image_name.replace("images", "images_context"))
        assert context.shape == (3 * side, 3 * side, 3)
        np.testing.assert_array_equal(image, context[side : 2 * side, side : 2 * side])
        points = np.loadtxt(endonuke / label_name, dtype=int, ndmin=2).reshape(-1, 3)
        assert points[:, :2].min(initial=0) >= 0
        assert points[:, :2].max(initial=0) < side
        assert set(points[:, 2]) <= {0, 1, 2}
        per_tile.setdefault(image_name, []).append(points)
        instances, _, rows = check_truth(endonuke, image_name, (side, side))
        assert png(endonuke / "truth" / "he" / image_name).shape == image.shape
        assert len(points) <= 1.3 * len(rows) + 2
        near = cv2.dilate((instances > 0).astype(np.uint8), np.ones((7, 7)))
        hits += (near[points[:, 1], points[:, 0]] > 0).tolist()
    assert np.mean(hits) > 0.9
    seven = per_tile["dataset/images/1.png"]
    assert len(seven) == 7
    assert len({p.tobytes() for p in seven}) == 7  # people disagree


def test_nuclei(nuclei):
    with (nuclei / "tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "source", "split", "case", "nuclei", "height", "width", "um_per_px", "licence"]
    assert len(rows) == 16
    assert Counter(row["split"] for row in rows) == {"train": 13, "val": 3}
    assert not {r["case"] for r in rows if r["split"] == "val"} & {r["case"] for r in rows if r["split"] == "train"}
    for row in rows:
        image, instances, types = (png(nuclei / k / f"{row['name']}.png") for k in ("images", "instances", "types"))
        assert image.shape == (64, 64, 3)
        assert (int(row["height"]), int(row["width"])) == instances.shape
        assert int(row["nuclei"]) == len(np.unique(instances[instances > 0]))
        truth = check_truth(nuclei, f"images/{row['name']}.png", (64, 64))
        np.testing.assert_array_equal(instances, truth[0])
        np.testing.assert_array_equal(types, truth[1])


WRITERS = [write_bci, write_pannuke, write_endonuke, write_nuclei]


@pytest.mark.parametrize("write", WRITERS)
def test_a_killed_run_continues_and_ends_with_the_same_bytes(write, tmp_path, snapshot):
    whole = snapshot(write(tmp_path / "a", tiles=3, size=32, seed=5))
    root = write(tmp_path / "b", tiles=3, size=32, seed=5)
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "simulation.json")
    for path in files[::2]:
        path.rename(path.with_name(f".{path.name}.part"))
    # A tile counts as done once its last file is there, so what a kill can leave is everything up to some file.
    for path in files:
        if path.parent.name in ("train", "test", "images") or path.suffix == ".npy" or "/he/" in str(path):
            path.unlink(missing_ok=True)
    write(root, tiles=3, size=32, seed=5)
    again = {name: content for name, content in snapshot(root).items() if not name.endswith(".part")}
    assert again == whole


def test_processes_change_no_byte(tmp_path, snapshot):
    one = snapshot(write_bci(tmp_path / "1", tiles=3, size=32, seed=5))
    two = snapshot(write_bci(tmp_path / "2", tiles=3, size=32, seed=5, workers=2))
    assert one == two


@pytest.mark.parametrize("write", WRITERS)
def test_another_seed_gives_other_tiles_and_refuses_the_same_folder(write, tmp_path, snapshot):
    first = snapshot(write(tmp_path / "a", tiles=1, size=32, seed=0))
    second = snapshot(write(tmp_path / "b", tiles=1, size=32, seed=1))
    changed = [name for name in first if name in second and first[name] != second[name]]
    assert any(name.endswith((".png", ".npy")) for name in changed)
    with pytest.raises(DataError, match=r"another simulation \(seed=0\)"):
        write(tmp_path / "a", tiles=1, size=32, seed=1)


def test_real_data_is_never_mixed_with_simulated(tmp_path):
    (tmp_path / "HE").mkdir()
    with pytest.raises(DataError, match="may be real data"):
        write_bci(tmp_path, tiles=1, size=32)


@pytest.mark.parametrize(("changes", "message"), [({"tiles": 0}, "tiles=0"), ({"size": 8}, "size=8")])
def test_names_numbers_that_make_no_sense(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        write_bci(tmp_path, **{"tiles": 1, "size": 32, **changes})
