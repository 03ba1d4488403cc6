"""Slides of which parts do not decode."""

import numpy as np
import pytest

from ihc2he.errors import DataError
from ihc2he.images import forgiving
from ihc2he.images.forgiving import Forgiving
from ihc2he.images.source import ArraySource


class Damaged(ArraySource):
    """A grey image that does not decode from column 200 on."""

    def read(self, rows, columns, level=0):
        if columns.stop > 200 and rows.stop > rows.start:
            msg = "damaged"
            raise DataError(msg)
        return super().read(rows, columns, level)


@pytest.mark.parametrize(("most", "part"), [(256, 64), (2, 128)])
def test_what_does_not_decode_is_white_and_known(monkeypatch, most, part):
    monkeypatch.setattr(forgiving, "_MOST", most)
    monkeypatch.setattr(forgiving, "_LARGE", 128)
    source = Forgiving(Damaged(np.full((300, 512, 3), 90, np.uint8)))
    for _ in range(2):
        seen = source.read(slice(0, 300), slice(0, 512))
        lost_hw = source.lost_map(300, 512)
        assert np.array_equal(seen[..., 0] == 255, lost_hw)
        assert lost_hw[:, 200:].all()
        assert not lost_hw[:, : 200 - part].any()
    assert source.lost_map(3, 5).tolist() == [[False, True, True, True, True]] * 3
