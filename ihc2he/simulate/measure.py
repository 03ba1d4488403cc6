"""Figures to compare simulated tiles with real ones."""

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.classical import segment_nuclei
from ihc2he.stain.deconvolution import HE, IHC, separate

_DAB_POSITIVE = 0.4  # concentration


def describe(
    image: NDArray[np.uint8], mpp: float, stain: str, instances_hw: NDArray[np.integer] | None = None
) -> dict[str, float]:
    """Return mean and standard deviation of each stain, and area and density of the nuclei of a tile.

    Args:
        image: HxWx3, uint8 RGB; the black padding of some scans is ignored.
        mpp: pixel size, um/px.
        stain: "he" or "ihc"; selects the stain vectors of Ruifrok and Johnston.
        instances_hw: instance map; if None, the classical detector segments the tile.

    Returns:
        Optical densities; areas in um^2; nuclei per 10,000 um^2; for IHC also the share of pixels with DAB.

    >>> sorted(describe(np.full((32, 32, 3), 200, np.uint8), 0.5, "he"))
    ['density', 'eosin mean', 'eosin sd', 'hematoxylin mean', 'hematoxylin sd', 'nuclear area']
    """
    seen_hw = image.any(-1)
    names, vectors = (("hematoxylin", "eosin"), HE) if stain == "he" else (("hematoxylin", "DAB"), IHC)
    concentrations_ns = separate(image, vectors)[seen_hw]
    figures = {}
    for name, values_n in zip(names, concentrations_ns.T, strict=True):
        figures[f"{name} mean"], figures[f"{name} sd"] = float(values_n.mean()), float(values_n.std())
    if stain == "ihc":
        figures["DAB fraction"] = float((concentrations_ns[:, 1] > _DAB_POSITIVE).mean())
    instances_hw = segment_nuclei(image, mpp) if instances_hw is None else instances_hw
    areas_n = np.bincount(instances_hw[seen_hw])[1:] * mpp**2
    areas_n = areas_n[areas_n > 0]
    figures["nuclear area"] = float(np.median(areas_n)) if len(areas_n) else float("nan")
    figures["density"] = len(areas_n) / (seen_hw.sum() * mpp**2) * 1e4
    return figures
