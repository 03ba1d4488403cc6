from math import inf, isnan, nan

import pytest

from ihc2he.metrics.cards import badness

WORST_FIRST = {"higher": [-inf, -50, 0, 3, 50], "lower": [50, 3, 0, -50], "closest to 0": [-50, 20, -3, 2, 0],
               "closest to 1": [-50, 20, 3, 0.5, 1]}  # fmt: skip


@pytest.mark.parametrize("better", WORST_FIRST)
def test_values_are_ranked_by_the_direction_of_their_metric(better):
    values = WORST_FIRST[better]
    assert sorted(values, key=lambda value: -badness(value, better)) == values
    assert isnan(badness(nan, better))


@pytest.mark.parametrize("better", ["", "max"])
def test_an_unknown_direction_is_named(better):
    with pytest.raises(ValueError, match=f"'{better}' is not a direction"):
        badness(1, better)
