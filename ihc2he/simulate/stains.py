"""Stains: how much hematoxylin, eosin and DAB is in each pixel of a section, and the resulting colour.

Concentrations are in units of optical density along unit stain vectors; colours follow the Beer-Lambert law.

Shape suffixes: h, w = height, width; s = stain (3); c = colour (3); n = nuclei, preceded by one entry for "none".
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.simulate.geometry import Region
from ihc2he.simulate.scene import Section
from ihc2he.simulate.tissue import CONNECTIVE, DEAD, EPITHELIAL, INFLAMMATORY, NEOPLASTIC, Marker
from ihc2he.stain.noise import Map

Vectors = tuple[tuple[float, ...], ...]

# Means and standard deviations of the stain vectors; the last one is red cells. H&E: by Macenko's method on real
# tiles. IHC: chosen so that colours at each darkness are like those of real tiles.
_HE = ((0.63, 0.70, 0.35), (0.27, 0.87, 0.40), (0.10, 0.80, 0.59))
_IHC = ((0.72, 0.62, 0.31), (0.58, 0.50, 0.64))  # the DAB between them is defined by the marker
_HE_SD = (0.025, 0.05, 0.02)
_IHC_SD = (0.015, 0.015, 0.015)


class _Her2(NamedTuple):
    """The look of membranes at a HER2 level, by the ASCO/CAP scheme."""

    completeness: float  # below about 0.5 most of the membrane is missing, from 1 on almost nothing
    strength: float
    width: float  # um
    blush: float  # of the cytoplasm, relative to the membrane


_HER2 = (  # none; faint and broken; weak to moderate, mostly complete; strong and complete
    _Her2(0.0, 0.0, 0.5, 0.0),
    _Her2(0.4, 0.25, 0.5, 0.0),
    _Her2(0.8, 0.5, 0.6, 0.03),
    _Her2(1.2, 1.0, 1.0, 0.16),
)


@dataclass(frozen=True)
class Slide:
    """What the laboratory did to one slide."""

    vectors: Vectors  # hematoxylin; eosin or DAB; red cells, with DAB also scattering
    hematoxylin: float  # in a nucleus
    counter: float  # eosin in dense collagen, or DAB of a marker at full strength
    background: float = 0.0  # unspecific DAB background
    positive: float = 0.0  # fraction of nuclei that express a nuclear marker
    spread: float = 0.0  # of the marker's intensity from nucleus to nucleus


def draw_he_slide(rng: np.random.Generator) -> Slide:
    """Return an H&E slide with vectors and strengths drawn from the ranges of real ones."""
    strength = float(np.exp(rng.normal(-0.46, 0.33)))
    return Slide(_jitter(_HE, _HE_SD, rng), strength, strength * float(np.exp(rng.normal(-0.75, 0.25))))


def draw_ihc_slide(marker: Marker, rng: np.random.Generator) -> Slide:
    """Return an IHC slide with vectors and strengths drawn from the ranges of real ones."""
    return Slide(
        vectors=_jitter((_IHC[0], marker.dab, _IHC[1]), _IHC_SD, rng),
        hematoxylin=float(np.exp(rng.normal(-1.1, 0.2))),
        counter=float(np.exp(rng.normal(-0.25, 0.2))),
        background=float(np.exp(np.clip(rng.normal(-2.6, 0.6), -4, -1.9))),
        positive=float(rng.beta(14, 2)),
        spread=float(rng.uniform(0.55, 0.85)),
    )


def he_concentrations(section: Section, slide: Slide) -> Map:
    """Return HxWx3 concentrations of hematoxylin, eosin and the red cells' own colour."""
    region_hw, s = section.plan.region_hw, section
    eosin_of = np.zeros(len(Region), np.float32)
    eosin_of[[Region.EPITHELIUM, Region.NECROSIS, Region.STROMA, Region.LUMEN]] = 0.75, 0.95, 0.85, 0.04
    eosin_of[[Region.GAP, Region.BLOOD, Region.VESSEL]] = 0.03, 0.30, 0.2
    stroma_hw = s.tissue.collagen * s.plan.solid_hw * (1 - 0.5 * s.plan.lymph_hw)
    stroma_hw *= np.clip(0.75 + 0.26 * s.plan.weave_hw + 0.15 * s.patch_hw, 0.05, 2.0)
    # Cells differ in their cytoplasm, and there are gaps along some borders.
    cell_n = _with_none(np.exp(0.25 * s.nuclei["dose"]))
    border_hw = np.exp(-((s.membrane_hw / 0.45) ** 2))
    texture_hw = cell_n[s.cell_hw] * (1 + 0.17 * s.grain_hw + 0.14 * s.patch_hw)
    texture_hw *= 1 - border_hw * np.clip(0.1 + 0.4 * s.patch_hw, -0.3, 0.8)
    texture_hw *= s.tissue.cytoplasm * (1 - s.tissue.foam * (1 - s.web_hw))
    texture_hw *= 1 - 2 * s.tissue.foam * np.exp(-((s.reach_hw / 0.8) ** 2))
    texture_hw = np.where(region_hw == Region.STROMA, stroma_hw, texture_hw)
    eosin_hw = eosin_of[region_hw] * texture_hw
    eosin_hw += 0.40 * s.web_hw * (region_hw == Region.GAP) * (1 - s.plan.solid_hw)
    eosin_hw += 0.45 * _cytoplasm(s)
    red_hw = np.minimum(s.red_hw / 0.5, 1) - 0.25 * np.minimum(s.red_hw / 2, 1)
    epithelium_hw = region_hw == Region.EPITHELIUM
    eosin_hw += s.cover_hw * (0.55 - 0.4 * eosin_hw)  # proteins of the nucleus

    basophilia_hw = np.where(epithelium_hw, 0.16 + 0.05 * s.grain_hw, 0.07 * (eosin_hw > 0.2))
    hematoxylin_hw = slide.hematoxylin * (_nuclear(s, s.nuclei["hematoxylin"], contrast=1.0) + basophilia_hw)
    return np.stack([hematoxylin_hw, slide.counter * eosin_hw, 0.38 * red_hw], -1).clip(0)


def ihc_concentrations(section: Section, slide: Slide, marker: Marker) -> Map:
    """Return HxWx3 concentrations of hematoxylin, DAB, and red cells with scattering."""
    s = section
    nuclear = marker.site == "nucleus"
    amount_n = expression(s.nuclei, slide, marker) if nuclear else np.zeros(len(s.nuclei), np.float32)
    tissue_hw = _substance(s)
    # The brown precipitate blocks some of the hematoxylin.
    counterstain_n = 0.9 * s.nuclei["hematoxylin"] ** 0.6 * (1 - 0.3 * np.minimum(amount_n, 1))
    counterstain_hw = _nuclear(s, counterstain_n, contrast=0.5)
    counterstain_hw += 0.10 * tissue_hw
    background = slide.background * (1 if nuclear else 0.5)
    dab_hw = background * tissue_hw * (0.9 + np.abs(s.grain_hw) + 0.4 * s.patch_hw)
    dab_hw += 4 * background * tissue_hw * np.maximum(s.grain_hw - 1.8, 0)  # grains of precipitate
    if nuclear:
        signal_hw = slide.counter * _nuclear(s, amount_n, contrast=0.25)
        # Some DAB leaks from the nuclei into the cytoplasm, more on slides with more background.
        dab_hw = dab_hw + signal_hw + 4 * slide.background * cv2.GaussianBlur(signal_hw, (0, 0), 1.0 / s.plan.mpp)
    else:
        dab_hw = dab_hw + slide.counter * _membrane(s, marker)
    # Dense DAB also scatters light of all colours: pale DAB is orange, strong DAB almost black.
    scatter_hw = 0.3 * np.maximum(dab_hw - 0.5, 0)
    red_hw = np.exp(-(((s.red_hw - 0.5) / 0.4) ** 2)) * (s.red_hw > 0)
    return np.stack([slide.hematoxylin * counterstain_hw, dab_hw, 0.3 * red_hw + scatter_hw], -1).clip(0)


def expression(nuclei: NDArray[np.void], slide: Slide, marker: Marker) -> Map:
    """Return the marker's intensity in each nucleus, or on its membrane; 0 = negative."""
    if marker.site == "membrane":
        epithelial_n = np.isin(nuclei["type"], (NEOPLASTIC, EPITHELIAL))
        return epithelial_n * np.float32(_HER2[marker.level].strength)
    share_of = np.zeros(6, np.float32)
    share_of[[NEOPLASTIC, EPITHELIAL, CONNECTIVE, INFLAMMATORY, DEAD]] = (
        min(1, 1.12 * slide.positive),
        min(1, 1.12 * slide.positive),
        slide.positive,
        0.12 * slide.positive,
        0.3 * slide.positive,
    )
    positive_n = nuclei["chance"] < share_of[nuclei["type"]]
    # If few nuclei express a marker, they express little of it.
    return np.where(positive_n, np.exp(slide.spread * np.clip(nuclei["dose"], -2.5, 0.7) - 0.1), 0).astype(np.float32)


def absorb(concentration_hws: Map, vectors: Vectors) -> Map:
    """Return the optical density, HxWx3, of concentrations along unit stain vectors (Beer-Lambert).

    >>> absorb(np.array([[[2.0, 1.0]]]), ((0, 3, 4), (1, 0, 0))).round(1).tolist()
    [[[1.0, 1.2, 1.6]]]
    """
    vectors_sc = np.asarray(vectors, np.float32)
    return concentration_hws @ (vectors_sc / np.linalg.norm(vectors_sc, axis=1, keepdims=True))


def _jitter(vectors: Vectors, sd: tuple[float, ...], rng: np.random.Generator) -> Vectors:
    jittered = np.asarray(vectors) + rng.normal(0, 1, (3, 3)) * np.reshape(sd, (3, 1))
    jittered = np.maximum(jittered, 0.02)
    return tuple(tuple(float(v) for v in row / np.linalg.norm(row)) for row in jittered)


def _nuclear(section: Section, amount_n: Map, contrast: float) -> Map:
    """Spread an amount per nucleus over its mask, with chromatin, membrane, nucleoli, overlap and focus."""
    s = section
    amount_n = _with_none(amount_n)
    habit = s.tissue.habits
    chromatin_n = _with_none(np.array([habit[k].chromatin for k in s.nuclei["type"]]))
    rim_n = _with_none(np.array([habit[k].rim for k in s.nuclei["type"]]))
    chromatin_n[1:][s.nuclei["mitosis"]] = rim_n[1:][s.nuclei["mitosis"]] = 0
    # A nucleus is a flattened ball: it absorbs a little less towards its outline.
    profile_hw = s.cover_hw * (1 - 0.3 * np.exp(-s.edge_hw / 0.6))
    texture_hw = chromatin_n[s.top_hw] * s.chromatin_hw + 0.7 * s.nucleoli_hw
    texture_hw += rim_n[s.top_hw] * (np.exp(-(((s.edge_hw - 0.45) / 0.45) ** 2)) - 0.25)
    map_hw = amount_n[s.cell_hw] * profile_hw * (1 + contrast * texture_hw).clip(0.3)
    hidden_hw = s.top_hw != s.bottom_hw
    map_hw[hidden_hw] += 0.6 * amount_n[s.bottom_hw[hidden_hw]]
    blur_n = _with_none(s.nuclei["blur"])
    if blur_n.any():
        blurred_hw = cv2.GaussianBlur(map_hw, (0, 0), 1.1 / s.plan.mpp)
        near_hw = cv2.GaussianBlur(blur_n[s.top_hw], (0, 0), 1.1 / s.plan.mpp)
        near_hw = np.maximum(near_hw, blur_n[s.top_hw])
        near_hw[(s.top_hw > 0) & (blur_n[s.top_hw] == 0)] = 0
        map_hw += near_hw * (0.85 * blurred_hw - map_hw)
    return map_hw


def _with_none(value_n: Map) -> Map:
    return np.concatenate([np.zeros(1, np.float32), value_n.astype(np.float32)])


def _cytoplasm(section: Section) -> Map:
    """Cytoplasm of cells outside epithelium, 0 to 1."""
    loose_hw = np.isin(section.plan.region_hw, (Region.GAP, Region.BLOOD))
    return loose_hw * np.exp(-((section.reach_hw / 1.6) ** 2)) * (1 + 0.3 * section.grain_hw)


def _substance(section: Section) -> Map:
    """How much tissue is in a pixel, 0 to about 1, for stains that colour all of it a little."""
    s = section
    of = np.zeros(len(Region), np.float32)
    of[[Region.EPITHELIUM, Region.STROMA, Region.NECROSIS, Region.LUMEN, Region.GAP]] = 1.0, 0.9, 1.2, 0.07, 0.35
    weave_hw = np.where(
        s.plan.region_hw == Region.STROMA, s.plan.solid_hw * np.clip(0.8 + 0.25 * s.plan.weave_hw, 0, 2), 1
    )
    web_hw = 0.8 * s.web_hw * (s.plan.region_hw == Region.GAP)
    return of[s.plan.region_hw] * weave_hw + web_hw + _cytoplasm(s)


def _membrane(section: Section, marker: Marker) -> Map:
    """DAB on the borders between epithelial cells, and a little in their cytoplasm."""
    s, look = section, _HER2[marker.level]
    line_hw = np.exp(-((s.membrane_hw / look.width) ** 2)) * (1 + 0.2 * s.grain_hw)
    line_hw *= np.clip(2 * s.patch_hw + 0.8 * s.grain_hw + 6 * (look.completeness - 0.5), 0, 1)
    blush_hw = look.blush * (s.top_hw == 0)
    return look.strength * (line_hw + blush_hw) * (s.plan.region_hw == Region.EPITHELIUM)
