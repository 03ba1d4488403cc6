"""Nuclei: position, type, shape, and exact masks.

A table of nuclei is a structured array of dtype `NUCLEUS`. Positions are in pixels of the plan's grid, lengths in um.

Shape suffixes: h, w = height, width; n = nuclei; p = pairs of nuclei; v = vertices.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ihc2he.simulate.geometry import Plan, Region
from ihc2he.simulate.tissue import CONNECTIVE, DEAD, EPITHELIAL, INFLAMMATORY, NEOPLASTIC, Tissue
from ihc2he.stain.noise import Map

NUCLEUS = np.dtype(
    [
        ("x", "f4"),  # px
        ("y", "f4"),
        ("length", "f4"),  # um, longest axis
        ("width", "f4"),  # um, shortest axis
        ("angle", "f4"),  # rad, of the longest axis
        ("type", "u1"),  # 1 to 5, see tissue.TYPES
        ("amplitude", "f4", (4,)),  # of the outline's harmonics 2 to 5, as a fraction of the radius
        ("phase", "f4", (4,)),  # rad
        ("hematoxylin", "f4"),  # relative to the slide's strength
        ("blur", "f4"),  # 0 = in focus, 1 = fully out of focus
        ("mitosis", "?"),
        ("chance", "f4"),  # 0 to 1; positive for a marker if below the positive fraction
        ("dose", "f4"),  # standard normal; spread of the marker's intensity
    ]
)
Nuclei = NDArray[np.void]

_CANDIDATES = 0.055  # per um^2; no density can exceed it
_LYMPHOID = 50.0  # density of lymphocyte aggregates and of endothelium, per 1000 um^2
_VERTICES = 32
_MITOSES = 0.012  # of neoplastic nuclei


def sow(
    plan: Plan,
    tissue: Tissue,
    malignant: bool | NDArray[np.bool_],
    rng: np.random.Generator,
    kept: Nuclei | None = None,
    kept_spacing: float = 0.7,
) -> Nuclei:
    """Return the nuclei of a section, in drawing order: later ones lie on top.

    Candidates are placed at random. The plan gives their type and direction, and candidates too close to an earlier one
    are removed.

    Args:
        plan: of the section.
        tissue: its proportions, spacings and habits.
        malignant: whether the epithelium is neoplastic; or where it is, HxW.
        rng: source of randomness.
        kept: nuclei of the neighbouring section, or beside this one, that reach into it; they come first.
        kept_spacing: of these, as for `spread`.
    """
    h, w = plan.region_hw.shape
    n = rng.poisson(_CANDIDATES * h * w * plan.mpp**2)
    nuclei = np.zeros(n, NUCLEUS)
    nuclei["x"], nuclei["y"] = rng.uniform(0, w - 1, n), rng.uniform(0, h - 1, n)
    kind_n, spacing_n = _settle(plan, tissue, malignant, nuclei, rng)
    nuclei["type"] = kind_n
    alive_n = kind_n > 0
    nuclei, spacing_n = nuclei[alive_n], spacing_n[alive_n]
    _grow(nuclei, tissue, rng)
    _orient(nuclei, plan, tissue, rng)
    if kept is not None:
        nuclei = np.concatenate([kept, nuclei])
        spacing_n = np.concatenate([np.full(len(kept), kept_spacing, np.float32), spacing_n])
    chosen_n = spread(nuclei, spacing_n, plan.mpp)
    return nuclei[chosen_n][rng.permutation(chosen_n.sum())]


def draw_masks(nuclei: Nuclei, shape: tuple[int, int], mpp: float) -> tuple[NDArray[np.int32], NDArray[np.int32], Map]:
    """Return two instance maps and the share of each pixel that is covered by nuclei.

    The maps are HxW int32: nucleus i is i + 1, and 0 is background. Where nuclei overlap, the first map shows the
    topmost one and the second the lowest. The share, 0 to 1, is smooth at the outlines, up to one pixel outside.
    """
    points_nv2 = np.round(outlines(nuclei, mpp) * 16).astype(np.int32)
    top_hw, bottom_hw = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    cover_hw = np.zeros(shape, np.uint8)
    for i, points_v2 in enumerate(points_nv2):
        cv2.fillPoly(top_hw, [points_v2], i + 1, shift=4)
        cv2.fillPoly(cover_hw, [points_v2], 255, cv2.LINE_AA, shift=4)
    for i in range(len(nuclei) - 1, -1, -1):
        cv2.fillPoly(bottom_hw, [points_nv2[i]], i + 1, shift=4)
    return top_hw, bottom_hw, cover_hw / np.float32(255)


def outlines(nuclei: Nuclei, mpp: float) -> Map:
    """Return the outlines of nuclei as polygons, NxVx2 (x, y) in pixels."""
    t_v = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False, dtype=np.float32)
    k = np.arange(2, 6, dtype=np.float32)[:, None]
    waves = np.cos(k[None] * t_v + nuclei["phase"][:, :, None])
    radius_nv = 1 + (nuclei["amplitude"][:, :, None] * waves).sum(1)
    # OpenCV fills every pixel that an outline touches, about half a pixel more than the polygon.
    a_n, b_n = (np.maximum(nuclei[axis] / (2 * mpp) - 0.45, 0.6) for axis in ("length", "width"))
    u_nv, v_nv = a_n[:, None] * radius_nv * np.cos(t_v), b_n[:, None] * radius_nv * np.sin(t_v)
    cos, sin = np.cos(nuclei["angle"])[:, None], np.sin(nuclei["angle"])[:, None]
    return np.stack(
        [nuclei["x"][:, None] + u_nv * cos - v_nv * sin, nuclei["y"][:, None] + u_nv * sin + v_nv * cos], -1
    ).astype(np.float32)


def _settle(
    plan: Plan, tissue: Tissue, malignant: bool | NDArray[np.bool_], nuclei: Nuclei, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Map]:
    """Type (0 = removed) and spacing of candidates, given by their region."""
    at = nuclei["y"].astype(int), nuclei["x"].astype(int)
    region_n, depth_n, lymph_n, wall_n = (m[at] for m in (plan.region_hw, plan.depth_hw, plan.lymph_hw, plan.wall_hw))
    u_n, v_n = rng.random((2, len(nuclei)), np.float32)
    kind_n = np.zeros(len(nuclei), np.uint8)
    density_n = np.full(len(nuclei), tissue.stromal_density, np.float32)

    stroma = region_n == Region.STROMA
    kind_n[stroma] = CONNECTIVE
    loose = (region_n == Region.GAP) | (region_n == Region.BLOOD)
    kind_n[loose] = CONNECTIVE
    density_n[loose] = tissue.gap_density
    kind_n[(stroma | loose) & (u_n < np.maximum(0.95 * lymph_n, 0.05))] = INFLAMMATORY
    density_n[lymph_n > 0.5] = _LYMPHOID
    # Endothelium: flat nuclei in a single row along the vessel.
    lining = (wall_n > 0) & (wall_n < 2.5) & (stroma | loose)
    kind_n[lining] = CONNECTIVE
    density_n[lining] = _LYMPHOID
    kind_n[region_n == Region.VESSEL] = INFLAMMATORY
    density_n[region_n == Region.VESSEL] = 0.5

    epithelium = region_n == Region.EPITHELIUM
    if tissue.layer:  # in columnar cells the nuclei are not at the apex
        epithelium &= (depth_n > 0.14 * tissue.layer) & (depth_n < 0.68 * tissue.layer)
    else:
        epithelium &= depth_n > 2.0
    malignant_n = np.broadcast_to(malignant, plan.region_hw.shape)[at]
    kind_n[epithelium] = np.where(malignant_n, NEOPLASTIC, EPITHELIAL)[epithelium]
    kind_n[epithelium & (v_n < 0.02)] = INFLAMMATORY
    kind_n[epithelium & (v_n > 0.997)] = DEAD
    density_n[epithelium] = tissue.epithelial_density
    for region, density in ((Region.NECROSIS, 8.0), (Region.LUMEN, 0.15)):
        kind_n[region_n == region] = DEAD
        density_n[region_n == region] = density

    clump_n = np.where(epithelium | lining, 1, np.exp(tissue.clumping * plan.crowd_hw[at]))
    kind_n[rng.random(len(nuclei)) * 1e3 * _CANDIDATES > density_n * clump_n] = 0
    # In a thick section some cells overlap.
    overlaps_n = rng.random(len(nuclei)) < tissue.overlapping
    spacing_n = np.where(overlaps_n, 0.6 * tissue.spacing, tissue.spacing).astype(np.float32)
    if tissue.layer:  # pseudostratified: the nuclei of neighbouring cells are at different heights and overlap
        spacing_n[epithelium] *= 0.9
    return kind_n, spacing_n


def _grow(nuclei: Nuclei, tissue: Tissue, rng: np.random.Generator) -> None:
    """Fill in size, outline and staining, given by the type of each nucleus."""
    n = len(nuclei)
    normal = rng.standard_normal((4, n)).astype(np.float32)
    pleomorphy = rng.normal(0, 1)  # tumours differ in size and variety
    for kind, habit in tissue.habits.items():
        is_n = nuclei["type"] == kind
        scale = 1 + 0.08 * pleomorphy if kind == NEOPLASTIC else 1.0
        length_n = scale * (habit.length + habit.length_sd * np.clip(normal[0, is_n], -2, 2.5))
        aspect_n = np.clip(habit.aspect + habit.aspect_sd * normal[1, is_n], 0.2, 1)
        nuclei["length"][is_n] = length_n
        nuclei["width"][is_n] = np.maximum(length_n * aspect_n, 2.0)
        stain_n = np.exp(habit.hematoxylin_sd * np.clip(normal[2, is_n], -2, 2))
        nuclei["hematoxylin"][is_n] = habit.hematoxylin * stain_n
        decay = np.array([1.0, 0.8, 0.5, 0.35], np.float32)
        nuclei["amplitude"][is_n] = habit.wobble * decay * np.abs(rng.standard_normal((is_n.sum(), 4)))
    nuclei["phase"] = rng.uniform(0, 2 * np.pi, (n, 4))
    nuclei["blur"] = np.where(rng.random(n) < tissue.unfocused, rng.uniform(0.4, 1, n), 0)
    nuclei["chance"], nuclei["dose"] = rng.random(n), normal[3]
    divides_n = (nuclei["type"] == NEOPLASTIC) & (rng.random(n) < _MITOSES)
    nuclei["mitosis"] = divides_n
    # A metaphase plate: short, ragged, and twice as dark as the nucleus was.
    nuclei["width"][divides_n] *= 0.45
    nuclei["hematoxylin"][divides_n] *= 1.9
    nuclei["amplitude"][divides_n] *= 2.5


def _orient(nuclei: Nuclei, plan: Plan, tissue: Tissue, rng: np.random.Generator) -> None:
    at = nuclei["y"].astype(int), nuclei["x"].astype(int)
    free_n = rng.uniform(0, np.pi, len(nuclei)).astype(np.float32)
    jitter_n = rng.normal(0, 0.22, len(nuclei)).astype(np.float32)
    angle_n = free_n.copy()
    spindle_n = (nuclei["type"] == CONNECTIVE) & (rng.random(len(nuclei)) < 0.85)
    angle_n[spindle_n] = (plan.fibre_hw[at] + 1.5 * jitter_n)[spindle_n]
    epithelial_n = np.isin(nuclei["type"], (NEOPLASTIC, EPITHELIAL))
    if tissue.layer:
        angle_n[epithelial_n] = (plan.normal_hw[at] + jitter_n)[epithelial_n]
    # Endothelium and the myofibroblasts around glands are parallel to the border.
    gx, gy = cv2.Sobel(plan.wall_hw, cv2.CV_32F, 1, 0)[at], cv2.Sobel(plan.wall_hw, cv2.CV_32F, 0, 1)[at]
    lining_n = (plan.wall_hw[at] < 2.5) & ~epithelial_n
    angle_n[lining_n] = (np.arctan2(gy, gx) + np.pi / 2)[lining_n]
    nuclei["width"][lining_n & (nuclei["type"] == CONNECTIVE)] *= 0.7
    nuclei["angle"] = angle_n


def spread(nuclei: Nuclei, spacing_n: Map, mpp: float) -> NDArray[np.bool_]:
    """Return which nuclei to keep: of two that are too close, the one earlier in the table.

    Args:
        nuclei: the table.
        spacing_n: per nucleus; two with spacing 1 may just touch, below 1 they may overlap.
        mpp: pixel size, um/px.
    """
    n = len(nuclei)
    if n < 2:
        return np.ones(n, bool)
    xy_n2 = np.stack([nuclei["x"], nuclei["y"]], -1).astype(np.float64) * mpp
    reach = float((nuclei["length"] * spacing_n).max())
    pair_p2 = np.sort(cKDTree(xy_n2).query_pairs(min(reach, 16.0), output_type="ndarray"), axis=1)
    first_p, second_p = pair_p2.T
    offset_p2 = xy_n2[second_p] - xy_n2[first_p]
    distance_p = np.hypot(*offset_p2.T)
    direction_p = np.arctan2(offset_p2[:, 1], offset_p2[:, 0])
    touch_p = sum(_radius(nuclei[i], direction_p) * spacing_n[i] for i in (first_p, second_p))
    close_p = distance_p < touch_p
    first_p, second_p = first_p[close_p], second_p[close_p]

    stays_n, open_n = np.zeros(n, bool), np.ones(n, bool)
    while open_n.any():
        winner_n = open_n.copy()
        winner_n[second_p] = False
        stays_n |= winner_n
        open_n &= ~winner_n
        open_n[second_p[winner_n[first_p]]] = False
        live_p = open_n[first_p] & open_n[second_p]
        first_p, second_p = first_p[live_p], second_p[live_p]
    return stays_n


def _radius(nuclei: Nuclei, direction_n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance in um from the centre of an ellipse to its outline in a direction."""
    turn_n = direction_n - nuclei["angle"]
    a_n, b_n = nuclei["length"] / 2, nuclei["width"] / 2
    return a_n * b_n / np.hypot(b_n * np.cos(turn_n), a_n * np.sin(turn_n))
