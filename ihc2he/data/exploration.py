"""Reports that `prepare_data` writes next to a store: index.csv, skipped.csv, exploration.png."""

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.store import TileStore
from ihc2he.files import complete, write_csv
from ihc2he.internals.matplotlib import load
from ihc2he.stain.deconvolution import HE, IHC, optical_density, separate

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNMIXING = {"ihc": (IHC, ("hematoxylin", "dab")), "he": (HE, ("hematoxylin", "eosin"))}
# Mean optical density above which a pixel counts as tissue: 0.06 is a grey of 222, darker than empty glass.
TISSUE_OD = 0.06


def stain_statistics(image: NDArray[np.uint8], stain: str) -> dict[str, float]:
    """Return the tissue fraction of an image, the mean concentration of its stains, and the share of blue.

    Concentrations are in optical density. The share of blue is the mean optical density of the blue channel divided by
    that of all three: about 0.4 for brown DAB, 0.26 for H&E. Large images are measured on about 256 x 256 pixels.

    Args:
        image: HxWx3, uint8 RGB.
        stain: "ihc" or "he".

    >>> stain_statistics(np.full((8, 8, 3), 255, np.uint8), "he")
    {'he_tissue': 0.0, 'he_hematoxylin': 0.0, 'he_eosin': 0.0, 'he_blue_share': 0.0}
    """
    step = max(1, min(image.shape[:2]) // 256)
    image = image[::step, ::step]
    vectors, names = UNMIXING[stain]
    concentrations = separate(image, vectors).mean((0, 1))
    od_hwc = optical_density(image)
    blue_share = od_hwc[..., 2].sum() / max(od_hwc.sum(), 1e-6)
    values = {"tissue": (od_hwc.mean(-1) > TISSUE_OD).mean()}
    values |= dict(zip(names, concentrations, strict=True)) | {"blue_share": blue_share}
    return {f"{stain}_{name}": round(float(value), 4) for name, value in values.items()}


def write_index(path: Path, store: TileStore) -> None:
    """Write one line per record: tile, split, level, and the statistics of each stain it has."""
    rows = [{"tile": row["name"], "split": row["split"], "level": row["group"]} | row["stains"] for row in store.rows]
    write_csv(path, rows)


def write_nuclei_index(path: Path, store: TileStore) -> None:
    """Write one line per tile with nuclei: name, split, tissue, size, number of nuclei in total and per class, losses.

    ``vanished``: nuclei smaller than a pixel after resampling; ``overlap_px``: pixels with two nuclei.
    """
    rows = [
        {"tile": row["name"], "split": row["split"], "tissue": row["group"]}
        | dict(zip(("height", "width"), row["shapes"]["image"], strict=False))
        | {"nuclei": row["nuclei"]}
        | row.get("counts", {})
        | {name: row[name] for name in ("vanished", "overlap_px") if name in row}
        for row in store.rows
    ]
    write_csv(path, rows)


def draw_exploration(path: Path, store: TileStore) -> None:
    """Draw the level distribution, the histograms of the stains and example tiles of both stains."""
    load()
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    examples = _examples(store)
    figure = Figure(figsize=(14, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(2, 3))[:, 0]
    axes = top.subplots(1, 4)
    _draw_levels(axes[0], store)
    for axis, quantity in zip(axes[1:], ("tissue", "hematoxylin", "counterstain"), strict=True):
        _draw_histograms(axis, store, quantity)
    grid = bottom.subplots(2, max(1, len(examples["ihc"]), len(examples["he"])), squeeze=False)
    for stain, row in zip(("ihc", "he"), grid, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, number in zip(row, examples[stain], strict=False):
            axis.imshow(store.read(number, stain))
            axis.set_title(f"{stain}: {store.rows[number]['name']}", fontsize=7)
    with complete(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _draw_levels(axis: "Axes", store: TileStore) -> None:
    counts = {
        stain: Counter((r["split"], r["group"]) for r in store.rows if stain in r["shapes"]) for stain in UNMIXING
    }
    bars = sorted({*counts["ihc"], *counts["he"]})
    for offset, (stain, count) in zip((-0.2, 0.2), counts.items(), strict=True):
        axis.bar(np.arange(len(bars)) + offset, [count[bar] for bar in bars], width=0.4, label=stain)
    axis.set_xticks(range(len(bars)), [" ".join(bar).strip() for bar in bars], rotation=45)
    axis.set_title("tiles per split and level")
    axis.legend()


def _draw_histograms(axis: "Axes", store: TileStore, quantity: str) -> None:
    values = {}
    for stain, (_, names) in UNMIXING.items():
        name = names[1] if quantity == "counterstain" else quantity
        values[f"{stain} {name}"] = [row["stains"][f"{stain}_{name}"] for row in store.rows if stain in row["shapes"]]
    axis.hist(list(values.values()), bins=20, label=list(values))
    axis.set_xlabel("fraction of pixels" if quantity == "tissue" else "mean concentration (OD)")
    axis.set_ylabel("tiles")
    axis.set_title(f"{quantity} per tile")
    axis.legend()


def _examples(store: TileStore, n: int = 6) -> dict[str, list[int]]:
    """Return record numbers per stain, from all groups and evenly spaced within each."""
    chosen = {}
    for stain in UNMIXING:
        numbers = [i for i, row in enumerate(store.rows) if stain in row["shapes"]]
        numbers.sort(key=lambda i: store.rows[i]["group"])
        chosen[stain] = [numbers[round(i)] for i in np.linspace(0, len(numbers) - 1, min(n, len(numbers)))]
    return chosen


def warn_if_swapped(store: TileStore) -> None:
    """Log a warning if the IHC images are less brown than the H&E images, which means that they may be swapped."""
    shares = [
        [row["stains"][f"{stain}_blue_share"] for row in store.rows if stain in row["shapes"]]
        for stain in ("ihc", "he")
    ]
    if all(shares) and np.median(shares[0]) < np.median(shares[1]):
        log.warning("The IHC images are less brown than the H&E images. Are the two stains swapped?")
