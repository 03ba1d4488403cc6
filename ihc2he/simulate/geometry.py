"""The plan of a tile: where epithelium, stroma, lumina, vessels, necrosis and empty glass are.

Every border is a level set of a smooth random field. A neighbouring section has the same fields, bent and mixed with a
little new noise. Lengths are in um; maps are on the tile's own pixel grid.

Shape suffixes: h, w = height, width.
"""

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ihc2he.simulate.tissue import Tissue
from ihc2he.stain.noise import Map, smooth_noise

_SEPTA = 0.12  # stroma is within this distance of the field's zero lines
THREAD = 0.4  # um, width of a fibre
_CLEFT = -1.9  # there are gaps between bundles of fibres where the weave is thinner than this

Fields = dict[str, Map]


class Region(IntEnum):
    """What a pixel of the plan belongs to."""

    OUTSIDE = 0
    STROMA = 1
    EPITHELIUM = 2
    LUMEN = 3
    GAP = 4
    VESSEL = 5
    BLOOD = 6
    NECROSIS = 7


@dataclass(frozen=True)
class Plan:
    """Maps of the structures in one section of one tile."""

    mpp: float
    region_hw: NDArray[np.uint8]  # Region
    solid_hw: Map  # 0 to 1, how dense the stroma is
    depth_hw: Map  # um inside the outline of epithelium; negative in the stroma
    normal_hw: Map  # rad, direction across the border of epithelium
    fibre_hw: Map  # rad, direction along the fibres of the stroma
    weave_hw: Map  # about unit variance, texture of the fibres
    lymph_hw: Map  # 0 to 1, lymphocyte aggregates
    crowd_hw: Map  # zero mean and unit variance, high where nuclei are dense
    wall_hw: Map  # um from the nearest vessel


def draw_fields(shape: tuple[int, int], mpp: float, tissue: Tissue, rng: np.random.Generator) -> Fields:
    """Return the random fields of a plan, each HxW with zero mean and unit variance."""
    return {name: smooth_noise(shape, scale / mpp, rng) for name, scale in field_scales(tissue).items()}


def neighbour(
    fields: Fields, tissue: Tissue, mpp: float, distance: float, rng: np.random.Generator
) -> tuple[Fields, Map]:
    """Return the fields of a section `distance` um away, and its displacement.

    The displacement is HxWx2 (x, y) in pixels: what the first section shows at p + displacement(p) the neighbour
    shows at p.
    """
    shape = next(iter(fields.values())).shape
    shift = rng.normal(0, 0.5 * distance, 2)
    bend = [smooth_noise(shape, 60.0 / mpp, rng) for _ in "xy"]
    move_hw2 = np.stack([(shift[k] + 0.25 * distance * bend[k]) / mpp for k in range(2)], -1).astype(np.float32)
    out = {}
    for name, scale in field_scales(tissue).items():
        # Over 4 um a structure of 40 um hardly changes; one of 4 um is replaced by another.
        keep = np.float32(np.exp(-0.5 * (distance / scale) ** 2))
        mixed_hw = keep * fields[name] + np.sqrt(1 - keep**2) * smooth_noise(shape, scale / mpp, rng)
        out[name] = _sample(mixed_hw, move_hw2)
    return out, move_hw2


def field_scales(tissue: Tissue) -> dict[str, float]:
    """Return the correlation length in um of each field."""
    return {
        "epithelium": tissue.width / 2,
        "septum": 0.55 * tissue.width,
        "border": 7.0,
        "outside": 90.0,
        "lymph": 28.0,
        "necrosis": 30.0,
        "vessel": 11.0,
        "gap": 3.2,
        "ragged": 0.9,
        "crowd": 22.0,
        "blood": 45.0,
        "bend_x": 30.0,
        "bend_y": 30.0,
        "crimp": 6.0,
    }


def draw_plan(fields: Fields, tissue: Tissue, mpp: float, angle: float, rng: np.random.Generator) -> Plan:
    """Return the plan that the fields define for this tissue.

    Args:
        fields: from `draw_fields` or `neighbour`.
        tissue: shares and lengths.
        mpp: pixel size, um/px.
        angle: rad, main direction of the fibres.
        rng: source of the fibres' texture.
    """
    inside_hw = epithelium(fields, tissue)
    depth_hw = signed_distance(inside_hw, mpp)
    across_hw = transverse(fields, mpp, angle)
    # Fibres wrap around glands: near epithelium the distance to it is used as the transverse coordinate.
    across_hw = across_hw - np.exp(np.minimum(depth_hw, 0) / 10) * (depth_hw + 0.5 * across_hw)
    weave_hw = smooth_noise(depth_hw.shape, max(THREAD / mpp, 0.6), rng)  # type: ignore[arg-type]
    fibre_hw, weave_hw = weave(fields, across_hw, weave_hw, mpp)
    return structures(
        fields, tissue, mpp, inside_hw, depth_hw, fibre_hw, weave_hw / max(weave_hw.std(), np.float32(1e-6))
    )


def epithelium(fields: Fields, tissue: Tissue) -> NDArray[np.bool_]:
    """Return where the epithelium is, its lumina included."""
    inside_hw = fields["epithelium"] + 0.12 * fields["border"] > -ndtri(tissue.epithelium)
    if tissue.layer:  # thin walls of stroma divide large patches of epithelium into glands
        inside_hw &= np.abs(fields["septum"]) > _SEPTA
    return inside_hw


def structures(
    fields: Fields,
    tissue: Tissue,
    mpp: float,
    inside_hw: NDArray[np.bool_],
    depth_hw: Map,
    fibre_hw: Map,
    weave_hw: Map,
) -> Plan:
    """Return the plan, of fields and of what has been derived from them.

    Args:
        fields: as for `draw_plan`.
        tissue: likewise.
        mpp: likewise.
        inside_hw: from `epithelium`.
        depth_hw: um inside it, from `signed_distance`.
        fibre_hw: from `weave`.
        weave_hw: from `weave`, of unit variance.
    """
    region_hw = np.full(inside_hw.shape, Region.STROMA, np.uint8)
    # Positive in dense stroma; the tissue gets thinner before it ends.
    solid_hw = -1.17 * ndtri(tissue.gaps) - (fields["gap"] + 0.35 * fields["ragged"] + 0.5 * fields["bend_x"])
    region_hw[solid_hw < 0] = Region.GAP
    lymph_hw = np.clip(1.5 * (fields["lymph"] + ndtri(max(tissue.inflammation, 1e-3))) + 0.5, 0, 1)
    region_hw[(region_hw == Region.GAP) & (lymph_hw > 0.7)] = Region.STROMA
    region_hw[weave_hw < _CLEFT] = Region.GAP
    flooded_hw = _above(fields["blood"], tissue.blood)
    region_hw[flooded_hw & (fields["gap"] > -0.9) & (lymph_hw < 0.5)] = Region.BLOOD
    vessel_hw = _above(fields["vessel"] + 0.1 * fields["border"], tissue.vessels) & (depth_hw < -4)
    region_hw[vessel_hw] = Region.VESSEL
    region_hw[inside_hw] = Region.EPITHELIUM
    if tissue.layer:
        region_hw[depth_hw > tissue.layer + 2.0 * fields["border"] + 0.3 * fields["ragged"]] = Region.LUMEN
    else:
        region_hw[_above(fields["necrosis"], tissue.necrosis) & (depth_hw > 15)] = Region.NECROSIS
    region_hw[_above(fields["outside"] + 0.12 * fields["border"] + 0.04 * fields["ragged"], tissue.outside)] = (
        Region.OUTSIDE
    )

    gx, gy = _gradient(depth_hw, 3.0 / mpp)
    normal_hw = np.arctan2(gy, gx)
    return Plan(
        mpp,
        region_hw,
        np.clip(0.15 + 1.6 * solid_hw, 0, 1),
        depth_hw,
        normal_hw,
        fibre_hw,
        weave_hw,
        lymph_hw.astype(np.float32),
        fields["crowd"],
        _distance(~vessel_hw, mpp),
    )


def transverse(fields: Fields, mpp: float, angle: float, corner: tuple[int, int] = (0, 0)) -> Map:
    """Return a coordinate in um across the fibres of the stroma, bent.

    Args:
        fields: as for `draw_plan`.
        mpp: likewise.
        angle: likewise.
        corner: row and column of the first pixel, px.
    """
    h, w = fields["bend_y"].shape
    y_hw, x_hw = np.ogrid[corner[0] : corner[0] + h, corner[1] : corner[1] + w]
    y_hw, x_hw = (np.float32(mpp) * v_hw.astype(np.float32) for v_hw in (y_hw, x_hw))
    return y_hw * np.float32(np.cos(angle)) - x_hw * np.float32(np.sin(angle)) + 12 * fields["bend_y"]


def weave(fields: Fields, across_hw: Map, white_hw: Map, mpp: float) -> tuple[Map, Map]:
    """Return direction and texture of fibres, which run along the level lines of a coordinate.

    Args:
        fields: as for `draw_plan`.
        across_hw: the coordinate, um.
        white_hw: noise, which is averaged along the fibres.
        mpp: um/px.
    """
    gx, gy = _gradient(across_hw, 2.0 / mpp)
    fibre_hw = np.arctan2(gy, gx) + np.float32(np.pi / 2) + np.float32(0.3) * fields["crimp"]
    weave_hw = white_hw
    u_hw, v_hw = np.cos(fibre_hw) / np.float32(mpp), np.sin(fibre_hw) / np.float32(mpp)
    for length in (0.5, 1.0, 2.0, 4.0):  # twice the length at each pass
        ahead_hw2 = np.stack([length * u_hw, length * v_hw], -1).astype(np.float32)
        weave_hw = (weave_hw + _sample(weave_hw, ahead_hw2) + _sample(weave_hw, -ahead_hw2)) / 3
    return fibre_hw, weave_hw


def _above(field_hw: Map, share: float) -> NDArray[np.bool_]:
    """Where a field of unit variance is in its highest `share` of values."""
    return field_hw > -ndtri(share) if share > 0 else np.zeros(field_hw.shape, bool)


def _distance(mask_hw: NDArray[np.bool_], mpp: float) -> Map:
    """Distance in um to the nearest False pixel; large if there is none."""
    if mask_hw.all():
        return np.full(mask_hw.shape, 1e3, np.float32)
    return cv2.distanceTransform(mask_hw.astype(np.uint8), cv2.DIST_L2, 5) * np.float32(mpp)


def signed_distance(mask_hw: NDArray[np.bool_], mpp: float) -> Map:
    """Return the distance in um to the border of a mask, negative outside of it."""
    return np.where(mask_hw, _distance(mask_hw, mpp), -_distance(~mask_hw, mpp))


def _gradient(field_hw: Map, sigma: float) -> tuple[Map, Map]:
    smooth_hw = cv2.GaussianBlur(field_hw, (0, 0), max(sigma, 0.5))
    return cv2.Sobel(smooth_hw, cv2.CV_32F, 1, 0), cv2.Sobel(smooth_hw, cv2.CV_32F, 0, 1)


def _sample(field_hw: Map, move_hw2: Map) -> Map:
    h, w = field_hw.shape
    y_hw, x_hw = np.mgrid[:h, :w].astype(np.float32)
    return cv2.remap(
        field_hw, x_hw + move_hw2[..., 0], y_hw + move_hw2[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
