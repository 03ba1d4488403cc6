"""Simulated tissue to try the page on."""

from functools import cache

from ihc2he.images.source import ArraySource
from ihc2he.simulate.endonuke import MARKER, MPP, SCANNER
from ihc2he.simulate.scene import cut, draw_block
from ihc2he.simulate.tile import draw_case, photograph_ihc, tile_rng
from ihc2he.simulate.tissue import ENDOMETRIUM

SIDE = 512  # px
CASE = 1  # with positive and negative nuclei


@cache
def draw_sample(side: int = SIDE) -> ArraySource:
    """Return a simulated IHC tile."""
    rng = tile_rng(0, CASE)
    case = draw_case(ENDOMETRIUM, MARKER, 0, CASE, **SCANNER)
    block = draw_block(case.tissue, side, MPP, rng)
    return ArraySource(photograph_ihc(cut(block, rng), case, rng), MPP, "simulated.png")
