"""The picture of README: `python docs/images/picture.py`; IHC, virtual H&E, nuclei and numbers of simulated tissue."""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from ihc2he.images.decoding import read_image
from ihc2he.images.labels import read_labels
from ihc2he.images.writing import write_png
from ihc2he.nuclei.counts import THRESHOLDS, strengths
from ihc2he.simulate.scene import cut, draw_block
from ihc2he.simulate.tile import draw_case, photograph_ihc, tile_rng
from ihc2he.simulate.tissue import ORGANS, Marker

SIZE, MPP, SEED, CASE = 360, 0.25, 0, 1
POSITIVE, NEGATIVE = (255, 120, 0), (0, 110, 255)
OUT = Path(__file__).with_name("ihc_to_numbers.jpg")
STRENGTHS = {"negative": "#c9cfe4", "weak": "#dcbf9a", "moderate": "#b0794a", "strong": "#6b3d1c"}


def simulate(file: Path) -> None:
    """Write a tile of simulated tissue of the colon with a nuclear marker."""
    rng = tile_rng(SEED, CASE)
    case = draw_case(ORGANS["Colon"], Marker("nucleus"), SEED, CASE)
    write_png(file, photograph_ihc(cut(draw_block(case.tissue, SIZE, MPP, rng), rng), case, rng))


def rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def draw(found: Path, ihc: Path) -> None:
    """Write the picture from the files of a prediction."""
    mpl.rcParams.update({"font.size": 11, "axes.titlesize": 12, "font.family": "DejaVu Sans"})
    shown = [read_image(ihc), read_image(found / "he" / ihc.name), outlined(found, ihc)]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), width_ratios=[1, 1, 1, 1.1], layout="constrained")
    for axis, title, picture in zip(axes[:3], ("IHC", "virtual H&E", "nuclei"), shown, strict=True):
        axis.imshow(picture)
        axis.set_title(title)
        axis.axis("off")
    draw_numbers(axes[3], found, ihc.stem)
    figure.savefig(OUT, dpi=110, pil_kwargs={"quality": 88})


def outlined(found: Path, ihc: Path) -> NDArray[np.uint8]:
    """Return the tile with positive nuclei outlined in orange and negative ones in blue."""
    inst_hw = read_labels(found / "instances" / ihc.name)
    nuclei = rows(found / "nuclei" / f"{ihc.stem}.csv")
    colours = np.zeros((int(inst_hw.max()) + 1, 3), np.uint8)
    for nucleus in nuclei:
        colours[int(nucleus["id"])] = POSITIVE if float(nucleus["dab_od"]) > THRESHOLDS[0] else NEGATIVE
    grown_hw = cv2.dilate(inst_hw.astype(np.float32), np.ones((3, 3), np.uint8)).astype(int)
    edge_hw = grown_hw != cv2.erode(inst_hw.astype(np.float32), np.ones((3, 3), np.uint8)).astype(int)
    picture = read_image(ihc).copy()
    picture[edge_hw] = colours[grown_hw[edge_hw]]
    return picture


def draw_numbers(axis: plt.Axes, found: Path, name: str) -> None:
    """Draw the counts of a tile and the nuclei by strength."""
    total = next(row for row in rows(found / "summary.csv") if row["image"] == name and row["class"] == "all")
    dab_od_n = np.array([float(row["dab_od"]) for row in rows(found / "nuclei" / f"{name}.csv")])
    counts = np.bincount(strengths(dab_od_n), minlength=4)
    axis.set_title("numbers")
    axis.barh(range(4), counts, color=STRENGTHS.values(), height=0.7)
    axis.set_yticks(range(4), STRENGTHS)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    percent, h_score = float(total["percent_positive"]), float(total["h_score"])
    axis.set_xlabel(f"{total['nuclei']} nuclei, {percent:.0f} % positive, H-score {h_score:.0f}")


def main() -> None:
    """Simulate a tile, find its nuclei with the weights in the box, and draw."""
    with tempfile.TemporaryDirectory() as folder:
        ihc, found = Path(folder, "tile.png"), Path(folder, "found")
        simulate(ihc)
        command = [
            sys.executable,
            "-m",
            "ihc2he.train",
            "experiment=predict_tiles",
            f"data.path={ihc}",
            f"data.mpp={MPP}",
        ]
        own = ["model.use.translators=[recolour]", f"out={found}", f"hydra.run.dir={folder}/run"]
        subprocess.run([*command, *own], check=True)
        draw(found, ihc)


if __name__ == "__main__":
    main()
