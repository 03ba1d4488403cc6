"""Kinds of tissue: proportions, lengths in micrometres, and the look of the nuclei."""

from dataclasses import dataclass, field, replace
from typing import Literal

# PanNuke's classes in the order of its mask channels; in a type map class i is stored as i + 1, 0 = background.
TYPES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
NEOPLASTIC, INFLAMMATORY, CONNECTIVE, DEAD, EPITHELIAL = range(1, 6)


@dataclass(frozen=True)
class Habit:
    """Size, shape and staining of one type of nucleus; single nuclei vary around these values."""

    length: float  # um, longest axis
    length_sd: float  # um
    aspect: float  # shortest axis over longest
    aspect_sd: float
    wobble: float  # irregularity of the outline, as a fraction of the radius
    hematoxylin: float  # relative to the slide's strength
    hematoxylin_sd: float  # from nucleus to nucleus
    chromatin: float  # contrast of the texture inside
    rim: float  # contrast of the nuclear membrane
    nucleoli: float  # mean number


HABITS = {
    NEOPLASTIC: Habit(9.8, 1.7, 0.72, 0.11, 0.070, 0.82, 0.28, 0.34, 0.50, 1.4),
    INFLAMMATORY: Habit(6.2, 0.6, 0.88, 0.06, 0.045, 1.20, 0.18, 0.30, 0.15, 0.0),
    CONNECTIVE: Habit(9.8, 2.2, 0.40, 0.13, 0.080, 0.95, 0.28, 0.26, 0.30, 0.15),
    DEAD: Habit(5.0, 1.3, 0.80, 0.12, 0.110, 0.95, 0.35, 0.10, 0.00, 0.0),
    EPITHELIAL: Habit(7.9, 0.9, 0.68, 0.11, 0.050, 0.92, 0.20, 0.28, 0.40, 0.6),
}


@dataclass(frozen=True)
class Tissue:
    """A kind of tissue. Proportions are averages over many tiles; single tiles differ widely."""

    epithelium: float = 0.45  # share of the area inside epithelial outlines, lumina included
    width: float = 55.0  # um, width of a gland or nest
    layer: float = 0.0  # um, height of the epithelium around a lumen; 0 = solid nests
    malignant: float = 0.8  # probability that the epithelium of a tile is neoplastic
    gaps: float = 0.15  # share of the stroma that is empty
    collagen: float = 1.0  # eosin of the stroma, relative
    cytoplasm: float = 1.0  # eosin of the epithelium, relative
    foam: float = 0.15  # how much of the epithelium's cytoplasm is vacuoles
    inflammation: float = 0.12  # share of the stroma inside lymphocyte aggregates
    necrosis: float = 0.02  # share of the epithelium
    vessels: float = 0.03  # share of the stroma
    blood: float = 0.03  # share of the stroma's gaps flooded with red cells
    outside: float = 0.02  # share of the area off the tissue
    epithelial_density: float = 14.0  # nuclei per 1000 um^2 before overlapping ones are removed
    stromal_density: float = 6.0
    gap_density: float = 0.6
    clumping: float = 0.4  # spread of the density from place to place
    spacing: float = 1.05  # 1 = nuclei may just touch
    overlapping: float = 0.06  # share of nuclei that may lie over a neighbour
    unfocused: float = 0.10  # share of nuclei out of the focal plane
    habits: dict[int, Habit] = field(default_factory=lambda: HABITS)


@dataclass(frozen=True)
class Marker:
    """An IHC marker with DAB: its location, its strength, and its colour."""

    site: Literal["nucleus", "membrane"]
    level: int = 0  # membrane only: HER2 score 0 to 3
    dab: tuple[float, float, float] = (0.29, 0.54, 0.79)  # optical-density vector, which differs between kits


BREAST = Tissue(epithelium=0.55, width=70.0, malignant=1.0)

_STROMAL_ENDOMETRIUM = replace(HABITS[CONNECTIVE], length=6.2, length_sd=1.0, aspect=0.72, aspect_sd=0.14)
_GLANDULAR_ENDOMETRIUM = replace(HABITS[EPITHELIAL], length=7.6, length_sd=0.9, aspect=0.54)
ENDOMETRIUM = Tissue(
    epithelium=0.3,
    width=38.0,
    layer=16.0,
    malignant=0.0,
    gaps=0.45,
    collagen=0.8,
    inflammation=0.015,
    blood=0.06,
    outside=0.01,
    epithelial_density=36.0,
    stromal_density=15.0,
    gap_density=13.5,
    clumping=0.85,
    spacing=0.87,
    overlapping=0.05,
    unfocused=0.32,
    habits={**HABITS, CONNECTIVE: _STROMAL_ENDOMETRIUM, EPITHELIAL: _GLANDULAR_ENDOMETRIUM},
)

# The tissues of PanNuke, each with its most visible characteristics.
ORGANS = {
    "Adrenal_gland": Tissue(epithelium=0.8, width=45.0, malignant=0.3, collagen=0.7),
    "Bile-duct": Tissue(epithelium=0.4, width=30.0, layer=13.0, malignant=0.8),
    "Bladder": Tissue(epithelium=0.6, width=80.0, malignant=0.7),
    "Breast": BREAST,
    "Cervix": Tissue(epithelium=0.6, width=90.0, malignant=0.6, inflammation=0.2),
    "Colon": Tissue(epithelium=0.5, width=36.0, layer=18.0, malignant=0.6, inflammation=0.25),
    "Esophagus": Tissue(epithelium=0.5, width=90.0, malignant=0.5),
    "HeadNeck": Tissue(epithelium=0.55, width=80.0, malignant=0.8, inflammation=0.2),
    "Kidney": Tissue(epithelium=0.65, width=28.0, layer=11.0, malignant=0.5, collagen=0.6),
    "Liver": Tissue(epithelium=0.9, width=60.0, malignant=0.5, collagen=0.7),
    "Lung": Tissue(epithelium=0.4, width=50.0, malignant=0.7, gaps=0.35, inflammation=0.2),
    "Ovarian": Tissue(epithelium=0.6, width=60.0, malignant=0.9),
    "Pancreatic": Tissue(epithelium=0.5, width=28.0, layer=12.0, malignant=0.6),
    "Prostate": Tissue(epithelium=0.5, width=36.0, layer=14.0, malignant=0.6),
    "Skin": Tissue(epithelium=0.4, width=80.0, malignant=0.5, collagen=1.3),
    "Stomach": Tissue(epithelium=0.5, width=33.0, layer=16.0, malignant=0.6, inflammation=0.3),
    "Testis": Tissue(epithelium=0.7, width=80.0, malignant=0.8, inflammation=0.25),
    "Thyroid": Tissue(epithelium=0.6, width=40.0, layer=9.0, malignant=0.4),
    "Uterus": replace(ENDOMETRIUM, gaps=0.2, malignant=0.5),
}
