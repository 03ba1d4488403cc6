"""On real tiles: EndoNuke (IHC, 0.5 um/px) against H&E of many organs (0.25 um/px)."""

import numpy as np
import pytest

from ihc2he.data.unpaired import UnpairedDataModule
from ihc2he.images.decoding import read_image


@pytest.fixture
def data(realdata, tmp_path):
    data = UnpairedDataModule(
        ihc=str(realdata / "endonuke/dataset/images"),
        he=str(realdata / "he_nuclei/images"),
        mpp_ihc=0.5,
        mpp_he=0.25,
        crop_size=128,
        num_workers=0,
        store=str(tmp_path / "store"),
    )
    data.prepare_data()
    data.setup()
    return data


def test_both_sets_load_at_half_a_micrometre(data, realdata):
    assert data.target_mpp == 0.5
    assert len(data.tiles.rows) == 181 + 38
    by_name = {row["name"]: i for i, row in enumerate(data.tiles.rows)}
    name = "TCGA-2Z-A9J9-01A-01-TS1.png"
    tile = read_image(realdata / "he_nuclei/images" / name).astype(float)
    means = tile.reshape(500, 2, 500, 2, 3).mean((1, 3))  # halving by area is the mean of 2 x 2 pixels
    assert np.abs(data.tiles.read(by_name[name], "he") - means).max() <= 1
    batch = next(iter(data.train_dataloader()))
    assert batch["ihc"].shape == batch["he"].shape == (1, 3, 128, 128)


def test_the_statistics_tell_the_stains_apart(data):
    rows = [row["stains"] for row in data.tiles.rows]
    assert 0.1 < np.mean([row["ihc_dab"] for row in rows if "ihc_dab" in row]) < 0.5
    assert all(0 < row.get("ihc_tissue", 1) <= 1 for row in rows)
    assert min(row.get("ihc_blue_share", 1) for row in rows) > 0.33
    assert np.median([row["he_blue_share"] for row in rows if "he_blue_share" in row]) < 0.3
