import sys
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.lib.format import open_memmap

from ihc2he.data import pannuke
from ihc2he.data.pannuke import CLASSES, PanNukeDataModule, fold_files, merge_channels
from ihc2he.errors import ConfigError, DataError
from ihc2he.nuclei.decoders.hover import HoverDecoder
from ihc2he.simulate.pannuke import FOLDS as SIMULATED_FOLDS
from ihc2he.simulate.tissue import TYPES

COUNTS = {1: 4, 2: 2, 3: 3}
SIZE = 32


def write_fold(root, fold, n, dtype=np.float64):
    """Tile i of fold f is of shade 10 f + i, with a nucleus of type 1 + i % 5 and, in front, one of type 5."""
    images = np.zeros((n, SIZE, SIZE, 3), dtype)
    masks = np.zeros((n, SIZE, SIZE, 6), dtype)
    for i in range(n):
        images[i] = 10 * fold + i
        masks[i, 2:8, 2:8, i % 5] = 7
        masks[i, 20:26, 4:10, 4] = 300
    masks[..., 5] = (masks[..., :5] == 0).all(-1)
    files = fold_files(root, fold)
    for file, array in zip(files, (images, masks, np.array(["Colon", "Breast"] * n)[:n]), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, array)
    return files


@pytest.fixture
def root(tmp_path):
    for fold, n in COUNTS.items():
        write_fold(tmp_path / "pannuke", fold, n)
    return tmp_path / "pannuke"


@pytest.fixture
def prepared(tmp_path):
    """A prepared DataModule over <tmp_path>/pannuke; keyword arguments override."""

    def make(**arguments):
        defaults = {
            "root": str(tmp_path / "pannuke"),
            "store": str(tmp_path / "store"),
            "crop_size": SIZE,
            "batch_size": 2,
            "eval_batch_size": 1,
            "num_workers": 0,
        }
        data = PanNukeDataModule(**(defaults | arguments))
        data.prepare_data()
        data.setup()
        return data

    return make


def shades(loader):
    return [round(image.mean().item() * 255) for batch in loader for image in batch["image"]]


@pytest.mark.parametrize(("split", "folds"), [(1, (1, 2, 3)), (2, (2, 1, 3)), (3, (3, 2, 1))])
def test_the_published_rotation(root, prepared, split, folds):
    data = prepared(split=split)
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    for fold, loader in zip(folds, loaders, strict=True):
        expected = [10 * fold + i for i in range(COUNTS[fold])]
        found = shades(loader)
        assert set(found) <= set(expected)
        assert len(found) == len(expected) // 2 * 2 if loader is loaders[0] else found == expected


def test_one_store_serves_all_splits(root, prepared, monkeypatch):
    prepared(split=1)
    monkeypatch.setattr(PanNukeDataModule, "read_record", lambda self, tile: pytest.fail(f"read {tile}"))
    prepared(split=3)


def test_an_evaluation_batch_is_the_tile_as_published(root, prepared):
    batches = list(prepared().test_dataloader())
    batch = batches[1]
    assert batch["name"] == ["fold3_0001"]
    assert batch["group"] == ["Breast"]
    assert [b["group"][0] for b in batches] == ["Colon", "Breast", "Colon"]
    assert set(batch) == {"image", "inst", "type", "name", "group"}
    assert (batch["image"] * 255).round().unique().tolist() == [31]
    inst_hw, type_hw = batch["inst"][0], batch["type"][0]
    assert (inst_hw.dtype, type_hw.dtype) == (torch.int32, torch.int64)
    assert inst_hw.unique().tolist() == [0, 1, 2]
    assert (inst_hw[2:8, 2:8] == 1).all()
    assert (inst_hw[20:26, 4:10] == 2).all()
    assert (inst_hw > 0).sum() == 72
    assert torch.equal(type_hw, torch.tensor([0, 2, 5])[inst_hw.long()])


def test_what_a_user_can_read_of_it(root, prepared):
    data = prepared()
    assert data.target_mpp == 0.25
    assert data.classes == ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]
    lines = (data.store_folder / "index.csv").read_text().splitlines()
    assert lines[0] == (
        "tile,split,tissue,height,width,nuclei,neoplastic,inflammatory,connective,dead,epithelial,overlap_px"
    )
    assert lines[2] == "fold1_0001,fold 1,Breast,32,32,2,0,1,0,0,1,0"
    assert len(lines) == 1 + sum(COUNTS.values())


def test_the_simulator_means_the_same_classes_and_folds():
    assert CLASSES == TYPES
    assert tuple(pannuke.PUBLISHED.values()) == SIMULATED_FOLDS


def binarized(mask_hwc):
    """The instance map by PanNuke's published procedure: for each channel and each id in it, paint a new number."""
    out, number = np.zeros(mask_hwc.shape[:2], int), 1
    for channel in range(mask_hwc.shape[-1]):
        for identity in np.unique(mask_hwc[..., channel]):
            if identity > 0:
                out[mask_hwc[..., channel] == identity] = number
                number += 1
    return out


@settings(max_examples=60, deadline=None)
@given(arrays(np.int32, (5, 6, 5), elements=st.sampled_from([0, 0, 0, 1, 2, 70_000])))
def test_overlaps_go_to_the_later_channel_as_in_the_official_metrics(mask_hwc):
    inst_hw, type_hw, overlap_px = merge_channels(mask_hwc)
    expected = binarized(mask_hwc)
    pairs = set(zip(inst_hw.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(expected)) == len(np.unique(inst_hw)), "the same partition"
    assert [new for new, _ in sorted(pairs, key=lambda pair: pair[1])] == sorted({new for new, _ in pairs})
    assert inst_hw.max() == len(np.unique(expected[expected > 0]))
    last = [max((c + 1 for c in range(5) if pixel[c]), default=0) for pixel in mask_hwc.reshape(-1, 5)]
    assert type_hw.ravel().tolist() == last
    assert overlap_px == sum((pixel > 0).sum() > 1 for pixel in mask_hwc.reshape(-1, 5))


def test_overlaps_are_counted_in_the_index(root, prepared):
    masks = np.load(fold_files(root, 2).masks, mmap_mode="r+")
    masks[1, 6:10, 6:10, 3] = 1
    masks.flush()
    lines = (prepared().store_folder / "index.csv").read_text().splitlines()
    assert lines[1 + 4 + 1] == "fold2_0001,fold 2,Breast,32,32,3,0,1,0,1,1,4"


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_smaller_copies_of_the_arrays_give_the_same(tmp_path, prepared, dtype):
    for fold, n in COUNTS.items():
        write_fold(tmp_path / "pannuke", fold, n, dtype)
    batch = next(iter(prepared().test_dataloader()))
    assert batch["inst"].unique().tolist() == [0, 1, 2]


def test_another_pixel_size_resamples_image_and_labels(root, prepared):
    batch = next(iter(prepared(target_mpp=0.5).val_dataloader()))
    assert batch["image"].shape == (1, 3, 16, 16)
    assert (batch["inst"] > 0).sum() == 72 / 4


def test_simulated_tissue_fills_the_root(prepared, caplog):
    for _ in range(2):
        data = prepared(simulate={"tiles": 6, "size": 64, "seed": 0}, crop_size=64, decoder=HoverDecoder())
    assert {name: len(records) for name, records in data.records.items()} == {"train": 2, "val": 2, "test": 2}
    batch = next(iter(data.train_dataloader()))
    assert batch["hv"].shape == (2, 2, 64, 64)
    assert "published" not in caplog.text


def edit(file, change):
    array = np.load(file)
    np.save(file, change(array))


def spoil(value, row=1):
    def change(array):
        array[row, 3, 3, 0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("images", spoil(np.nan), r"images\.npy, index 1: found NaN, expected 0 to 255"),
        ("images", spoil(-1), r"images\.npy, index 1: found values from -1 to 21"),
        ("images", spoil(256), r"images\.npy, index 1: found values from 21 to 256, expected 0 to 255"),
        ("images", spoil(0.5), r"images\.npy, index 1: found 0\.5, expected whole numbers"),
        ("masks", spoil(np.nan), r"masks\.npy, index 1: found NaN"),
        ("masks", spoil(np.inf), r"masks\.npy, index 1: found values from 0 to inf"),
        ("masks", spoil(-3), r"masks\.npy, index 1: found values from -3 to 300"),
        ("masks", spoil(2.5, 0), r"masks\.npy, index 0: found 2\.5, expected whole numbers"),
        ("images", lambda a: a[..., 0], r"images\.npy: found \(2, 32, 32\) of float64, expected \(2, 32, 32, 3\)"),
        ("images", lambda a: np.array("x"), r"images\.npy: found \(\) of <U1, expected"),
        ("masks", lambda a: a[..., :5], r"masks\.npy: found \(2, 32, 32, 5\) of float64, expected \(2, 32, 32, 6\)"),
        ("masks", lambda a: a[:1], r"masks\.npy: found \(1, 32, 32, 6\) of float64, expected \(2, 32, 32, 6\)"),
        ("masks", lambda a: a[:, :16], r"masks\.npy: found \(2, 16, 32, 6\)"),
        ("tissues", lambda a: a[:1], r"types\.npy: found \(1,\) of <U6, expected \(2,\) of texts"),
        ("tissues", lambda a: np.zeros(2), r"types\.npy: found \(2,\) of float64, expected \(2,\) of texts"),
        ("tissues", lambda a: a.astype(object), r"types\.npy: not a readable NumPy array \(.*Python objects"),
    ],
)
def test_a_spoilt_array_is_named_with_the_index(root, prepared, tmp_path, which, change, message):
    edit(getattr(fold_files(root, 2), which), change)
    with pytest.raises(DataError, match=message):
        prepared()
    assert not (tmp_path / "store" / "tiles.h5").exists()


def test_an_archive_of_arrays_is_named(root, prepared):
    file = fold_files(root, 1).images
    np.savez(file.with_suffix(".npz"), a=np.zeros(3))
    file.with_suffix(".npz").rename(file)
    with pytest.raises(DataError, match=r"images\.npy: found an archive of several arrays, expected one"):
        prepared()


def test_a_truncated_array_is_named(root, prepared):
    file = fold_files(root, 3).masks
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"Fold 3/masks/fold3/masks\.npy: not a readable NumPy array .*unpack it again"):
        prepared()


@pytest.mark.parametrize("which", ["images", "masks", "tissues"])
def test_a_missing_part_of_a_fold_is_named(root, prepared, which):
    file = getattr(fold_files(root, 2), which)
    file.unlink()
    with pytest.raises(DataError, match=rf"{file}: missing; all three folds are needed.*download=true"):
        prepared()


def test_without_data_it_says_where_to_get_it(tmp_path, prepared):
    (tmp_path / "pannuke" / "Fold_1").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        prepared()
    for part in (
        "found: Fold_1",
        "data.download=true",
        "CC BY-NC-SA 4.0",
        "/Fold k/masks/foldk/masks.npy",
        "data.root=",
    ):
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pannuke"], "nothing is left behind"


def test_a_changed_fold_is_refused_and_a_moved_one_is_not(root, prepared, tmp_path):
    prepared()
    root.rename(tmp_path / "moved")
    prepared()
    prepared(root=str(tmp_path / "moved"))
    edit(fold_files(tmp_path / "moved", 1).images, lambda a: a + 1)
    with pytest.raises(DataError, match=r"1 changed \(Fold 1/images/fold1/images\.npy\).*rebuild=true"):
        prepared(root=str(tmp_path / "moved"))


def test_counts_are_compared_with_the_published_ones(root, prepared, caplog):
    prepared()
    assert "fold 1 4 (published 2656), fold 2 2 (published 2523), fold 3 3 (published 2722) tiles" in caplog.text


@pytest.mark.parametrize("split", [0, 4, "1"])
def test_other_splits_are_refused(prepared, split):
    with pytest.raises(ConfigError, match=rf"data\.split={split}: expected 1, 2 or 3"):
        prepared(split=split)


def test_download_fetches_and_unpacks_what_is_missing(root, prepared, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for fold in (2, 3):
        with zipfile.ZipFile(served / f"fold_{fold}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in fold_files(root, fold):
                archive.write(file, file.relative_to(root))
                file.unlink()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def log_request(self, *arguments):
            asked.append(Path(self.path).name)

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(pannuke, "URL", f"http://127.0.0.1:{server.server_port}/fold_{{fold}}.zip")
        data = prepared(download=True)
        prepared(download=True)
        server.shutdown()
    assert asked == ["fold_2.zip", "fold_3.zip"], "each once, and not the fold that was there"
    assert len(data.tiles.rows) == sum(COUNTS.values())
    assert (root / "fold_2.zip.sha256").is_file()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_fold(root, prepared, monkeypatch):
    files = fold_files(root, 1)
    n = 60
    open_memmap(files.images, "w+", np.float64, (n, 256, 256, 3))  # sparse files of 283 MB, which cost no disk
    open_memmap(files.masks, "w+", np.float64, (n, 256, 256, 6))
    np.save(files.tissues, np.array(["Colon"] * n))
    resident = []

    def watched(mask_hwc):
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)
        return merge_channels(mask_hwc)

    monkeypatch.setattr(pannuke, "merge_channels", watched)
    prepared()
    assert max(resident[20:]) - min(resident[:20]) < 100
