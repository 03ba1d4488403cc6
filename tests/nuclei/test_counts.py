import math

import numpy as np
import pytest

from ihc2he.errors import ConfigError
from ihc2he.nuclei.counts import Counts, check_thresholds, count_by_class, pooled, strengths
from ihc2he.nuclei.table import IHC_STAINS, nuclei_table
from ihc2he.stain.deconvolution import DAB


def stained(od_n, types_n):
    """Return the table of nuclei of one pixel each, with these mean DAB densities."""
    brown = np.array(DAB) / np.linalg.norm(DAB)
    image = np.round(255 * 10 ** -(np.array(od_n)[None, :, None] * brown)).astype(np.uint8)
    inst_hw = np.arange(1, len(od_n) + 1)[None]
    return nuclei_table(inst_hw, np.array(types_n), mpp=0.5, image=image, stains=IHC_STAINS)


def test_nuclei_are_counted_by_class_and_strength():
    table = stained([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.3], [1, 1, 1, 1, 2, 2, 0])
    counts = count_by_class(table, ["epithelium", "stroma", "other"])
    assert counts == {
        "epithelium": Counts(2, 1, 1, 0),
        "stroma": Counts(0, 0, 0, 2),
        "other": Counts(0, 0, 0, 0),
        "unknown": Counts(0, 1, 0, 0),
        "all": Counts(2, 2, 1, 2),
    }


def test_unknown_types_are_counted_only_where_some_are_beside_classes():
    assert list(count_by_class(stained([0.1], [0]), ["a"])) == ["a", "unknown", "all"]
    assert list(count_by_class(stained([0.1], [1]), ["a"])) == ["a", "all"]
    assert list(count_by_class(stained([0.1], [0]), [])) == ["all"]


def test_percentages_and_h_score_of_ten_nuclei():
    counts = Counts(4, 3, 2, 1)
    assert (counts.nuclei, counts.positive) == (10, 6)
    assert counts.percent_positive == 60
    assert counts.h_score == 1 * 30 + 2 * 20 + 3 * 10


def test_without_nuclei_there_is_no_percentage():
    nothing = count_by_class(nuclei_table(np.zeros((3, 3), int), mpp=1, image=np.zeros((3, 3, 3), np.uint8),
                                          stains=IHC_STAINS), ["a"])  # fmt: skip
    assert nothing == {"a": Counts(0, 0, 0, 0), "all": Counts(0, 0, 0, 0)}
    assert math.isnan(nothing["all"].percent_positive)
    assert math.isnan(nothing["all"].h_score)


def test_a_density_on_a_threshold_has_reached_it():
    assert strengths(np.array([0.2, 0.4, 0.6, 0.19999])).tolist() == [1, 2, 3, 0]
    assert strengths(np.array([0.2, 0.4]), [0.1, 0.15, 0.4]).tolist() == [2, 3]


def test_images_are_pooled_by_class_though_one_lacks_it():
    first, second = {"a": Counts(1, 2, 3, 4), "all": Counts(1, 2, 3, 4)}, {"all": Counts(5, 0, 0, 1)}
    assert pooled([first, second]) == {"a": Counts(1, 2, 3, 4), "all": Counts(6, 2, 3, 5)}
    assert pooled([]) == {}


@pytest.mark.parametrize("thresholds", [[0.2, 0.4], [0.4, 0.2, 0.6], [0.2, 0.2, 0.6], [0, 0.4, 0.6]])
def test_thresholds_that_do_not_rise_are_refused(thresholds):
    with pytest.raises(ConfigError, match=r"expected three rising optical densities, such as \[0\.2, 0\.4, 0\.6\]"):
        check_thresholds(thresholds)


def test_what_was_not_measured_cannot_be_counted():
    with pytest.raises(ValueError, match="density of 1 of 2 nuclei is NaN"):
        strengths(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match=r"has the stains \[\]; counting needs 'dab'"):
        count_by_class(nuclei_table(np.array([[1]]), mpp=1), ["a"])
