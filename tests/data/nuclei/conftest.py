"""A folder of annotated tiles, and DataModules of it."""

import numpy as np
import pytest

from ihc2he.data.nuclei import NucleiDataModule


@pytest.fixture(scope="session")
def labels():
    """Two nuclei of 12 x 12 px, numbers 3 and 9 of types 2 and 1, and one of 4 x 4 px, number 700, type 2."""
    inst, types = np.zeros((2, 48, 48), np.uint16)
    for corner, side, number, kind in ((4, 12, 3, 2), (24, 12, 9, 1), (40, 4, 700, 2)):
        window = np.s_[corner : corner + side, corner : corner + side]
        inst[window], types[window] = number, kind
    return inst, types


@pytest.fixture
def root(tmp_path, write_image, make_tile, labels):
    root = tmp_path / "nuclei"
    inst, types = labels
    for k in range(6):
        write_image(root / "images" / f"{k}.png", make_tile(k, 48))
        write_image(root / "instances" / f"{k}.png", inst)
        write_image(root / "types" / f"{k}.png", types.astype(np.uint8))
    return root


@pytest.fixture
def prepared(tmp_path):
    def make(**arguments):
        defaults = {
            "root": str(tmp_path / "nuclei"),
            "store": str(tmp_path / "store"),
            "classes": ["round", "square"],
            "mpp": 0.25,
            "crop_size": 32,
            "batch_size": 2,
            "num_workers": 0,
        }
        data = NucleiDataModule(**(defaults | arguments))
        data.prepare_data()
        data.setup()
        return data

    return make
