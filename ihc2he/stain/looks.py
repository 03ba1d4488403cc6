"""How IHC slides differ: the ranges of their stains, markers and scanners, and one slide drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import require_setting
from ihc2he.stain.measuring import StainStatistics, Vector

_KEY = "data.augmentation.paint.ranges"

Site = Literal["nucleus", "membrane", "cytoplasm"]
Range = tuple[float, float]

SITES: tuple[Site, ...] = ("nucleus", "membrane", "cytoplasm")
_VECTORS = ("hematoxylin", "dab")
_MEMBRANOUS, _COMPACT = 0.6, 0.8  # of `StainStatistics.solid`: below the one membranes, above the other none
_AROUND = 0.03  # of `StainStatistics.enclosed`: above it the marker is around nuclei
# What has to be painted for a unit to be measured: dense DAB scatters, and nuclei have pale outlines.
_AS_MEASURED = {"strength": 0.9, "counterstain": 1.15}
_THIN = 1.4  # of what is painted around nuclei, as it is thin or uneven
_JITTER = 0.15  # of the logarithm of a measured amount


@dataclass(frozen=True)
class Look:
    """One IHC slide; amounts are optical densities along unit stain vectors.

    Attributes:
        site: where the marker is.
        hematoxylin: its unit stain vector.
        dab: its unit stain vector.
        counterstain: hematoxylin in a typical nucleus.
        pallor: hematoxylin outside of nuclei, as a share of what the H&E suggests.
        flatness: 0 = chromatin has the contrast of the H&E, 1 = none.
        positive: share of the cells with the marker.
        clustering: 0 = positive cells are scattered, larger = in patches.
        by_type: whether the types of nuclei differ in that share.
        strength: DAB of a typical positive cell.
        spread: standard deviation of its logarithm from cell to cell.
        texture: 0 = DAB is even in a nucleus, 1 = follows its chromatin.
        blocking: hematoxylin falls to exp(-blocking * DAB) under DAB.
        edge: um, softness of the outline of DAB in nuclei.
        leak: DAB of the cytoplasm around positive nuclei or within positive membranes, relative to `strength`.
        reach: um from the outline of a nucleus to the membrane.
        width: um, of membranes.
        completeness: of membranes, 0 = broken, 1 = closed.
        background: DAB of all tissue.
        unevenness: of the strength of DAB over the image.
        grain: contrast of DAB from pixel to pixel.
        stroma: of the tint of tissue.
        warmth: of the colour of that tint, 0 = hematoxylin's, 1 = DAB's.
        scatter: grey per DAB above 0.45, because dense precipitate absorbs all colours.
        glare: stray light that reaches every pixel, relative to white.
        glass: colour of empty glass, 0 to 1 per channel.
        blur: um, sigma.
        sharpening: weight of the unsharp mask.
        noise: grey levels.
        jpeg: quality of the file; 0 = not compressed.
    """

    site: Site
    hematoxylin: Vector
    dab: Vector
    counterstain: float
    pallor: float
    flatness: float
    positive: float
    clustering: float
    by_type: bool
    strength: float
    spread: float
    texture: float
    blocking: float
    edge: float
    leak: float
    reach: float
    width: float
    completeness: float
    background: float
    unevenness: float
    grain: float
    stroma: float
    warmth: float
    scatter: float
    glare: float
    glass: Vector
    blur: float
    sharpening: float
    noise: float
    jpeg: int


@dataclass(frozen=True)
class Ranges:
    """From what to what slides differ: of `Look`'s attributes the least and the most, equally likely between.

    Attributes:
        sites: chance of each site of the marker, in the order of `SITES`; they add to 1.
        none: chance that no cell is positive.
        all: chance that every cell is.
        by_type: chance that types of nuclei differ in their share of positive cells.
        faint: chance that the background is at most a fifth of its range.
        compressed: chance of a JPEG.
        vector_jitter: standard deviation of the components of stain vectors, besides the way between their two ends.
        tint: largest difference of the colour of glass between channels.
        hematoxylin, dab: two stain vectors each; a slide's is between them.

    Raises:
        ConfigError: for a range that is not two numbers in order, or has values that are impossible.
    """

    sites: tuple[float, float, float] = (0.6, 0.25, 0.15)
    none: float = 0.12
    all: float = 0.12
    by_type: float = 0.5
    faint: float = 0.4
    compressed: float = 0.5
    vector_jitter: float = 0.02
    tint: float = 0.02
    hematoxylin: tuple[Vector, Vector] = ((0.65, 0.66, 0.38), (0.85, 0.48, 0.22))
    dab: tuple[Vector, Vector] = ((0.27, 0.54, 0.79), (0.42, 0.55, 0.72))
    counterstain: Range = (0.12, 0.6)
    pallor: Range = (0.2, 0.8)
    flatness: Range = (0.0, 0.5)
    positive: Range = (0.05, 1.0)
    clustering: Range = (0.0, 1.5)
    strength: Range = (0.2, 1.3)
    spread: Range = (0.15, 0.5)
    texture: Range = (0.0, 0.8)
    blocking: Range = (0.1, 1.2)
    edge: Range = (0.2, 0.5)
    leak: Range = (0.0, 0.3)
    reach: Range = (1.5, 4.5)
    width: Range = (0.4, 0.9)
    completeness: Range = (0.2, 1.2)
    background: Range = (0.0, 0.3)
    unevenness: Range = (0.0, 0.4)
    grain: Range = (0.0, 0.6)
    stroma: Range = (0.02, 0.12)
    warmth: Range = (0.2, 0.8)
    scatter: Range = (0.2, 1.0)
    glare: Range = (0.0, 0.08)
    glass: Range = (0.83, 1.0)
    blur: Range = (0.15, 0.4)
    sharpening: Range = (0.0, 0.6)
    noise: Range = (0.0, 5.0)
    jpeg: Range = (60, 95)

    def __post_init__(self) -> None:
        for name in ("none", "all", "by_type", "faint", "compressed"):
            require_setting(_KEY, name, value := getattr(self, name), 0 <= value <= 1, "a chance from 0 to 1")
        together = self.none + self.all
        require_setting(_KEY, "none", f"{self.none} and all={self.all}", together <= 1, "chances that add to 1 at most")
        whole = len(self.sites) == len(SITES) and min(self.sites) >= 0 and abs(sum(self.sites) - 1) < 1e-6
        require_setting(_KEY, "sites", self.sites, whole, f"chances of {', '.join(SITES)} that add to 1")
        for name in _VECTORS:
            ends = np.asarray(getattr(self, name), np.float64)
            possible = ends.shape == (2, 3) and ends.min() >= 0 and ends.max() > 0
            require_setting(_KEY, name, getattr(self, name), possible, "two stain vectors of three optical densities")
        for name in _RANGES:
            low, high = getattr(self, name)
            least, most = _LIMITS.get(name, (0.0, float("inf")))
            said = f"two numbers in order, from {least:g}" + ("" if most == float("inf") else f" to {most:g}")
            require_setting(_KEY, name, [low, high], least <= low <= high <= most, said)


_RANGES = tuple(one.name for one in fields(Ranges) if one.type == "Range")
_LIMITS = {
    "positive": (0.0, 1.0),
    "glass": (0.5, 1.0),
    "jpeg": (1.0, 100.0),
    "flatness": (0.0, 1.0),
    "warmth": (0.0, 1.0),
} | {name: (0.02, float("inf")) for name in ("edge", "width", "reach")}


def draw_look(ranges: Ranges, rng: np.random.Generator) -> Look:
    """Return a slide drawn from ranges.

    Args:
        ranges: from what to what slides differ.
        rng: source of randomness.
    """
    drawn: dict[str, Any] = {name: float(rng.uniform(*getattr(ranges, name))) for name in _RANGES}
    chance, faint, compressed, by_type = rng.random(4)
    if chance < ranges.none + ranges.all:
        drawn["positive"] = 0.0 if chance < ranges.none else 1.0
    if faint < ranges.faint:
        drawn["background"] = ranges.background[0] + (drawn["background"] - ranges.background[0]) / 5
    for name in _VECTORS:
        first_c, second_c = np.asarray(getattr(ranges, name), np.float64)
        drawn[name] = _jittered(first_c + rng.random() * (second_c - first_c), ranges.vector_jitter, rng)
    tinted_c = np.minimum(drawn["glass"] + ranges.tint * rng.uniform(-0.5, 0.5, 3), 1)
    return Look(
        **drawn
        | {
            "site": SITES[int(rng.choice(len(SITES), p=ranges.sites))],
            "glass": tuple(tinted_c.tolist()),
            "by_type": bool(by_type < ranges.by_type),
            "jpeg": round(drawn["jpeg"]) if compressed < ranges.compressed else 0,
        }
    )


def look_like(tile: StainStatistics, ranges: Ranges, rng: np.random.Generator) -> Look:
    """Return a slide with the measured stains of a tile; what was not measured is drawn from ranges.

    Args:
        tile: a real IHC tile.
        ranges: from what to what slides differ.
        rng: source of randomness.
    """
    drawn = draw_look(ranges, rng)
    own: dict[str, Any] = {"glass": tile.glass}
    for name in _VECTORS:
        if (vector := getattr(tile, name)) is not None:
            own[name] = _jittered(np.asarray(vector), ranges.vector_jitter / 2, rng)
    for name in ("counterstain", "strength", "spread", "background"):
        if (amount := getattr(tile, name)) is not None:
            own[name] = amount * _AS_MEASURED.get(name, 1.0) * float(np.exp(rng.normal(0, _JITTER)))
    if tile.strength is None or tile.solid is None or tile.enclosed is None:
        return replace(drawn, **own, positive=0.0)
    if tile.solid < _MEMBRANOUS:
        own["site"] = "membrane"
    elif tile.enclosed > _AROUND:
        own["site"] = "membrane" if rng.random() < 0.5 else "cytoplasm"
    elif tile.solid > _COMPACT:
        own |= {"site": "nucleus", "positive": float(np.clip(tile.positive + rng.normal(0, 0.1), 0, 1))}
    if own.get("site") in ("membrane", "cytoplasm"):  # what is between is in the cells
        own |= {"background": own["background"] * rng.random(), "leak": tile.background / tile.strength}
        own["strength"] *= _THIN
    return replace(drawn, **own)


def _jittered(vector_c: NDArray[np.float64], sd: float, rng: np.random.Generator) -> Vector:
    jittered_c = np.maximum(vector_c / np.linalg.norm(vector_c) + rng.normal(0, sd, 3), 0.02)
    red, green, blue = (jittered_c / np.linalg.norm(jittered_c)).tolist()
    return red, green, blue
