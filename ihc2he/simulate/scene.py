"""One section of one tile: its plan, its nuclei, and everything that both stains share.

Shape suffixes: h, w = height, width.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.simulate.cells import NUCLEUS, Nuclei, draw_masks, sow, spread
from ihc2he.simulate.geometry import Fields, Plan, Region, draw_fields, draw_plan, neighbour
from ihc2he.simulate.tissue import Tissue
from ihc2he.stain.noise import Map, smooth_noise

_MARGIN = 8.0  # um around the tile, because cells and optics depend on what is beyond its border
_RED_CELL = 5.0  # um, diameter after fixation
# Correlation lengths in um of the bends of membranes, and of what is inside cells.
WAVES = {"wave_x": 2.0, "wave_y": 2.0}
TEXTURES = {
    "chromatin_fine": 0.25,
    "chromatin_coarse": 0.55,
    "grain_fine": 0.25,
    "grain_middle": 0.6,
    "grain_coarse": 1.5,
    "patch": 10.0,
    "web": 2.6,
}


@dataclass(frozen=True)
class Section:
    """The focal plane, including the margin; maps are HxW on the tile's pixel grid."""

    tissue: Tissue
    plan: Plan
    nuclei: Nuclei  # row i has the label i + 1
    top_hw: NDArray[np.int32]  # labels of nuclei; of overlapping ones the topmost
    bottom_hw: NDArray[np.int32]  # the same, but the lowest of overlapping ones
    cover_hw: Map  # 0 to 1, share of the pixel that nuclei cover
    edge_hw: Map  # um inside the outline of the topmost nucleus
    cell_hw: NDArray[np.int32]  # label of the nearest nucleus
    reach_hw: Map  # um to the nearest nucleus
    membrane_hw: Map  # um to the nearest border between two epithelial cells
    red_hw: Map  # um inside the outline of a red cell, 0 elsewhere
    nucleoli_hw: Map  # 0 to 1
    chromatin_hw: Map  # textures of zero mean and about unit variance
    grain_hw: Map
    patch_hw: Map
    web_hw: Map  # 0 to 1, fibrils across gaps
    margin: int  # px, between the border of the maps and the tile


@dataclass(frozen=True)
class Block:
    """A piece of tissue from which sections are cut."""

    tissue: Tissue
    mpp: float
    malignant: bool
    angle: float  # rad, main direction of the fibres
    fields: Fields
    margin: int  # px


def draw_block(tissue: Tissue, size: int, mpp: float, rng: np.random.Generator) -> Block:
    """Return a block of tissue for a tile of `size` pixels a side at `mpp` um/px."""
    margin = round(_MARGIN / mpp)
    fields = draw_fields((size + 2 * margin, size + 2 * margin), mpp, tissue, rng)
    return Block(tissue, mpp, rng.random() < tissue.malignant, rng.uniform(0, np.pi), fields, margin)


def cut(block: Block, rng: np.random.Generator, kept: Nuclei | None = None) -> Section:
    """Return a section of the block; `kept` nuclei reach into it from the section before."""
    plan = draw_plan(block.fields, block.tissue, block.mpp, block.angle, rng)
    nuclei = sow(plan, block.tissue, block.malignant, rng, kept)

    def textures(scales: dict[str, float]) -> Fields:
        return {
            name: smooth_noise(plan.region_hw.shape, max(scale / block.mpp, 0.5), rng) for name, scale in scales.items()
        }

    waves = textures(WAVES)
    red_cells = sow_red_cells(plan, rng)
    nucleoli = sow_nucleoli(nuclei, block.tissue, block.mpp, rng)
    return compose(block.tissue, plan, nuclei, red_cells, nucleoli, waves | textures(TEXTURES), block.margin)


def compose(
    tissue: Tissue, plan: Plan, nuclei: Nuclei, red_cells: Nuclei, nucleoli: Nuclei, textures: Fields, margin: int
) -> Section:
    """Return the section that consists of these.

    Args:
        tissue: its habits.
        plan: of the section.
        nuclei: in drawing order.
        red_cells: likewise.
        nucleoli: of the nuclei.
        textures: a field for each of `WAVES` and `TEXTURES`.
        margin: px, between the border of the maps and the tile.
    """
    mpp, shape = plan.mpp, plan.region_hw.shape
    top_hw, bottom_hw, cover_hw = draw_masks(nuclei, shape, mpp)
    cell_hw, reach_hw = _nearest(top_hw, mpp)
    return Section(
        tissue=tissue,
        plan=plan,
        nuclei=nuclei,
        top_hw=top_hw,
        bottom_hw=bottom_hw,
        cover_hw=cover_hw,
        edge_hw=_inside(top_hw, mpp),
        cell_hw=cell_hw,
        reach_hw=reach_hw,
        membrane_hw=_membrane(cell_hw, plan, textures["wave_x"], textures["wave_y"]),
        red_hw=_inside(draw_masks(red_cells, shape, mpp)[0], mpp),
        nucleoli_hw=draw_masks(nucleoli, shape, mpp)[2],
        chromatin_hw=_mix(textures, "chromatin"),
        grain_hw=_mix(textures, "grain"),
        patch_hw=textures["patch"],
        web_hw=np.exp(-((textures["web"] / 0.16) ** 2)),
        margin=margin,
    )


def cut_neighbour(block: Block, section: Section, distance: float, rng: np.random.Generator) -> Section:
    """Return the section `distance` um deeper: the same structures, shifted and bent, and partly different cells."""
    fields, move_hw2 = neighbour(block.fields, block.tissue, block.mpp, distance, rng)
    nuclei = section.nuclei
    # A nucleus of diameter d in one section reaches d - distance deep into the next, on average.
    depth_n = np.clip(1 - distance / nuclei["length"], 0, 1)
    kept = nuclei[rng.random(len(nuclei)) < depth_n].copy()
    h, w = section.top_hw.shape
    at = (np.clip(kept["y"], 0, h - 1).astype(int), np.clip(kept["x"], 0, w - 1).astype(int))
    kept["x"] -= move_hw2[at][:, 0]
    kept["y"] -= move_hw2[at][:, 1]
    kept = kept[(kept["x"] >= 0) & (kept["y"] >= 0) & (kept["x"] <= w - 1) & (kept["y"] <= h - 1)]
    shrink_n = rng.uniform(0.75, 1.05, len(kept)).astype(np.float32)
    kept["length"] *= shrink_n
    kept["width"] *= shrink_n
    return cut(replace(block, fields=fields), rng, kept)


def crop(section: Section, border: int) -> Section:
    """Return the same section for a smaller tile, `border` pixels less on each side."""
    return replace(section, margin=section.margin + border)


def truth(section: Section) -> tuple[NDArray[np.int32], Nuclei]:
    """Return the tile's instance map, with ids 1 to N, and the table of these N nuclei.

    Nuclei that are hidden by others or lie outside the tile are removed. Positions are in pixels of the tile.
    """
    m = section.margin
    inner_hw = section.top_hw[m:-m, m:-m]
    ids = np.unique(inner_hw)
    ids = ids[ids > 0]
    dense = np.zeros(len(section.nuclei) + 1, np.int32)
    dense[ids] = np.arange(1, len(ids) + 1)
    nuclei = section.nuclei[ids - 1]
    nuclei["x"] -= m
    nuclei["y"] -= m
    return dense[inner_hw], nuclei


def _inside(label_hw: NDArray[np.int32], mpp: float) -> Map:
    inside_hw = label_hw > 0
    for axis in (0, 1):
        differs = np.diff(label_hw, axis=axis) != 0
        head, tail = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        inside_hw[head] &= ~differs
        inside_hw[tail] &= ~differs
    depth_hw = cv2.distanceTransform(inside_hw.astype(np.uint8), cv2.DIST_L2, 3) + 0.5
    return np.where(label_hw > 0, depth_hw * np.float32(mpp), np.float32(0))


def _nearest(label_hw: NDArray[np.int32], mpp: float) -> tuple[NDArray[np.int32], Map]:
    empty_hw = (label_hw == 0).astype(np.uint8)
    if empty_hw.all():
        return np.zeros_like(label_hw), np.full(label_hw.shape, 1e3, np.float32)
    reach_hw, source_hw = cv2.distanceTransformWithLabels(empty_hw, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    of_source = np.zeros(source_hw.max() + 1, np.int32)
    of_source[source_hw[empty_hw == 0]] = label_hw[empty_hw == 0]
    return of_source[source_hw], reach_hw * np.float32(mpp)


def _membrane(cell_hw: NDArray[np.int32], plan: Plan, wave_x_hw: Map, wave_y_hw: Map) -> Map:
    """Distance to the borders between epithelial cells, and to the outline of the epithelium."""
    shape, mpp = cell_hw.shape, plan.mpp
    y_hw, x_hw = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    # The line halfway between two nuclei is straight, but a membrane is not.
    x_hw, y_hw = x_hw + np.float32(0.7 / mpp) * wave_x_hw, y_hw + np.float32(0.7 / mpp) * wave_y_hw
    wavy_hw = cv2.remap(cell_hw.astype(np.float32), x_hw, y_hw, cv2.INTER_NEAREST)
    tissue_hw = np.where(plan.region_hw == Region.EPITHELIUM, wavy_hw, 0)
    border_hw = np.zeros(shape, bool)
    border_hw[:, 1:] |= tissue_hw[:, 1:] != tissue_hw[:, :-1]
    border_hw[1:] |= tissue_hw[1:] != tissue_hw[:-1]
    if not border_hw.any():
        return np.full(shape, 1e3, np.float32)
    return cv2.distanceTransform((~border_hw).astype(np.uint8), cv2.DIST_L2, 5) * np.float32(mpp)


def sow_red_cells(plan: Plan, rng: np.random.Generator) -> Nuclei:
    """Return red cells, dense in blood and sparse in vessels."""
    h, w = plan.region_hw.shape
    n = rng.poisson(0.2 * h * w * plan.mpp**2)
    x_n, y_n = rng.uniform(0, w - 1, n), rng.uniform(0, h - 1, n)
    region_n = plan.region_hw[y_n.astype(int), x_n.astype(int)]
    lives_n = (region_n == Region.BLOOD) | ((region_n == Region.VESSEL) & (rng.random(n) < 0.5))
    cells = np.zeros(lives_n.sum(), NUCLEUS)
    cells["x"], cells["y"] = x_n[lives_n], y_n[lives_n]
    cells["length"] = rng.uniform(0.8, 1.1, len(cells)) * _RED_CELL
    cells["width"] = cells["length"] * rng.uniform(0.7, 1, len(cells))
    cells["angle"] = rng.uniform(0, np.pi, len(cells))
    return cells[spread(cells, np.full(len(cells), 0.85, np.float32), plan.mpp)]


def sow_nucleoli(nuclei: Nuclei, tissue: Tissue, mpp: float, rng: np.random.Generator) -> Nuclei:
    """Return dark dots in the inner half of nuclei, as many as each type has on average."""
    mean_n = np.array([tissue.habits[kind].nucleoli for kind in nuclei["type"]], np.float32) * ~nuclei["mitosis"]
    owner = np.repeat(np.arange(len(nuclei)), rng.poisson(mean_n))
    turn, away = rng.uniform(0, 2 * np.pi, len(owner)), np.sqrt(rng.uniform(0, 0.25, len(owner)))
    dots = np.zeros(len(owner), NUCLEUS)
    reach = away * nuclei["width"][owner] / (2 * mpp)
    dots["x"] = nuclei["x"][owner] + reach * np.cos(turn)
    dots["y"] = nuclei["y"][owner] + reach * np.sin(turn)
    dots["length"] = rng.uniform(0.10, 0.19, len(owner)) * nuclei["length"][owner] + 0.9 * mpp
    dots["width"] = 0.85 * dots["length"]
    return dots


def _mix(textures: Fields, name: str) -> Map:
    layers_lhw = np.stack([field_hw for key, field_hw in textures.items() if key.startswith(name)])
    return layers_lhw.sum(0) / np.float32(np.sqrt(len(layers_lhw)))
