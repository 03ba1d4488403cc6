"""Count positive nuclei on IHC (DAB and hematoxylin): python examples/measure_stain.py IMAGE UM_PER_PX."""

import sys
from pathlib import Path

from find_nuclei import find_nuclei

from ihc2he.images.decoding import read_image
from ihc2he.images.source import ArraySource
from ihc2he.models.pipeline.segmenters import Learned
from ihc2he.nuclei.counts import count_by_class
from ihc2he.nuclei.table import IHC_STAINS, nuclei_table


def main(path: str, mpp: str) -> None:
    """Print the counts of each class."""
    segmenter = Learned("builtin", name="centres")
    image = read_image(Path(path))
    nuclei = find_nuclei(image, float(mpp), segmenter).nuclei
    white = ArraySource(image).white  # the colour of empty glass, from which optical densities count
    table = nuclei_table(nuclei.inst_hw, nuclei.types_n, mpp=float(mpp), image=image, stains=IHC_STAINS, white=white)
    for name, counts in count_by_class(table, segmenter.classes, thresholds=(0.2, 0.4, 0.6)).items():
        print(f"{name}: {counts.nuclei} nuclei, {counts.percent_positive:.1f} % positive, H-score {counts.h_score:.0f}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 3 else __doc__)
