import numpy as np
import pytest

from ihc2he.data.exploration import stain_statistics

HEMATOXYLIN = np.array([0.650, 0.704, 0.286]) / np.linalg.norm([0.650, 0.704, 0.286])
DAB = np.array([0.268, 0.570, 0.776]) / np.linalg.norm([0.268, 0.570, 0.776])


def test_known_concentrations_are_found_on_the_tissue_half():
    od = np.zeros((600, 400, 3))
    od[:, :200] = 0.4 * HEMATOXYLIN + 0.6 * DAB
    image = np.round(255 * 10**-od).astype(np.uint8)
    found = stain_statistics(image, "ihc")
    assert found["ihc_tissue"] == 0.5
    assert found["ihc_hematoxylin"] == pytest.approx(0.2, abs=0.005)
    assert found["ihc_dab"] == pytest.approx(0.3, abs=0.005)
