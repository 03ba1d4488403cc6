"""A case (one patient, one laboratory, one scanner), and its tiles and truth."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ihc2he.files import write_text
from ihc2he.images.writing import write_png
from ihc2he.simulate.optics import Scanner, draw_scanner, expose
from ihc2he.simulate.scene import Section, truth
from ihc2he.simulate.stains import (
    Slide,
    absorb,
    draw_he_slide,
    draw_ihc_slide,
    expression,
    he_concentrations,
    ihc_concentrations,
)
from ihc2he.simulate.tissue import TYPES, Marker, Tissue

_SLIDES = 1 << 32  # seeds from here on are for cases, smaller ones for tiles


@dataclass(frozen=True)
class Case:
    """What all tiles of one patient share."""

    tissue: Tissue
    marker: Marker
    he: Slide
    ihc: Slide
    he_scanner: Scanner
    ihc_scanner: Scanner


def tile_rng(seed: int, tile: int) -> np.random.Generator:
    """Return the random generator of one tile, which does not depend on other tiles."""
    return np.random.default_rng([seed, tile])


def draw_case(tissue: Tissue, marker: Marker, seed: int, number: int, **scanner: float) -> Case:
    """Return case `number` of a simulation, with its own variation of tissue, stain and scanner.

    Args:
        tissue: the kind.
        marker: of the IHC slide.
        seed: of the simulation.
        number: of the case; the same number gives the same case.
        scanner: its known settings, see `optics.draw_scanner`.
    """
    rng = np.random.default_rng([seed, _SLIDES + number])

    def vary(value: float, sd: float) -> float:
        return float(value * np.exp(rng.normal(0, sd)))

    vesicular = vary(1.0, 0.3)  # between pale nuclei with a sharp membrane and dense ones
    habits = {
        kind: replace(
            habit,
            hematoxylin=habit.hematoxylin / vesicular**0.5,
            chromatin=habit.chromatin * vesicular,
            rim=habit.rim * vesicular,
        )
        for kind, habit in tissue.habits.items()
    }
    own = replace(
        tissue,
        habits=habits,
        epithelium=min(vary(tissue.epithelium, 0.25), 0.9),
        width=vary(tissue.width, 0.15),
        gaps=min(vary(tissue.gaps, 0.3), 0.9),
        collagen=vary(tissue.collagen, 0.2),
        cytoplasm=vary(tissue.cytoplasm, 0.25),
        foam=min(vary(tissue.foam, 0.6), 0.4),
        epithelial_density=vary(tissue.epithelial_density, 0.1),
        stromal_density=vary(tissue.stromal_density, 0.4),
        gap_density=vary(tissue.gap_density, 0.4),
    )
    return Case(
        own,
        marker,
        draw_he_slide(rng),
        draw_ihc_slide(marker, rng),
        draw_scanner(rng, **scanner),
        draw_scanner(rng, **scanner),
    )


def photograph_he(section: Section, case: Case, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the H&E tile of a section, HxWx3 uint8 RGB."""
    od_hwc = absorb(he_concentrations(section, case.he), case.he.vectors)
    return _crop(expose(od_hwc, section.plan.mpp, case.he_scanner, rng), section.margin)


def photograph_ihc(section: Section, case: Case, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the IHC tile of a section, HxWx3 uint8 RGB."""
    od_hwc = absorb(ihc_concentrations(section, case.ihc, case.marker), case.ihc.vectors)
    return _crop(expose(od_hwc, section.plan.mpp, case.ihc_scanner, rng), section.margin)


def write_truth(root: Path, relative: str, section: Section, case: Case) -> None:
    """Write instances, types and marker states of a tile under ``<root>/truth``.

    Args:
        root: of the data set.
        relative: path of the tile inside the data set, ending in ``.png``.
        section: that the tile shows.
        case: that it comes from.
    """
    instances_hw, nuclei = truth(section)
    type_of = np.concatenate([[0], nuclei["type"]]).astype(np.uint8)
    write_png(root / "truth" / "instances" / relative, instances_hw.astype(np.uint16))
    write_png(root / "truth" / "types" / relative, type_of[instances_hw])
    area = np.bincount(instances_hw.ravel(), minlength=len(nuclei) + 1)[1:] * section.plan.mpp**2
    intensity = expression(nuclei, case.ihc, case.marker)
    rows = ["id,type,x,y,area_um2,intensity,mitosis,blur"]
    for i, row in enumerate(nuclei):
        rows.append(
            f"{i + 1},{TYPES[row['type'] - 1]},{row['x']:.2f},{row['y']:.2f},{area[i]:.2f},"
            f"{intensity[i]:.3f},{int(row['mitosis'])},{row['blur']:.2f}"
        )
    write_text((root / "truth" / "markers" / relative).with_suffix(".csv"), "\n".join(rows) + "\n")


def _crop(image: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image[margin:-margin, margin:-margin])
