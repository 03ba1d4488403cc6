"""What the stains of an IHC tile are like: their colours, their strengths, and how much of the tissue is brown.

Shape suffixes: h, w = height, width; c = colour (3); n = pixels; s = stain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.stain.deconvolution import IHC, optical_density, unmixing_matrix
from ihc2he.stain.noise import Map
from ihc2he.stain.white import relative_to_white, white_point

Vector = tuple[float, float, float]

_TISSUE = 0.05  # mean optical density of the channels, from which on a pixel is tissue
_COLOURED = 0.2  # length of the optical density, from which on its direction tells the stain
_BLUE, _BROWN = -0.1, 0.15  # blue less red of that direction: below, hematoxylin; above, DAB
_LEAST = 0.005  # share of the tissue that shows a stain's own colour
_BLUE_NUCLEUS = 0.1  # hematoxylin of a nucleus
_POSITIVE = 0.15  # DAB of a positive pixel
_FINE = 0.9  # um, radius of an opening that membranes do not survive and nuclei do
_SMOOTH, _GAP = 0.3, 0.75  # um; gaps in membranes up to twice as wide are closed
_NUCLEUS = (6.0, 200.0)  # um^2, area of what may be a nucleus
_LEAST_TISSUE = 0.02  # share of a tile


@dataclass(frozen=True)
class StainStatistics:
    """What the stains of an IHC tile are like; amounts are optical densities along unit stain vectors.

    Attributes:
        glass: colour of empty glass, 0 to 1 per channel.
        hematoxylin: unit stain vector; None where too little of the tile is blue.
        dab: unit stain vector; None where too little of the tile is brown.
        counterstain: hematoxylin in nuclei without DAB; None where there are none.
        positive: brown as a share of the brown and the blue pixels, which stand for nuclei.
        strength: median DAB of the brown pixels; None where there are none.
        spread: standard deviation of the logarithm of DAB there; None where there are none.
        background: median DAB of the tissue that is neither.
        solid: share of the brown pixels in pieces wider than membranes; None where there are none.
        enclosed: area of blue pieces as large as nuclei within brown, relative to the brown; None where there is none.
    """

    glass: Vector
    hematoxylin: Vector | None
    dab: Vector | None
    counterstain: float | None
    positive: float
    strength: float | None
    spread: float | None
    background: float
    solid: float | None
    enclosed: float | None


def measure(image: NDArray[np.uint8], mpp: float) -> StainStatistics | None:
    """Return what the stains of an IHC tile are like; None where it is almost empty.

    Args:
        image: HxWx3 uint8 RGB.
        mpp: um/px.
    """
    white = white_point(image)
    od_hwc = optical_density(relative_to_white(image, white))
    tissue_hw = od_hwc.mean(-1) > _TISSUE
    if tissue_hw.mean() < _LEAST_TISSUE:
        return None
    hematoxylin, dab = _vectors(od_hwc[tissue_hw])
    smooth_hwc: Map = cv2.GaussianBlur(od_hwc, (0, 0), _SMOOTH / mpp)
    unmix_cs = unmixing_matrix((hematoxylin or IHC[0], dab or IHC[1]))
    h_hw, dab_hw = np.moveaxis(smooth_hwc @ unmix_cs, -1, 0)
    brown_hw = tissue_hw & (dab_hw > max(_otsu(dab_hw[tissue_hw]), _POSITIVE)) & (dab_hw > h_hw)
    rest_hw = tissue_hw & ~brown_hw
    blue_hw = rest_hw & (h_hw > max(_otsu(h_hw[rest_hw]), _BLUE_NUCLEUS)) & (dab_hw < 0.5 * h_hw)
    near_hw = cv2.dilate((brown_hw | blue_hw).astype(np.uint8), np.ones((3, 3), np.uint8))
    pale_hw = tissue_hw & (near_hw == 0)
    some_brown = brown_hw.mean() > _LEAST * tissue_hw.mean()
    amount_n = dab_hw[brown_hw]
    return StainStatistics(
        glass=tuple(v / 255 for v in white),  # type: ignore[arg-type]
        hematoxylin=hematoxylin,
        dab=dab,
        counterstain=float(np.median(h_hw[blue_hw])) if blue_hw.any() else None,
        positive=float(brown_hw.sum() / (brown_hw | blue_hw).sum()) if some_brown else 0.0,
        strength=float(np.median(amount_n)) if some_brown else None,
        spread=float(np.log(amount_n).std()) if some_brown else None,
        background=max(float(np.median(dab_hw[pale_hw])), 0.0) if pale_hw.any() else 0.0,
        solid=_solid_share(brown_hw, mpp) if some_brown else None,
        enclosed=_enclosed_share(brown_hw, h_hw, dab_hw, mpp) if some_brown else None,
    )


def _vectors(od_nc: NDArray[np.float32]) -> tuple[Vector | None, Vector | None]:
    """Return the mean direction of the purest quarter of the blue and of the brown pixels."""
    length_n = np.linalg.norm(od_nc, axis=1)
    direction_nc = od_nc[length_n > _COLOURED] / length_n[length_n > _COLOURED, None]
    brownness_n = direction_nc[:, 2] - direction_nc[:, 0]
    found: list[Vector | None] = []
    for sign, limit in ((-1, _BLUE), (1, _BROWN)):
        own_n = sign * brownness_n > sign * limit
        if own_n.sum() < _LEAST * len(od_nc):
            found.append(None)
            continue
        # The others are mixed with the other stain, or so dense that they are nearly black.
        purest_n = own_n & (sign * brownness_n >= np.quantile(sign * brownness_n[own_n], 0.75))
        mean_c = direction_nc[purest_n].mean(0)
        red, green, blue = mean_c / np.linalg.norm(mean_c)
        found.append((float(red), float(green), float(blue)))
    return found[0], found[1]


def _otsu(values_n: NDArray[np.float32]) -> float:
    levels = np.clip(values_n * 200, 0, 255).astype(np.uint8).reshape(-1, 1)
    return cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 200


def _solid_share(brown_hw: NDArray[np.bool_], mpp: float) -> float:
    opened_hw = cv2.morphologyEx(brown_hw.astype(np.uint8), cv2.MORPH_OPEN, _disc(_FINE / mpp))
    return float(opened_hw.sum() / brown_hw.sum())


def _enclosed_share(brown_hw: NDArray[np.bool_], h_hw: Map, dab_hw: Map, mpp: float) -> float:
    """Return the area of blue holes in the brown: nuclei within membranes or cytoplasm have it, brown nuclei do not."""
    closed_hw = cv2.morphologyEx(brown_hw.astype(np.uint8), cv2.MORPH_CLOSE, _disc(_GAP / mpp))
    count, piece_hw, box_n5, _ = cv2.connectedComponentsWithStats(1 - closed_hw, connectivity=4)
    left_n, top_n, width_n, height_n, area_n = box_n5.T
    height, width = brown_hw.shape
    inner_n = (left_n > 0) & (top_n > 0) & (left_n + width_n < width) & (top_n + height_n < height)
    blue_n, h_n = (
        np.bincount(piece_hw.ravel(), values_hw.ravel(), count) / area_n for values_hw in (h_hw > 0.5 * dab_hw, h_hw)
    )
    least, most = (area / mpp**2 for area in _NUCLEUS)
    hole_n = inner_n & (area_n > least) & (area_n < most) & (blue_n > 0.5) & (h_n > 0.5 * _BLUE_NUCLEUS)
    return float(area_n[hole_n].sum() / brown_hw.sum())


def _disc(radius: float) -> NDArray[np.uint8]:
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)).astype(np.uint8)


def most_similar(of: StainStatistics, among: Sequence[StainStatistics], count: int) -> list[int]:
    """Return which statistics are nearest to others, the nearest first.

    Each number counts relative to its standard deviation `among` the statistics; what one of both lacks is left out.

    Args:
        of: the statistics that others are compared with.
        among: those that are compared.
        count: how many to return.
    """
    rows_nk = np.stack([_numbers(one) for one in (*among, of)])
    spread_k = np.maximum(np.nanstd(rows_nk, axis=0), 0.01)
    distance_n = np.nanmean(np.abs(rows_nk[:-1] - rows_nk[-1]) / spread_k, axis=1)
    return np.argsort(distance_n, kind="stable")[:count].tolist()


def _numbers(one: StainStatistics) -> NDArray[np.float64]:
    nothing = (np.nan,) * 3
    single = (one.counterstain, one.positive, one.strength, one.background, one.solid, one.enclosed)
    return np.array([*one.glass, *(one.hematoxylin or nothing), *(one.dab or nothing), *single], np.float64)
