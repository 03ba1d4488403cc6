from dataclasses import replace

import numpy as np
import pytest

from ihc2he.simulate.scene import cut, draw_block
from ihc2he.simulate.tile import draw_case
from ihc2he.simulate.tissue import BREAST, ENDOMETRIUM, Marker


def draw(tissue, seed, marker="nucleus", level=0, size=160, mpp=0.5, **changes):
    """One section and its case; `changes` replace habits of the tissue."""
    case = draw_case(replace(tissue, outside=0.0, **changes), Marker(marker, level), seed, 0)
    rng = np.random.default_rng(seed)
    return cut(draw_block(case.tissue, size, mpp, rng), rng), case


@pytest.fixture(scope="session")
def draw_section():
    return draw


@pytest.fixture(scope="session", params=[(BREAST, 1), (ENDOMETRIUM, 2), (BREAST, 3)], ids=["breast", "endo", "breast2"])
def section_and_case(request):
    return draw(*request.param)


@pytest.fixture(scope="session")
def snapshot():
    """All files of a folder, by relative path."""
    return lambda root: {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
