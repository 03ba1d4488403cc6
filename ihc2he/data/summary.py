"""What `prepare_data` leaves beside a store for people to look at: index.csv, skipped.csv, exploration.png."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.store import TileStore
from ihc2he.stain.deconvolution import HE, IHC, optical_density, separate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNMIXING = {"ihc": (IHC, ("hematoxylin", "dab")), "he": (HE, ("hematoxylin", "eosin"))}
# Mean optical density above which a pixel counts as tissue: 0.06 is a grey of 222, darker than empty glass.
TISSUE_OD = 0.06


def stain_statistics(image: NDArray[np.uint8], stain: str) -> dict[str, float]:
    """Return the tissue fraction of an image and the mean concentration of its stains, in optical density.

    Large images are measured on a regular grid of about 256 x 256 of their pixels.

    Args:
        image: HxWx3, uint8 RGB.
        stain: "ihc" or "he".

    >>> stain_statistics(np.full((8, 8, 3), 255, np.uint8), "he")
    {'he_tissue': 0.0, 'he_hematoxylin': 0.0, 'he_eosin': 0.0}
    """
    step = max(1, min(image.shape[:2]) // 256)
    image = image[::step, ::step]
    vectors, names = UNMIXING[stain]
    concentrations = separate(image, vectors).mean((0, 1))
    tissue = (optical_density(image).mean(-1) > TISSUE_OD).mean()
    values = {"tissue": tissue} | dict(zip(names, concentrations, strict=True))
    return {f"{stain}_{name}": round(float(value), 4) for name, value in values.items()}


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, under a temporary name until it is complete."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    part.replace(path)


def write_index(path: Path, store: TileStore) -> None:
    """Write one line per record: tile, split, level, tissue fractions and stain concentrations."""
    names = {"name": "tile", "group": "level"}
    columns = list(dict.fromkeys(key for row in store.rows for key in row if key != "shapes"))
    write_csv(
        path, [names.get(key, key) for key in columns], ([row.get(key, "") for key in columns] for row in store.rows)
    )


def draw_exploration(path: Path, store: TileStore) -> None:
    """Draw the level distribution, the histograms of the stains and example tiles of both stains."""
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
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=100)
    part.replace(path)


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
        values[f"{stain} {name}"] = [row[f"{stain}_{name}"] for row in store.rows if stain in row["shapes"]]
    axis.hist(list(values.values()), bins=20, label=list(values))
    axis.set_xlabel("fraction of pixels" if quantity == "tissue" else "mean concentration (OD)")
    axis.set_ylabel("tiles")
    axis.set_title(f"{quantity} per tile")
    axis.legend()


def _examples(store: TileStore, n: int = 6) -> dict[str, list[int]]:
    """Return record numbers per stain, spread over the groups and, within them, over the store."""
    chosen = {}
    for stain in UNMIXING:
        numbers = [i for i, row in enumerate(store.rows) if stain in row["shapes"]]
        numbers.sort(key=lambda i: store.rows[i]["group"])
        chosen[stain] = [numbers[round(i)] for i in np.linspace(0, len(numbers) - 1, min(n, len(numbers)))]
    return chosen
