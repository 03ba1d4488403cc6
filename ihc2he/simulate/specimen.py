"""The plan of a simulated slide: what is where, as a function of the position.

Shape suffixes: h, w = height, width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from ihc2he.simulate.geometry import (
    Fields,
    Plan,
    epithelium,
    field_scales,
    signed_distance,
    structures,
    transverse,
    weave,
)
from ihc2he.simulate.lattice import Frame, noise_at
from ihc2he.simulate.tile import Case, draw_case
from ihc2he.simulate.tissue import Marker, Tissue
from ihc2he.stain.noise import Map

_MARKER = Marker("nucleus")
_TISSUE = Tissue(
    epithelium=0.5,
    width=60.0,
    layer=15.0,
    gaps=0.2,
    inflammation=0.1,
    outside=0.5,
    epithelial_density=20.0,
    stromal_density=8.0,
)
_TEARS = 0.01  # share of the tissue that is torn away
_SIDE = 1024  # px, of a block
_SOWING = 1.0  # um/px of the plan on which nuclei are sown
GLASS = 1.2  # of the field of the outline: no tissue, however ragged its border
_WEAVE_SD = 0.28  # of the texture of fibres before it is scaled
_SLIDE = 1 << 33  # seed of what is drawn for a slide, beside those of cases


@dataclass(frozen=True)
class Specimen:
    """All that is drawn at once for a slide."""

    size: int  # px
    step: int  # px between the positions of the plan on which nuclei are sown
    side: int  # px, of a block; a multiple of the step
    mpp: float
    stain: str
    seed: int
    case: Case
    angle: float  # rad, main direction of the fibres
    pieces: tuple[tuple[float, float, float, float], ...]  # of tissue: centre (y, x) and half axes, in sizes
    fold: tuple[float, float, float]  # position and direction (rad) of a line, and width in um
    ink: tuple[float, float, float]
    colour: tuple[float, float, float]  # of the ink, optical density

    @property
    def blocks(self) -> int:
        """Blocks in a row, and rows of blocks."""
        return -(-self.size // self.side)

    def noise(self, frame: Frame, name: str, scale: float) -> Map:
        """Return a field of a correlation length in um."""
        return noise_at(frame, name, max(scale / self.mpp, 0.5), self.seed)


def draw_specimen(size: int, stain: str, mpp: float, seed: int) -> Specimen:
    """Return a slide that is still to be drawn; see `ihc2he.simulate.slide.write_slide`."""
    rng = np.random.default_rng([seed, _SLIDE])
    case = draw_case(_TISSUE, _MARKER, seed, 0)
    case = replace(case, ihc=replace(case.ihc, positive=float(rng.uniform(0.2, 0.5))))
    pieces = (
        (rng.uniform(0.45, 0.5), rng.uniform(0.32, 0.35), rng.uniform(0.33, 0.38), rng.uniform(0.2, 0.24)),
        (rng.uniform(0.45, 0.6), rng.uniform(0.76, 0.8), rng.uniform(0.2, 0.28), rng.uniform(0.1, 0.13)),
    )
    inks = ((0.9, 0.5, 0.15), (0.75, 0.2, 0.5), (1.1, 1.05, 1.0))  # blue, green, black
    step = max(1, round(_SOWING / mpp))
    return Specimen(
        size=size,
        step=step,
        side=_SIDE // step * step,
        mpp=mpp,
        stain=stain,
        seed=seed,
        case=case,
        angle=rng.uniform(0, np.pi),
        pieces=pieces,
        fold=(rng.uniform(0.3, 0.6), rng.uniform(0.2, 1.3), min(40.0, 0.02 * size * mpp)),
        ink=(rng.uniform(0.78, 0.9), rng.uniform(1.4, 1.7), min(300.0, 0.03 * size * mpp)),
        colour=inks[rng.integers(len(inks))],
    )


def fields_of(slide: Specimen, frame: Frame) -> Fields:
    """Return the fields of a plan, and where tissue ends."""
    found = {name: slide.noise(frame, name, scale) for name, scale in field_scales(slide.case.tissue).items()}
    found["epithelium"] = found["epithelium"] + np.float32(0.5) * slide.noise(frame, "region", 500.0)
    found["outside"] = np.maximum(found["outside"] + np.float32(ndtri(_TEARS)), outline(slide, frame))
    return found


def outline(slide: Specimen, frame: Frame) -> Map:
    """Return a map that is positive outside of the pieces of tissue, and rises by 1 in 90 um."""
    y_hw, x_hw = frame.y_n[:, None] / slide.size, frame.x_n / slide.size
    rough_hw = slide.noise(frame, "outline", slide.size * slide.mpp / 16)
    out_hw = np.full(frame.shape, np.inf, np.float32)
    for y, x, tall, wide in slide.pieces:
        radius_hw = np.hypot((y_hw - y) / tall, (x_hw - x) / wide).astype(np.float32)
        distance = np.float32(min(tall, wide) * slide.size * slide.mpp / 90)
        out_hw = np.minimum(out_hw, (radius_hw - 1 + np.float32(0.07) * rough_hw) * distance)
    return out_hw


def plan_of(slide: Specimen, frame: Frame, fields: Fields, thread_hw: Map) -> Plan:
    """Return the plan of a part of a slide.

    Args:
        slide: the slide.
        frame: the part.
        fields: from `fields_of`.
        thread_hw: noise, of which the texture of fibres is made.
    """
    tissue, mpp = slide.case.tissue, slide.mpp * frame.step
    inside_hw = epithelium(fields, tissue)
    depth_hw = signed_distance(inside_hw, mpp)
    corner = round(frame.top / frame.step), round(frame.left / frame.step)
    # Fibres wrap around glands, without an origin of the coordinates, which would be seen far from it.
    across_hw = transverse(fields, mpp, slide.angle, corner) - 24 * np.exp(np.minimum(depth_hw, 0) / 6)
    fibre_hw, weave_hw = weave(fields, across_hw, thread_hw, mpp)
    return structures(fields, tissue, mpp, inside_hw, depth_hw, fibre_hw, weave_hw / np.float32(_WEAVE_SD))


def line(slide: Specimen, frame: Frame, name: str) -> Map:
    """Return a bent band across the slide, 0 to 1."""
    position, angle, width = getattr(slide, name)
    um_y, um_x = frame.y_n[:, None] * slide.mpp, (frame.x_n - position * slide.size) * slide.mpp
    across_hw = (um_x * np.sin(angle) - um_y * np.cos(angle)).astype(np.float32)
    across_hw += np.float32(width) * slide.noise(frame, name, 4 * width)
    return (1 / (1 + np.exp(np.minimum((np.abs(across_hw) - width / 2) / (0.5 * slide.mpp), 60)))).astype(np.float32)
