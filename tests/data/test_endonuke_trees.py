"""Whole trees of EndoNuke: simulated ones with their truth, and the real tiles."""

import csv

import numpy as np
import pytest

from ihc2he.data.endonuke import EndoNukeDataModule
from ihc2he.images.decoding import read_image
from ihc2he.images.labels import read_labels
from ihc2he.simulate import write_endonuke


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return write_endonuke(tmp_path_factory.mktemp("endonuke") / "sim", tiles=14, size=24, seed=3)


def ready(root, **arguments):
    data = EndoNukeDataModule(root=str(root), **({"num_workers": 0} | arguments))
    data.prepare_data()
    data.setup()
    return data


def tiles(root, **arguments):
    return {int(tile.name): tile for tile in ready(root, **arguments).tiles["test"]}


def test_simulated_tissue_comes_with_its_truth(simulated):
    data = ready(simulated, batch_size=20)
    assert data.truth_classes == ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]
    (batch,) = data.test_dataloader()
    k = batch["name"].index("9")
    assert batch["mpp"][k] == 0.25
    assert batch["mpp"].count(0.5) == 13
    assert batch["image"][k].shape == batch["he"][k].shape == (48, 48, 3)
    name = "dataset/images/9.png"
    assert (batch["inst"][k] == read_labels(simulated / "truth" / "instances" / name)).all()
    assert (batch["type"][k] == read_labels(simulated / "truth" / "types" / name)).all()
    assert (batch["he"][k] == read_image(simulated / "truth" / "he" / name)).all()
    for inst, types in zip(batch["inst"], batch["type"], strict=True):
        assert ((inst > 0) == (types > 0)).all()


def test_the_types_are_those_of_the_class_names(simulated):
    data = ready(simulated, batch_size=20)
    (batch,) = data.test_dataloader()
    for name, inst, types in zip(batch["name"], batch["inst"], batch["type"], strict=True):
        with (simulated / "truth" / "markers" / "dataset" / "images" / f"{name}.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                kinds = set(types[inst == int(row["id"])].tolist())
                assert kinds <= {data.truth_classes.index(row["type"]) + 1}


def test_simulated_tiles_of_a_case_are_a_group(simulated):
    groups = {number: tile.group for number, tile in tiles(simulated).items()}
    assert groups[0] == groups[12] == "case 0"
    assert len(set(groups.values())) == 12
    readers = tiles(simulated)[1].readers
    assert sorted(readers) == ["ptg1", "ptg2", "ptg3", "stud1", "stud2", "stud3", "stud4"]
    assert next(iter(readers)) == "ptg1", "named by the list unique"


def test_simulate_fills_the_folder_once(tmp_path):
    settings = {"tiles": 2, "size": 24, "seed": 0}
    data = ready(tmp_path / "sim", simulate=settings)
    assert len(data.tiles["test"]) == 2
    before = (tmp_path / "sim" / "dataset" / "images" / "0.png").stat().st_mtime_ns
    ready(tmp_path / "sim", simulate=settings)
    assert (tmp_path / "sim" / "dataset" / "images" / "0.png").stat().st_mtime_ns == before


def test_the_real_tiles_load_as_they_are(realdata, caplog):
    data = ready(realdata / "endonuke", batch_size=64)
    batches = list(data.test_dataloader())
    images = [image for batch in batches for image in batch["image"]]
    points_n3 = np.concatenate([points for batch in batches for points in batch["points"]])
    assert len(images) == 181
    assert {image.shape for image in images} == {(200, 200, 3)}
    assert {mpp for batch in batches for mpp in batch["mpp"]} == {0.5}
    # 16,735 lines, of which 24 repeat a point of their file
    assert np.bincount(points_n3[:, 2]).tolist() == [11897 - 22, 4746 - 2, 92]
    assert "left out 24 repeated points" in caplog.text
    groups = [group for batch in batches for group in batch["group"]]
    assert {name: groups.count(name) for name in groups} == {"321-456": 38, "668-784": 49, "4560-4787": 94}
